"""Compares docs/schema with the records and configurations of the tests: good ones are accepted, bad ones refused.

Usage: schemas.py CHECK_JSONSCHEMA FOLDER. CHECK_JSONSCHEMA is the program, FOLDER is for files of single values. Faults
that no schema of a value can say are in INEXPRESSIBLE; a record with another fault must be refused, and one of these
that is refused after all is told, so that the table stays true.
"""

import json
import pathlib
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCHEMAS = ROOT / "docs" / "schema"

# The corpus of each topic, and its schema.
CORPORA = {
    "user-events": "user-events",
    "profile-changes": "profile-changes",
    "debezium": "profile-changes-debezium",
    "catalog": "catalog",
    "requests": "regen",
}

# Reject codes of faults that are not in the value, or that JSON Schema has no word for.
INEXPRESSIBLE = {
    "no_key": "the key is beside the value",
    "empty_key": "the key is beside the value",
    "key_not_utf8": "the key is beside the value",
    "time_out_of_range": "the timestamp is beside the value",
    "time_ahead": "the timestamp is beside the value",
    "null_value": "a tombstone has no value",
    "too_large": "the size of the text is not the value's",
    "too_deep": "nesting cannot be counted",
    "too_long": "lengths count characters, the limit is in bytes",
    "unseen_character": "the normal form of a text is no pattern",
}

# Records whose fault is of a code that is refused otherwise, by topic and name, with the reason.
BESIDE = "the key is beside the value"
INTEGER = "JSON Schema calls it an integer"
EXCEPTIONS = {
    ("user-events", "key framed by a registry"): BESIDE,
    ("user-events", "key of one zero byte"): BESIDE,
    ("user-events", "key an integer as eight bytes"): BESIDE,
    ("user-events", "pu of control characters"): "the normal form of a text is no pattern",
    ("user-events", "qty minus zero"): INTEGER,
    ("user-events", "qty minus zero point zero"): INTEGER,
    ("user-events", "qty one point zero"): INTEGER,
    ("user-events", "qty 1e3"): INTEGER,
    ("user-events", "ts 31 February"): "the calendar is no pattern",
    ("profile-changes", "key framed"): BESIDE,
    ("debezium", "a key of two columns"): BESIDE,
    ("debezium", "a key whose column is null"): BESIDE,
    ("debezium", "a key whose column is a fraction"): BESIDE,
    ("debezium", "a key whose column is true"): BESIDE,
    ("debezium", "a key whose column is an object"): BESIDE,
    ("debezium", "a key whose payload is null"): BESIDE,
    ("debezium", "a key of objects nested 100 deep"): BESIDE,
    ("debezium", "a key framed"): BESIDE,
    ("catalog", "stock five point zero"): INTEGER,
    ("catalog", "key framed"): BESIDE,
    ("requests", "an empty user"): "an id of a user is described as any text",
    ("requests", "a time beyond 64 bits"): "a time is described as any integer",
    ("requests", "a source beyond 64 bits"): "the offset is a part of a text",
    ("requests", "the same name twice"): "readers of JSON take the last of two fields of one name",
}

# Files of configuration that must be accepted.
CONFIGS = ["config/*.toml", "config/*/*.toml", "deploy/**/nearshore.toml", "docs/**/*.toml", "src/demo/demo.toml"]

# Configurations that must be refused.
BAD_CONFIGS = {
    "a misspelt key": "[redis]\nurll = 'redis://localhost'\n",
    "a misspelt section": "[kafk]\nbrokers = 'a:1'\n",
    "a number as text": "[state]\nwindow = '50'\n",
    "a duration without its unit": "[trigger]\nquiet_period = '30'\n",
    "a duration as a number": "[trigger]\nquiet_period = 30\n",
    "an unknown word": "[log]\nformat = 'xml'\n",
    "an arm without an id": "[[arms]]\nshare = 1\n",
    "a rule without a condition": "[[rules]]\nid = 'minors'\n",
    "a topic that is mapped as nothing": "[[inputs]]\ntopic = 'clicks'\nread_as = 'clicks'\n",
}


def part(value):
    """Bytes of a part of a corpus' record, as tests/integration/corpus.rs reads it."""
    if isinstance(value, str):
        return value.replace("$ns", "main").encode()
    ((what, of),) = value.items()
    if what == "hex":
        return bytes.fromhex(of)
    if what == "repeat":
        return part(of[0]) * of[1]
    if what == "join":
        return b"".join(part(one) for one in of)
    if what == "noise":
        return b"0" * of
    raise SystemExit(f"no part is called {what}")


