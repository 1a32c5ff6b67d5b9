"""Measures Nearshore's engine beside CTranslate2: same weights, same prompts, same run. Called by scripts/benches/engine."""

import argparse
import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench engine")
    for name in ("binary", "model", "peer", "data", "work"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    parser.add_argument("--prompts", type=pathlib.Path)
    parser.add_argument("--names", type=pathlib.Path, action="append", default=[])
    parser.add_argument("--precisions", default="f32,bf16,int8")
    parser.add_argument("--runs", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--only", default="")
    parser.add_argument("--one-group", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", type=pathlib.Path)
    parser.add_argument("--add", type=pathlib.Path)
    return parser.parse_args()


def say(text):
    print(f"engine: {text}", file=sys.stderr, flush=True)


# --- prompts and names -----------------------------------------------------------------------------------------


def shop(products):
    """Returns the product types of a real shop, which are its names."""
    return sorted({json.loads(line)["pu"] for line in products.open()})


def five_words(products, many):
    """Returns `many` different names of five words; words are drawn as often as product types have them."""
    words = [word for name in shop(products) for word in re.findall("[a-z]{3,}", name.lower())]
    chance = random.Random(7)
    names = {}
    while len(names) < many:
        name = " ".join(chance.choices(words, k=5))
        if len(set(name.split())) == 5:
            names[name] = True
    return list(names)


def pack_sizes(products, many):
    """Returns product types, then types with pack sizes: siblings to which a model gives nearly the same score."""
    names = shop(products)
    sold = set()
    for line in products.open():
        product = json.loads(line)
        if product["package_size"]:
            sold.add(f"{product['pu']} {product['package_size']}")
    more = sorted(sold - set(names))
    random.Random(7).shuffle(more)
    return names + more[: many - len(names)]


TEMPLATE = """A shop wants to know what a household will need next. Below stands what is known of the household and what \
it bought lately, the newest last. Think of what is used up and bought again every week, of what is used together, and of \
what goes well with the things in the basket; then of the season, and of who lives in the household. Answer with the name \
of one product from the shop's list, exactly as the shop writes it, and with nothing else. What is likely to be needed \
within a week is better than what was bought yesterday.

Household: age {age}, income {income}, {persons} persons, {kids}.
Bought lately: {bought}."""
ASSISTANT = "The household will next buy:"


def households(data, many, tokens):
    """Returns prompts of about 250 tokens, about 150 of them shared: real households with random purchases."""
    lines = [json.loads(line) for line in (data / "households.jsonl").open()]
    types = shop(data / "products.jsonl")
    chance = random.Random(11)

    def prompt(home, bought):
        user = TEMPLATE.format(
            age=home["age"],
            income=home["income"],
            persons=home["household_size"],
            kids=f"{home['kids_count']} kids",
            bought=", ".join(bought),
        )
        return {"user": user, "assistant": ASSISTANT}

    return [
        min((prompt(home, bought[:many]) for many in range(4, 10)), key=lambda prompt: abs(len(tokens(prompt)) - 250))
        for home in chance.sample(lines, many)
        for bought in [chance.sample(types, 9)]
    ]


def written(work, name, names):
    path = work / f"names-{name.replace(' ', '-')}.txt"
    path.write_text("".join(f"{name}\n" for name in names))
    return path


# --- contestants -----------------------------------------------------------------------------------------------


class Contestant:
    """A process that answers JSON lines. Its weights stay loaded between the runs."""

    def __init__(self, name, command):
        self.name, self.names = name, None
        quiet = None if os.environ.get("NEARSHORE_BENCH_STDERR") else subprocess.DEVNULL
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True
        )
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{name} did not start")
        self.about = json.loads(line)

    def ask(self, **question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended without an answer; NEARSHORE_BENCH_STDERR=1 shows its messages")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def catalogue(self, path):
        if self.names != path:
            answer = self.ask(names=str(path))
            self.names = path
            return answer["seconds"]
        return None

    def peak(self):
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
        return 0.0

    def jiffies(self):
        fields = open(f"/proc/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def contestants(args):
    engines, peers = [], []
    for precision in args.precisions.split(","):
        command = [args.binary, "bench", "engine", "--model", args.model, "--threads", args.threads]
        command += ["--precision", precision]
        try:
            engines.append(Contestant(f"nearshore {precision}", command))
            if args.one_group:
                engines.append(Contestant(f"nearshore {precision} in one group", command + ["--groups", 1]))
        except RuntimeError as error:
            say(f"{error}: left out")
    for compute, name in (("int8", "int8"), ("float32", "f32")):
        # Measured: one replica per core is 1.6 to 1.9 times as fast as one replica with all cores.
        for replicas, threads in [(args.threads, 1)]:
            command = [sys.executable, HERE / "ct2_peer.py", args.peer, compute, replicas, threads]
            peers.append(Contestant(f"CTranslate2 {name} {replicas}x{threads}", command))
    return engines, peers


# --- the runs --------------------------------------------------------------------------------------------------


class Machine:
    """Measures how busy the machine is with processes other than the contestants."""

    def __init__(self, contestants):
        self.contestants, self.load = contestants, os.getloadavg()[0]
        self.start = self.busy()

    def busy(self):
        user, nice, system, idle = map(int, open("/proc/stat").readline().split()[1:5])
        return user + nice + system, user + nice + system + idle, sum(c.jiffies() for c in self.contestants)

    def report(self):
        busy, total, own = (now - then for now, then in zip(self.busy(), self.start))
        model = next((l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "?")
        return {
            "cpu": model,
            "cores": os.cpu_count(),
            "load_before": round(self.load, 2),
            "load_after": round(os.getloadavg()[0], 2),
            "busy_with_others": round(max(0, busy - own) / max(1, total), 3),
        }


class Row:
    def __init__(self, name, unit, asks):
        self.name, self.unit, self.asks = name, unit, asks
        self.rates = {name: [] for name, _ in asks}
        self.last = {}

    def run(self, turn):
        turn %= len(self.asks)
        for name, ask in self.asks[turn:] + self.asks[:turn]:
            many, seconds, answer = ask()
            self.rates[name].append(many / seconds)
            self.last[name] = answer

    def report(self):
        found = {}
        for name, rates in self.rates.items():
            if rates:
                found[name] = {
                    "median": statistics.median(rates), "min": min(rates), "max": max(rates), "runs": len(rates)
                }
        return {"row": self.name, "unit": self.unit, "rates": found}


def ratio(rates, engine, peer):
    """Returns the median of the ratios per round, because a disturbance in a round affects both contestants."""
    return statistics.median(a / b for a, b in zip(rates[engine], rates[peer]))


def prefill(contestant, prompts):
    def ask():
        answer = contestant.ask(prefill=prompts)
        return answer["tokens"], answer["seconds"], answer

    return ask


def search(contestant, names, prompts, top_batch):
    def ask():
        contestant.catalogue(names)
        question = {"prompts": prompts, "top": top_batch[0], "batch": top_batch[1], "names": True}
        answer = contestant.ask(search=question)
        return answer["users"], answer["seconds"], answer

    return ask


def beam(contestant, tokens, width):
    shared = min(common(tokens[0], other) for other in tokens[1:])

    def ask():
        answer = contestant.ask(beam={"prompts": tokens, "shared": shared, "width": width, "tokens": 6})
        return answer["users"], answer["seconds"], answer

    return ask


def common(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)) - 1)


def rows(args, engines, peers, files):
    if args.prompts:
        lines = [json.loads(line) for line in args.prompts.open()]
        prompts = [{"user": line["prompt"], "assistant": line.get("assistant", "")} for line in lines]
    else:
        prompts = households(args.data, 32, lambda prompt: engines[0].ask(tokens=prompt)["tokens"])
    if args.quick:
        prompts = prompts[: args.batch]
    tokens = [engines[0].ask(tokens=prompt)["tokens"] for prompt in prompts]
    chance = random.Random(1)
    # The first tokens differ, so no prefix is shared.
    block = lambda rows, width: [[1000 + row] + chance.choices(range(1000, 40000), k=width - 1) for row in range(rows)]
    made = []
    for many, width in ((16, 100), (4, 256)):
        work = block(many, width)
        made.append(Row(f"prefill {many}x{width}", "tok/s", [(c.name, prefill(c, work)) for c in engines + peers]))
    one = [p for p in peers if p.name.endswith("x1")]
    few, fewer = (4, 2) if args.quick else (16, 4)
    for name, path in files.items():
        top = 10 if name.endswith("products") else 50
        asks = [(c.name, search(c, path, prompts, (top, args.batch))) for c in engines]
        if name == "10000":
            asks += [(f"{c.name} beam 10", beam(c, tokens[:few], 10)) for c in one]
            asks += [(f"{c.name} beam 32", beam(c, tokens[:fewer], 32)) for c in one]
        made.append(Row(f"top-{top} of {name}", "users/s", asks))
    keep = [word for word in args.only.split(",") if word]
    return [row for row in made if not keep or any(word in row.name for word in keep)], tokens


def agreement(engines, peers, tokens):
    """Returns the largest difference of log-probabilities to the f32 peer, over the 100 tokens that the peer finds likeliest."""
    peer = next((p for p in peers if " f32 " in p.name), None)
    if not peer:
        return {}
    vocabulary = list(range(40000))
    found = {}
    for contestant in engines:
        worst = 0.0
        for prompt in tokens[:3]:
            a, b = (c.ask(logits={"after": prompt, "of": vocabulary})["logits"] for c in (contestant, peer))
            top = sorted(vocabulary, key=b.__getitem__)[-100:]
            # Relative to the likeliest token, because a difference that all tokens share changes no probability.
            worst = max(worst, max(abs(a[i] - a[top[-1]] - b[i] + b[top[-1]]) for i in top))
        found[contestant.name] = worst
    return found


def overlap(row, reference):
    """Returns the share of the first 20 names that the reference also has, and how often the first name is the same."""
    found = {}
    exact = row.last.get(reference, {}).get("names")
    for name, answer in row.last.items():
        if exact and "names" in answer and name != reference:
            at = min(20, *(len(names) for names in exact))
            pairs = [([i for i, _ in a[:at]], [i for i, _ in b[:at]]) for a, b in zip(answer["names"], exact)]
            found[name] = {
                f"overlap_at_{at}": statistics.mean(len(set(a) & set(b)) / at for a, b in pairs),
                "same_first": statistics.mean(a[0] == b[0] for a, b in pairs),
            }
    return found


# --- report ----------------------------------------------------------------------------------------------------


def effort(answer):
    users = answer["users"]
    return {
        "forwarded_per_user": answer["forwarded"] / users,
        "forwarded_most": max(answer["forwarded_each"]),
        "waves_per_user": answer["waves"] / users,
        "prompt_tokens": answer["prompt_tokens"] / users,
        "shared_tokens": answer["shared_tokens"] / users,
    }


def report(made, everyone, machine, extra):
    engines = [c.name for c in everyone if c.name.startswith("nearshore")]
    out = {"machine": machine, **extra, "contestants": [], "rows": []}
    for contestant in everyone:
        out["contestants"].append(
            {"name": contestant.name, "load_seconds": contestant.about["seconds"], "peak_mib": contestant.peak()}
        )
    for row in made:
        found = row.report()
        others = [name for name in row.rates if name not in engines]
        found["ratios"] = {
            f"{a} : {b}": ratio(row.rates, a, b) for a in engines for b in others if row.rates.get(a) and row.rates[b]
        }
        found["effort"] = {name: effort(a) for name, a in row.last.items() if "forwarded" in a}
        found["lists"] = overlap(row, "nearshore f32")
        out["rows"].append(found)
    return out


def best(row, word):
    """Returns the fastest configuration of the peer of one kind."""
    kind = {n: r["median"] for n, r in row["rates"].items() if n.startswith(f"CTranslate2 {word}")}
    return max(kind, key=kind.get) if kind else None


def markdown(out):
    machine = out["machine"]
    yield f"{machine['cpu']}, {machine['cores']} cores, {out['threads']} threads; {out['when']}, load "
    yield f"{machine['load_before']} to {machine['load_after']}, {machine['busy_with_others']:.0%} of the machine busy "
    yield f"with others. Median of {out['runs']} interleaved runs; in brackets min to max; ratios are medians over rounds.\n\n"
    yield "| figure | engine | rate | to CTranslate2 int8 | to CTranslate2 f32 |\n| --- | --- | --- | --- | --- |\n"
    for row in out["rows"]:
        names = [name for name in row["rates"] if name.startswith("nearshore")]
        kinds = [("int8", "f32")]
        if any("beam" in name for name in row["rates"]):
            beams = [f" beam {width}" for width in (10, 32)]
            kinds = [tuple(f"{word} {n.split()[2]}{b}" for word in ("int8", "f32")) for b in beams for n in [
                next(n for n in row["rates"] if "beam" in n)]]
        for name in names:
            cells = []
            for column in (0, 1):
                peers = [best(row, kind[column]) for kind in kinds]
                cells.append("; ".join(
                    f"{row['ratios'][f'{name} : {p}']:.2f}" + (f" (beam {p.split()[-1]})" if "beam" in p else "")
                    for p in peers if p and f"{name} : {p}" in row["ratios"]
                ))
            yield f"| {row['row']} | {name} | {rate(row, name)} | {cells[0]} | {cells[1]} |\n"
        for name in row["rates"]:
            if name not in names:
                yield f"| {row['row']} | {name} | {rate(row, name)} | | |\n"
    yield "\n| search | engine | trie tokens forwarded per user (most) | passes | prompt tokens (shared) |"
    yield " overlap@20 with f32 | same first |\n| --- | --- | --- | --- | --- | --- | --- |\n"
    for row in out["rows"]:
        for name, cost in row["effort"].items():
            lists = row["lists"].get(name, {})
            over = next((f"{v:.3f}" for k, v in lists.items() if k.startswith("overlap")), "")
            first = f"{lists['same_first']:.2f}" if lists else ""
            yield f"| {row['row']} | {name} | {cost['forwarded_per_user']:.0f} ({cost['forwarded_most']}) "
            yield f"| {cost['waves_per_user']:.1f} | {cost['prompt_tokens']:.0f} ({cost['shared_tokens']:.0f}) "
            yield f"| {over} | {first} |\n"
    yield "\n| engine | loads in | peak memory | largest Δ log-probability to CTranslate2 f32, 100 likeliest tokens |\n"
    yield "| --- | --- | --- | --- |\n"
    for c in out["contestants"]:
        delta = out["agreement"].get(c["name"])
        yield f"| {c['name']} | {c['load_seconds']:.2f} s | {c['peak_mib']:.0f} MiB | {'' if delta is None else f'{delta:.5f}'} |\n"


def rate(row, name):
    found = row["rates"][name]
    digits = 0 if found["median"] >= 100 else 2
    return "{:.{d}f} {} ({:.{d}f} to {:.{d}f})".format(
        found["median"], row["unit"], found["min"], found["max"], d=digits
    )


BEGIN, END = "<!-- scripts/bench engine --write -->", "<!-- end -->"


def refresh(page, table):
    text = page.read_text()
    if BEGIN not in text or END not in text:
        sys.exit(f"engine: {page} has no lines {BEGIN} and {END}")
    before, rest = text.split(BEGIN, 1)
    page.write_text(f"{before}{BEGIN}\n{table}{END}{rest.split(END, 1)[1]}")


def main():
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    runs = args.runs or (2 if args.quick else 5)
    files = {path.stem: path for path in args.names}
    if not files:
        products = args.data / "products.jsonl"
        made = {f"{len(shop(products))} products": shop(products), "10000": five_words(products, 10_000)}
        if not args.quick:
            made["100000"] = five_words(products, 100_000)
            made["10000 with pack sizes"] = pack_sizes(products, 10_000)
        files = {name: written(args.work, name, names) for name, names in made.items()}
    engines, peers = contestants(args)
    if not engines:
        sys.exit("engine: no precision of --precisions could be started; NEARSHORE_BENCH_STDERR=1 shows why")
    everyone = engines + peers
    for contestant in engines:
        contestant.catalogue(next(iter(files.values())))
    made, tokens = rows(args, engines, peers, files)
    agree = agreement(engines, peers, tokens)
    worst = agree.get("nearshore f32", 0.0)
    if worst > 0.01:
        sys.exit(f"engine: f32 and the f32 peer differ by {worst:.3f} nats, at most 0.01: they do not compute the same, so rates cannot be compared")
    say(f"{len(everyone)} contestants, {len(made)} rows, {runs} rounds; one round to warm up")
    large = [row for row in made if row.name.endswith(("of 100000", "pack sizes"))]
    small = [row for row in made if row not in large]
    for row in small:
        row.run(0)
        row.rates = {name: [] for name in row.rates}
    before = json.loads(args.add.read_text()) if args.add and args.add.exists() else {}
    for row in made:
        for name, rates in before.get(row.name, {}).items():
            if name in row.rates:
                row.rates[name] = rates
    machine = Machine(everyone)
    for turn in range(runs):
        for row in small:
            start = time.perf_counter()
            row.run(turn)
            say(f"round {turn + 1}/{runs}: {row.name}, {time.perf_counter() - start:.1f} s")
    # Large catalogues run once: tokenising 100,000 names in every round would take longer than the search.
    for row in large:
        row.run(0)
        say(row.name)
    if args.add:
        args.add.write_text(json.dumps(before | {row.name: row.rates for row in made}))
    extra = {
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "threads": args.threads,
        "runs": max(len(rates) for row in small or made for rates in row.rates.values()),
        "quick": args.quick,
        "peer": peers[0].about["ready"],
        "model": engines[0].about["ready"],
        "agreement": agree,
    }
    out = report(made, everyone, machine.report(), extra)
    for contestant in everyone:
        contestant.end()
    table = "".join(markdown(out))
    if args.write:
        refresh(args.write, table)
    print(json.dumps(out, indent=1) if args.json else table, end="\n" if args.json else "")


if __name__ == "__main__":
    main()
