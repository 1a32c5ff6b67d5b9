"""Makes files of a shop's log from The Complete Journey, and a short table of an evaluation.

usage: recall.py health|all DATA OUTPUT-FOLDER     (called by scripts/bench recall)
       recall.py table RESULT.json
"""

import csv
import json
import pathlib
import sys

# What a shop for health and personal care sells; departments also hold cards, magazines and candy.
HEALTH = set(
    """ADULT INCONTINENCE;ANALGESICS;ANTACIDS;BABY HBC;BATH;COLD AND FLU;COSMETIC ACCESSORIES;DEODORANTS;
    DIAPERS & DISPOSABLES;DIETARY AID PRODUCTS;ETHNIC PERSONAL CARE;EYE AND EAR CARE PRODUCTS;FAMILY PLANNING;
    FEMININE HYGIENE;FIRST AID PRODUCTS;FITNESS&DIET;FOOT CARE PRODUCTS;FRAGRANCES;HAIR CARE ACCESSORIES;
    HAIR CARE PRODUCTS;HAND/BODY/FACIAL PRODUCTS;HOME HEALTH CARE;LAXATIVES;MAKEUP AND TREATMENT;MISCELLANEOUS HBC;
    NATURAL HBC;NATURAL VITAMINS;ORAL HYGIENE PRODUCTS;PERSONAL CARE APPLIANCES;PHARMACY;SHAVING CARE PRODUCTS;
    SINUS AND ALLERGY;SMOKING CESSATIONS;SOAP - LIQUID & BAR;SUNTAN;VITAMINS""".replace("\n    ", "").split(";")
)

# Before the first purchase, in milliseconds.
START = 1_483_000_000_000

# The newest record's sold pieces are capped as the contract asks.
PIECES_MAX = 1_000


def line(key, value):
    return json.dumps({"key": key, "timestamp": START, "value": value}) + "\n"


def make(shop, data, out):
    known = set()
    with open(data / "products.jsonl", encoding="utf-8") as rows, open(
        out / "catalog.jsonl", "w", encoding="utf-8"
    ) as file:
        for row in map(json.loads, rows):
            if shop == "all" or row["category"] in HEALTH:
                known.add(row["sku"])
                fields = {name: row[name] for name in ("pu", "category", "title")}
                file.write(line(row["sku"], {**fields, "stock": 20}))
    with open(data / "households.jsonl", encoding="utf-8") as rows, open(
        out / "profiles.jsonl", "w", encoding="utf-8"
    ) as file:
        for row in map(json.loads, rows):
            file.write(line(row.pop("user"), row))
    with open(data / "transactions.csv", encoding="utf-8", newline="") as rows, open(
        out / "events.csv", "w", encoding="utf-8", newline=""
    ) as file:
        write = csv.writer(file, lineterminator="\n")
        write.writerow(["user", "type", "timestamp", "sku", "qty"])
        for row in csv.DictReader(rows):
            if row["product_id"] in known:
                pieces = min(max(int(float(row["quantity"])), 1), PIECES_MAX)
                write.writerow([row["household_id"], "purchase", row["ts_ms"], row["product_id"], pieces])


def interval(of):
    return f"{of['mean']:+.3f} [{of['low']:+.3f}, {of['high']:+.3f}]"


def table(result):
    for part, title in (("cells", ""), ("cold", "cold products, ")):
        for cell in result[part]:
            print(f"\n{title}{cell['visible']} visible, {cell['targets']}: {cell['users']} users")
            for route in cell["routes"]:
                recall = route["recall"][1]["mean"]
                difference = route.get("difference")
                print(f"  {route['route']:<28} {recall:.3f}  {interval(difference) if difference else ''}")


def main():
    if sys.argv[1] == "table":
        table(json.loads(pathlib.Path(sys.argv[2]).read_text(encoding="utf-8")))
    else:
        make(sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))


if __name__ == "__main__":
    main()
