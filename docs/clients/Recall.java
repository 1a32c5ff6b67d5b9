// Reads finished lists from Redis: java -cp 'jars/*' Recall.java SEGMENT USER...
import static java.util.stream.Collectors.toMap;

import com.google.gson.Gson;
import java.io.*;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.*;
import java.util.function.Predicate;
import java.util.regex.Pattern;
import java.util.stream.*;
import redis.clients.jedis.*;

public class Recall {
  record Doc(int schema, String list_id, String source, List<String> names, List<List<String>> skus) {
    static Doc parse(String text) {
      return text == null ? new Doc(0, "", "", List.of(), List.of()) : GSON.fromJson(text, Doc.class);
    }

    boolean known() {
      return schema == 1;
    }

    Stream<String> all() {
      return skus.stream().flatMap(List::stream);
    }

    // Without the SKUs that are gone, and without names that then have none.
    Doc without(Predicate<String> gone) {
      var left = skus.stream().map(row -> row.stream().filter(gone.negate()).toList()).toList();
      var kept = IntStream.range(0, left.size()).filter(i -> !left.get(i).isEmpty()).boxed().toList();
      var keptNames = kept.stream().map(names::get).toList();
      return new Doc(schema, list_id, source, keptNames, kept.stream().map(left::get).toList());
    }
  }

  static final Gson GSON = new Gson();
  static RedisClient db;

  // As ids are written in keys.
  static String tag(String text) {
    var inBraces = Pattern.compile("[%{}\\x00-\\x1f\\x7f]").matcher(text);
    return inBraces.replaceAll(found -> "%%%02X".formatted((int) found.group().charAt(0)));
  }

  // FNV-1a, 32 bit, modulo 16.
  static String stockSet(String sku) {
    int hash = (int) 2166136261L;
    for (byte one : sku.getBytes(StandardCharsets.UTF_8)) hash = (hash ^ (one & 255)) * 16777619;
    return "nearshore:oos:{" + Integer.remainderUnsigned(hash, 16) + "}";
  }

  // begin recall
  static Doc recall(String segment, String user) {
    String ns = db.get("nearshore:active"), fallback = ns + ":fallback:"; // cache the name for a minute
    try (var pipe = db.pipelined()) {
      var own = pipe.hget(ns + ":{" + tag(user) + "}:recall", "doc");
      var texts = List.of(own, pipe.get(fallback + tag(segment)), pipe.get(fallback + "default"));
      pipe.sync();
      var doc = texts.stream().map(Response::get).map(Doc::parse).filter(Doc::known).findFirst().orElseThrow();
      var gone = doc.all().distinct().collect(toMap(sku -> sku, sku -> pipe.sismember(stockSet(sku), sku)));
      pipe.sync();
      return doc.without(sku -> gone.get(sku).get());
    }
  }
  // end recall

  // Trusts the CAs of a PEM file alone; SslOptions also checks the server's name.
  static SslOptions trust(String file) throws Exception {
    var store = KeyStore.getInstance("PKCS12");
    store.load(null, null);
    try (var pem = new FileInputStream(file)) {
      for (var ca : CertificateFactory.getInstance("X.509").generateCertificates(pem))
        store.setCertificateEntry("ca" + store.size(), ca);
    }
    var bytes = new ByteArrayOutputStream();
    store.store(bytes, "".toCharArray());
    var options = SslOptions.builder().trustStoreType("PKCS12");
    return options.truststore(() -> new ByteArrayInputStream(bytes.toByteArray()), "".toCharArray()).build();
  }

  public static void main(String[] arguments) throws Exception {
    var url = URI.create(System.getenv("REDIS_URL"));
    // An answer after 200 ms is of no use to a page, and neither is a second try: then the page shows its own list.
    var config = DefaultJedisClientConfig.builder().connectionTimeoutMillis(500).socketTimeoutMillis(200);
    if (System.getenv("REDIS_CA") != null) config.sslOptions(trust(System.getenv("REDIS_CA")));
    if (url.getUserInfo() != null) {
      var login = url.getUserInfo().split(":", 2);
      config.user(login[0].isEmpty() ? null : login[0]).password(login[1]);
    }
    db = RedisClient.builder().hostAndPort(url.getHost(), url.getPort()).clientConfig(config.build()).build();
    for (var user : Arrays.copyOfRange(arguments, 1, arguments.length)) {
      try {
        var doc = recall(arguments[0], user);
        var list = Map.of("list_id", doc.list_id, "source", doc.source, "names", doc.names, "skus", doc.skus);
        var shown = new HashMap<String, Object>(list);
        shown.put("user", user);
        System.out.println(GSON.toJson(shown));
      } catch (RuntimeException error) { // show your own popular products; log no exposure
        System.out.println(GSON.toJson(Map.of("user", user, "unavailable", error.toString())));
      }
    }
  }
}
