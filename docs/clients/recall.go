// Reads finished lists from Redis: go run recall.go SEGMENT USER...
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log"
	"os"
	"regexp"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

type document struct {
	Schema int        `json:"schema"`
	ListID string     `json:"list_id"`
	Source string     `json:"source"`
	Names  []string   `json:"names"`
	SKUs   [][]string `json:"skus"`
}

var (
	db       *redis.Client
	inBraces = regexp.MustCompile(`[%{}\x00-\x1f\x7f]`)
	errNone  = errors.New("neither a list nor a fallback of schema 1")
)

// As ids are written in keys.
func tag(text string) string {
	return inBraces.ReplaceAllStringFunc(text, func(c string) string { return fmt.Sprintf("%%%02X", c[0]) })
}

// FNV-1a, 32 bit, modulo 16.
func stockSet(sku string) string {
	hash := fnv.New32a()
	hash.Write([]byte(sku))
	return fmt.Sprintf("nearshore:oos:{%d}", hash.Sum32()%16)
}

// begin recall
func recall(ctx context.Context, segment, user string) (doc document, err error) {
	ns, pipe := db.Get(ctx, "nearshore:active").Val(), db.Pipeline() // cache the name for a minute
	pipe.HGet(ctx, ns+":{"+tag(user)+"}:recall", "doc")
	pipe.Get(ctx, ns+":fallback:"+tag(segment))
	pipe.Get(ctx, ns+":fallback:default")
	if doc, err = first(pipe.Exec(ctx)); err != nil {
		return
	}
	for _, sku := range slices.Concat(doc.SKUs...) {
		pipe.SIsMember(ctx, stockSet(sku), sku)
	}
	return doc.without(pipe.Exec(ctx))
}

// end recall

// The first of these documents that has the schema.
func first(found []redis.Cmder, err error) (document, error) {
	if err != nil && !errors.Is(err, redis.Nil) { // Nil: one of the keys is absent
		return document{}, err
	}
	for _, one := range found {
		var doc document
		text, _ := one.(*redis.StringCmd).Bytes()
		if json.Unmarshal(text, &doc) == nil && doc.Schema == 1 {
			return doc, nil
		}
	}
	return document{}, errNone
}

// The document without the SKUs that are gone, and without names that then have none.
func (doc document) without(gone []redis.Cmder, err error) (document, error) {
	names, rows, nth := []string{}, [][]string{}, 0
	for i, row := range doc.SKUs {
		left := []string{}
		for _, sku := range row {
			if err == nil && !gone[nth].(*redis.BoolCmd).Val() {
				left = append(left, sku)
			}
			nth++
		}
		if len(left) > 0 {
			names, rows = append(names, doc.Names[i]), append(rows, left)
		}
	}
	doc.Names, doc.SKUs = names, rows
	return doc, err
}

func main() {
	options, err := redis.ParseURL(os.Getenv("REDIS_URL"))
	if err != nil {
		log.Fatal(err)
	}
	if file := os.Getenv("REDIS_CA"); file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			log.Fatal(err)
		}
		options.TLSConfig.RootCAs = x509.NewCertPool()
		options.TLSConfig.RootCAs.AppendCertsFromPEM(pem)
		options.TLSConfig.MinVersion = tls.VersionTLS12
	}
	// An answer after 200 ms is of no use to a page, and neither is a second try: then the page shows its own list.
	options.MaxRetries, options.DialerRetries, options.ContextTimeoutEnabled = -1, 1, true
	db = redis.NewClient(options)
	for _, user := range os.Args[2:] {
		// 200 ms would do once there is a connection.
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		doc, err := recall(ctx, os.Args[1], user)
		cancel()
		found := map[string]any{"user": user, "list_id": doc.ListID, "source": doc.Source}
		found["names"], found["skus"] = doc.Names, doc.SKUs
		if err != nil { // show your own popular products; log no exposure
			found = map[string]any{"user": user, "unavailable": err.Error()}
		}
		json.NewEncoder(os.Stdout).Encode(found)
	}
}
