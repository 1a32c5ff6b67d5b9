// Reads finished lists from Redis: node recall.mjs SEGMENT USER...
import { readFileSync } from "node:fs";
import { createClient } from "redis";

const { REDIS_URL: url, REDIS_CA: ca } = process.env;
// An answer after 200 ms is of no use to a page, and neither is a second try: then the page shows its own list.
const limits = { connectTimeout: 500, reconnectStrategy: false, ...(ca && { ca: readFileSync(ca) }) };
const db = createClient({ url, socket: limits, commandOptions: { timeout: 200 }, disableOfflineQueue: true });
db.on("error", (error) => console.error(String(error)));

// As ids are written in keys.
const tag = (text) =>
  text.replace(/[%{}\x00-\x1f\x7f]/g, (c) => "%" + c.charCodeAt().toString(16).toUpperCase().padStart(2, "0"));

// FNV-1a, 32 bit, modulo 16.
function stockSet(sku) {
  const number = Buffer.from(sku).reduce((hash, byte) => Math.imul(hash ^ byte, 16777619), 2166136261);
  return `nearshore:oos:{${(number >>> 0) % 16}}`;
}

// begin recall
async function recall(segment, user) {
  const ns = await db.get("nearshore:active"); // cache the name for a minute
  const keys = [`${ns}:fallback:${tag(segment)}`, `${ns}:fallback:default`];
  // Commands of one turn go to Redis in one write.
  const texts = await Promise.all([db.hGet(`${ns}:{${tag(user)}}:recall`, "doc"), ...keys.map((key) => db.get(key))]);
  const doc = texts.filter(Boolean).map((text) => JSON.parse(text)).find((doc) => doc.schema === 1);
  const skus = doc.skus.flat();
  const gone = await Promise.all(skus.map((sku) => db.sIsMember(stockSet(sku), sku)));
  const out = new Set(skus.filter((_, i) => gone[i]));
  const rows = doc.names.map((name, i) => ({ name, skus: doc.skus[i].filter((sku) => !out.has(sku)) }));
  return { list_id: doc.list_id, source: doc.source, rows: rows.filter((row) => row.skus.length) };
}
// end recall

await db.connect().catch(() => {});
for (const user of process.argv.slice(3)) {
  try {
    const { list_id, source, rows } = await recall(process.argv[2], user);
    const [names, skus] = [rows.map((row) => row.name), rows.map((row) => row.skus)];
    console.log(JSON.stringify({ user, list_id, source, names, skus }));
  } catch (error) { // show your own popular products; log no exposure
    console.log(JSON.stringify({ user, unavailable: String(error) }));
  }
}
db.destroy();