def is_json(text):
    """Whether bytes are JSON in UTF-8, which check-jsonschema's own reader is not strict about."""

    def number(digits):
        if float(digits) in (float("inf"), float("-inf")):
            raise ValueError(digits)
        return float(digits)

    def whole(digits):
        # Too large for a number of 64 bits, as serde reads it.
        number(digits)
        return int(digits)

    def no_number(word):
        raise ValueError(word)

    try:
        value = json.loads(text.decode("utf-8"), parse_constant=no_number, parse_float=number, parse_int=whole)
        # A lone surrogate is no character.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        return False
    return True


def refused(program, schema, files):
    """Which of the files the schema refuses, or which are no JSON."""
    command = [program, "--schemafile", str(schema), "--output-format", "json", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{schema.name}: {done.stderr or done.stdout}")
    found = json.loads(done.stdout)
    return {pathlib.Path(one.get("filename", one.get("path", ""))).name for one in found["errors"] + found["parse_errors"]}


def corpus(program, folder, name, schema):
    """What is wrong with the schema of a topic."""
    wrong, files, faults, no_json = [], {}, {}, set()
    (folder / name).mkdir(parents=True, exist_ok=True)
    lines = (ROOT / "tests" / "corpus" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    for nth, line in enumerate(lines):
        case = json.loads(line)
        code = case["is"].removeprefix("dlq ") if case["is"].startswith("dlq ") else None
        if case["value"] is None:
            # A tombstone has no value; the schemas' pages say what it means.
            continue
        text = part(case["value"])
        file = f"{nth:03}.json"
        files[file], faults[file] = case["name"], code
        if is_json(text):
            (folder / name / file).write_bytes(text)
        else:
            no_json.add(file)
    valid = [folder / name / file for file in files if file not in no_json]
    found = no_json | refused(program, SCHEMAS / f"{schema}.schema.json", valid)
    for file, what in files.items():
        code = faults[file]
        excused = code in INEXPRESSIBLE or (name, what) in EXCEPTIONS
        if code is None and file in found:
            wrong.append(f"{name}: {what!r} is folded, and the schema refuses it")
        if code is not None and file not in found and not excused:
            wrong.append(f"{name}: {what!r} is refused as {code}, and the schema accepts it")
        if (name, what) in EXCEPTIONS and file in found:
            wrong.append(f"{name}: {what!r} is in EXCEPTIONS, and the schema refuses it")
    bad = sum(code is not None for code in faults.values())
    print(f"    {name}: {len(files) - bad} good records accepted, {len(found)} of {bad} bad ones refused")
    return wrong


def configuration(program, folder):
    """What is wrong with the schema of the configuration."""
    (folder / "config").mkdir(parents=True, exist_ok=True)
    schema = SCHEMAS / "config.schema.json"
    good = sorted({path for pattern in CONFIGS for path in ROOT.glob(pattern) if path.is_file()})
    names = {}
    for nth, path in enumerate(good):
        names[f"good-{nth}.json"] = (str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    for nth, (what, text) in enumerate(BAD_CONFIGS.items()):
        names[f"bad-{nth}.json"] = (what, text)
    for file, (_, text) in names.items():
        (folder / "config" / file).write_text(json.dumps(tomllib.loads(text), default=str), encoding="utf-8")
    found = refused(program, schema, [folder / "config" / file for file in names])
    wrong = []
    for file, (what, _) in names.items():
        if file.startswith("good") == (file in found):
            wrong.append(f"config: {what}: it is {'refused' if file in found else 'accepted'}")
    print(f"    config: {len(good)} files accepted, {len(BAD_CONFIGS)} bad ones refused")
    return wrong


def main():
    program, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    schemas = sorted(SCHEMAS.glob("*.schema.json"))
    done = subprocess.run([program, "--check-metaschema", *map(str, schemas)], capture_output=True, text=True)
    wrong = [] if done.returncode == 0 else [done.stdout + done.stderr]
    for name, schema in CORPORA.items():
        wrong += corpus(program, folder, name, schema)
    wrong += configuration(program, folder)
    for one in wrong:
        print(one, file=sys.stderr)
    sys.exit(bool(wrong))


main()
