"""Reads finished lists from Redis: python recall.py SEGMENT USER..."""

import functools
import json
import os
import re
import sys

import redis

# An answer after 200 ms is of no use to a page, and neither is a second try: then the page shows its own list.
LIMITS = {"socket_timeout": 0.2, "socket_connect_timeout": 0.5, "retry": None, "decode_responses": True}
TLS = {"ssl_ca_certs": os.environ["REDIS_CA"]} if "REDIS_CA" in os.environ else {}
db = redis.Redis.from_url(os.environ["REDIS_URL"], **LIMITS, **TLS)


def tag(text):  # as ids are written in keys
    return re.sub(r"[%{}\x00-\x1f\x7f]", lambda found: f"%{ord(found[0]):02X}", text)


def stock_set(sku):  # FNV-1a, 32 bit, modulo 16
    number = functools.reduce(lambda h, byte: (h ^ byte) * 16777619 % 2**32, sku.encode(), 2166136261)
    return f"nearshore:oos:{{{number % 16}}}"


# begin recall
def recall(segment, user):
    ns, read = db.get("nearshore:active"), db.pipeline(transaction=False)  # cache the name for a minute
    read.hget(f"{ns}:{{{tag(user)}}}:recall", "doc")
    read.get(f"{ns}:fallback:{tag(segment)}").get(f"{ns}:fallback:default")
    doc = next(doc for doc in map(json.loads, filter(None, read.execute())) if doc["schema"] == 1)
    skus, ask = [sku for row in doc["skus"] for sku in row], db.pipeline(transaction=False)
    for sku in skus: ask.sismember(stock_set(sku), sku)
    out = {sku for sku, gone in zip(skus, ask.execute()) if gone}
    rows = ((name, [sku for sku in row if sku not in out]) for name, row in zip(doc["names"], doc["skus"]))
    return doc["list_id"], doc["source"], [(name, row) for name, row in rows if row]
# end recall


for user in sys.argv[2:]:
    try:
        list_id, source, rows = recall(sys.argv[1], user)
        names, skus = [name for name, _ in rows], [row for _, row in rows]
        print(json.dumps({"user": user, "list_id": list_id, "source": source, "names": names, "skus": skus}))
    except (redis.RedisError, StopIteration) as error:  # show your own popular products; log no exposure
        print(json.dumps({"user": user, "unavailable": str(error) or "no list"}))
