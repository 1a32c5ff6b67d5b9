"""Measures Nearshore on a CUDA device: parity with the CPU, published shapes, the transformers library.

Called by scripts/benches/engine --cuda. Needs python3 with torch (CUDA), transformers and safetensors. Models are random
weights of published geometries. Names are item ids of three tokens ("semantic ids"), as long as those in publications.
Random weights say nothing about quality. How far an exact search must go depends on how certain a model is, so the head
is scaled to make the logits' standard deviation SPREAD.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import time

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from engine import Contestant, say  # noqa: E402

SPREAD = 3.0
QWEN3 = {"model_type": "qwen3", "head_dim": 128, "vocab_size": 151936, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
         "max_position_embeddings": 8192, "num_attention_heads": 16, "num_key_value_heads": 8, "num_hidden_layers": 28,
         "tie_word_embeddings": True, "attention_bias": False, "hidden_act": "silu", "use_sliding_window": False,
         "sliding_window": None, "max_window_layers": 28}
SHAPES = {
    "Qwen3-1.7B": QWEN3 | {"hidden_size": 2048, "intermediate_size": 6144},
    "Qwen3-0.6B": QWEN3 | {"hidden_size": 1024, "intermediate_size": 3072},
    "Qwen3-8B": QWEN3 | {"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32,
                         "num_hidden_layers": 36, "max_window_layers": 36},
    "small Qwen3": QWEN3 | {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "vocab_size": 4096},
    "SmolLM2-135M": QWEN3 | {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "head_dim": 64,
                             "num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 30,
                             "vocab_size": 49152, "rope_theta": 1e5, "rms_norm_eps": 1e-5},
}


def tensors(config, dtype):
    """Yields random weights that keep the scale of activations. They are made on the device, which is fast."""
    torch.manual_seed(7)
    hidden, width = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    make = lambda *shape, scale: (torch.randn(*shape, device="cuda") * scale).to(dtype).cpu()
    linear = lambda out, into: make(out, into, scale=into**-0.5)
    ones = lambda many: torch.ones(many, dtype=dtype)
    yield "model.embed_tokens.weight", make(config["vocab_size"], hidden, scale=SPREAD * hidden**-0.5)
    yield "model.norm.weight", ones(hidden)
    for nth in range(config["num_hidden_layers"]):
        name = f"model.layers.{nth}."
        yield name + "input_layernorm.weight", ones(hidden)
        yield name + "post_attention_layernorm.weight", ones(hidden)
        yield name + "self_attn.q_proj.weight", linear(queries, hidden)
        yield name + "self_attn.k_proj.weight", linear(keys, hidden)
        yield name + "self_attn.v_proj.weight", linear(keys, hidden)
        yield name + "self_attn.o_proj.weight", linear(hidden, queries)
        if config["model_type"] == "qwen3":
            yield name + "self_attn.q_norm.weight", ones(width)
            yield name + "self_attn.k_norm.weight", ones(width)
        yield name + "mlp.gate_proj.weight", linear(config["intermediate_size"], hidden)
        yield name + "mlp.up_proj.weight", linear(config["intermediate_size"], hidden)
        yield name + "mlp.down_proj.weight", linear(hidden, config["intermediate_size"])


def model(work, shape, dtype=torch.bfloat16):
    """Writes a Hugging Face folder of a geometry whose token N is the word tN, and returns it."""
    folder = work / shape.replace(" ", "-")
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    config = SHAPES[shape] | {"torch_dtype": str(dtype).split(".")[1], "bos_token_id": 1, "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config))
    words = {"<unk>": 0, "<end>": 1} | {f"t{nth}": nth for nth in range(2, config["vocab_size"])}
    special = lambda nth, word: {"id": nth, "content": word, "single_word": False, "lstrip": False, "rstrip": False,
                                 "normalized": False, "special": True}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None, "decoder": None,
        "added_tokens": [special(0, "<unk>"), special(1, "<end>")], "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    save_file({name: tensor.contiguous() for name, tensor in tensors(config, dtype)}, folder / "model.safetensors",
              metadata={"format": "pt"})
    return folder


def ids(work, many, codes=256):
    """Writes different item ids, each of three tokens out of `codes` per level; returns the file and the ids."""
    chance = random.Random(3)
    found = set()
    while len(found) < many:
        found.add(tuple(2 + level * codes + chance.randrange(codes) for level in range(3)))
    path = work / f"ids-{many}.txt"
    path.write_text("".join(" ".join(f"t{token}" for token in item) + "\n" for item in sorted(found)))
    return path, found


def prompts(many, length, vocabulary, shared=0, seed=5):
    chance = random.Random(seed)
    words = lambda count: [f"t{chance.randrange(1000, vocabulary)}" for _ in range(count)]
    common = words(shared)
    return [" ".join(common + words(length - shared)) for _ in range(many)]


def start_engine(args, folder, precision, device="cuda:0"):
    command = [args.binary.resolve(), "bench", "engine", "--model", folder, "--precision", precision, "--device", device]
    if device != "cpu":
        command += ["--rows", "16384", "--kv-max", "32768"]
    return Contestant(f"nearshore {precision} {device}", command)


def timed(contestant, asked, top, batch, rounds, **also):
    """Returns the answers of each round after one to warm up. `asked(round)` gives new prompts, because the engine may have cached old ones."""
    question = lambda nth: {"prompts": asked(nth), "top": top, "batch": batch} | also
    return [contestant.ask(search=question(nth)) for nth in range(rounds + 1)][1:]


def seconds_of(answers):
    return statistics.median(answer["seconds"] for answer in answers)


def parity(args, shape, many=8):
    """Returns the largest difference of scores, in nats, and how many names only the GPU found."""
    folder = model(args.work, shape, torch.float32)
    names, _ = ids(args.work, 10_000)
    asked = prompts(many, 120, SHAPES[shape]["vocab_size"], shared=40)
    lists = []
    for device, precision in (("cpu", "f32"), ("cuda:0", "f32"), ("cuda:0", "bf16")):
        contestant = start_engine(args, folder, precision, device)
        contestant.catalogue(names)
        lists.append(contestant.ask(search={"prompts": asked, "top": 50, "batch": many, "names": True})["names"])
        contestant.end()
    out = {}
    for name, found in zip(("f32", "bf16"), lists[1:]):
        worst, other = 0.0, 0
        for listed, theirs in zip(found, lists[0]):
            known = dict(map(tuple, theirs))
            other += sum(pu not in known for pu, _ in listed)
            worst = max([worst] + [abs(known[pu] - score) for pu, score in listed if pu in known])
        out[name] = {"worst_nats": worst, "names_only_on_gpu": other, "of": 50 * many}
    return out


def constrained_generate(folder, items, asked, beams, dtype):
    """Returns the seconds per batch of transformers' beam search with an allowed-tokens function."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").cuda().eval()
    trie = {}
    for item in items:
        node = trie
        for token in item:
            node = node.setdefault(token, {})
    tokens = torch.tensor([[int(word[1:]) for word in prompt.split()] for prompt in asked], device="cuda")
    length = tokens.shape[1]

    def allowed(_, sequence):
        node = trie
        for token in sequence[length:].tolist():
            node = node.get(token)
            if node is None:
                return [1]
        return list(node) or [1]

    def run():
        torch.cuda.synchronize()
        start = time.perf_counter()
        theirs.generate(tokens, attention_mask=torch.ones_like(tokens), num_beams=beams, num_return_sequences=beams,
                        max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=1, eos_token_id=None,
                        prefix_allowed_tokens_fn=allowed)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    with torch.no_grad():
        run()
        seconds = [run() for _ in range(2)]
    del theirs
    torch.cuda.empty_cache()
    return seconds


class Table:
    def __init__(self):
        self.rows = []

    def add(self, row, figure, value, note=""):
        self.rows.append({"row": row, "figure": figure, "value": value, "note": note})
        print(f"| {row} | {figure} | {value} | {note} |", flush=True)


def effort(cost):
    users = cost["users"]
    return f"{cost['forwarded'] / users:.0f} trie tokens, {cost['waves'] / users:.1f} passes a user"


def launches(table, contestant, row, what):
    """Measures the host's time for one pass, with a prompt so short that the device has almost nothing to compute."""
    asked = {"prefill": [[5, 6]]}
    seconds = [contestant.ask(**asked)["seconds"] for _ in range(25)][5:]
    table.add(row, f"{what}: launches of one pass", f"{1000 * statistics.median(seconds):.2f} ms")


def parts(table, contestant, row, asked, what, top_batch, rounds=3):
    """Measures where a batch's time goes. The host waits after each pass, so that its time and the device's are separate."""
    top, batch = top_batch
    answers = timed(contestant, asked, top, batch, rounds, waits=True)
    middle = sorted(answers, key=lambda answer: answer["seconds"])[rounds // 2]
    spent = middle["spent"] | {"rest": middle["seconds"] - sum(middle["spent"].values())}
    table.add(row, f"{what}, with a wait after each pass", f"{1000 * middle['seconds']:.1f} ms",
              "; ".join(f"{name.replace('_', ' ')} {1000 * seconds:.1f}" for name, seconds in spent.items()))


def products(table, row, shape, passes):
    """Measures a lower bound: the same matrix products alone, in torch. Passes are (rows, repetitions)."""
    config = SHAPES[shape]
    hidden, width, between = config["hidden_size"], config["head_dim"], config["intermediate_size"]
    queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    sides = [(queries + 2 * keys, hidden), (hidden, queries), (2 * between, hidden), (hidden, between)]
    make = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
    layers = [[make(*side) for side in sides] for _ in range(config["num_hidden_layers"])]
    inputs = {rows: [make(rows, side[1]) for side in sides] for rows, _ in passes}

    def run():
        torch.cuda.synchronize()
        start = time.perf_counter()
        for rows, often in passes:
            for _ in range(often):
                for layer in layers:
                    for weight, x in zip(layer, inputs[rows]):
                        x @ weight.T
        torch.cuda.synchronize()
        return time.perf_counter() - start

    run()
    seconds = statistics.median(run() for _ in range(5))
    flops = sum(2 * rows * often * sum(out * into for out, into in sides) * len(layers) for rows, often in passes)
    shown = ", ".join(f"{often} of {rows} rows" for rows, often in passes)
    table.add(row, "its matrix products alone, in torch", f"{1000 * seconds:.1f} ms", f"passes: {shown}; {flops / seconds / 1e12:.0f} TFLOP/s")
    del layers, inputs
    torch.cuda.empty_cache()


def latency(table, contestant, row, asked, top_batch, rounds):
    """Measures the latency of a batch and where it goes; returns the rows and repetitions of its passes."""
    top, batch = top_batch
    fresh = lambda offset: lambda nth: asked(batch, offset + nth)
    answers = timed(contestant, fresh(0), top, batch, rounds)
    seconds, cost = [answer["seconds"] for answer in answers], answers[-1]
    assert cost["shared_tokens"] < 8 * cost["users"], "every prompt is new"
    what = f"top {top}, batch {batch}"
    table.add(row, what, f"{1000 * seconds_of(answers):.1f} ms",
              f"{1000 * min(seconds):.1f} to {1000 * max(seconds):.1f}; {effort(cost)}")
    parts(table, contestant, row, fresh(1000), what, top_batch)
    # One pass has the prompts. The others have the waves, with about the same number of rows each.
    waves = max(1, round(cost["waves"] / batch) - 1)
    return [(cost["prompt_tokens"], 1), (round(cost["forwarded"] / waves), waves)]


def large(args, table):
    shape = "Qwen3-1.7B"
    folder, (names, _) = model(args.work, shape), ids(args.work, 100_000)
    contestant = start_engine(args, folder, "bf16")
    contestant.catalogue(names)
    asked = lambda batch, seed: prompts(batch, 1000, SHAPES[shape]["vocab_size"], seed=seed)
    passes = [latency(table, contestant, "6", asked, (256, batch), 5) for batch in (1, 8)]
    contestant.end()
    for same in passes:
        products(table, "6", shape, same)
    args.keep or shutil.rmtree(folder)


def middle(args, table):
    shape = "Qwen3-0.6B"
    folder, (names, items) = model(args.work, shape), ids(args.work, 100_000)
    contestant = start_engine(args, folder, "bf16")
    contestant.catalogue(names)
    vocabulary = SHAPES[shape]["vocab_size"]
    launches(table, contestant, "7", shape)
    best = 0.0
    for label, shared in (("nothing shared", 0), ("150 of 303 tokens shared", 150)):
        asked = prompts(128, 303, vocabulary, shared)
        for batch in (16, 32, 128):
            answers = timed(contestant, lambda _: asked, 50, batch, 4)
            rate = 128 / seconds_of(answers)
            best = max(best, 0.0 if shared or batch != 32 else rate)
            table.add("7", f"top 50, {label}, batches of {batch}", f"{rate:.0f} users/s", effort(answers[-1]))
        parts(table, contestant, "7", lambda _: asked, f"top 50, {label}, batch 128", (50, 128))
    asked = lambda batch, seed: prompts(batch, 303, vocabulary, seed=seed)
    latency(table, contestant, "7", asked, (5000, 1), 3)
    contestant.end()
    if args.peer:
        many = 8
        seconds = statistics.median(constrained_generate(folder, items, asked(many, 0), 50, torch.bfloat16))
        table.add("8", f"transformers, 50 beams, batch {many}", f"{many / seconds:.2f} users/s", f"{seconds:.2f} s a batch")
        table.add("8", "users/s of row 7 (nothing shared, batches of 32) to transformers", f"{best * seconds / many:.0f} x")
    args.keep or shutil.rmtree(folder)


def little(args, table):
    shape = "SmolLM2-135M"
    folder, (names, _) = args.model or model(args.work, shape, torch.float32), ids(args.work, 10_000)
    vocabulary = SHAPES[shape]["vocab_size"]
    asked = prompts(256, 250, vocabulary, 150)
    if args.model:
        lines = [json.loads(line) for line in args.prompts.open()]
        names, asked = args.names, [{"user": line["prompt"], "assistant": line.get("assistant", "")} for line in lines] * 8
    for precision in ("bf16", "f32"):
        contestant = start_engine(args, folder, precision)
        contestant.catalogue(names)
        launches(table, contestant, "135M", precision)
        for batch in (16, 128):
            answers = timed(contestant, lambda _: asked, 50, batch, 3)
            table.add("SmolLM2-135M" if args.model else "135M, random", f"{precision}, top 50 of 10,000, batches of {batch}",
                      f"{len(asked) / seconds_of(answers):.0f} users/s", effort(answers[-1]))
        contestant.end()


def widest(args, table):
    shape = "Qwen3-8B"
    folder, (names, _) = model(args.work, shape), ids(args.work, 100_000)
    contestant = start_engine(args, folder, "bf16")
    contestant.catalogue(names)
    asked = lambda batch, seed: prompts(batch, 128, SHAPES[shape]["vocab_size"], seed=seed)
    passes = latency(table, contestant, "8", asked, (30, 1), 5)
    contestant.end()
    products(table, "8", shape, passes)
    args.keep or shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench engine --cuda")
    parser.add_argument("--binary", required=True, type=pathlib.Path)
    parser.add_argument("--work", required=True, type=pathlib.Path)
    parser.add_argument("--only", default="parity,135M,7,6,8B")
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--names", type=pathlib.Path)
    parser.add_argument("--prompts", type=pathlib.Path)
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    table = Table()
    driver = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
                            capture_output=True, text=True).stdout.strip()
    print(f"{driver}; {os.cpu_count()} cores\n\n| row | figure | value | details |\n| --- | --- | --- | --- |", flush=True)
    parts = {"135M": little, "7": middle, "6": large, "8B": widest}
    for part in args.only.split(","):
        start = time.perf_counter()
        if part == "parity":
            for shape in ("small Qwen3", "SmolLM2-135M"):
                for precision, found in parity(args, shape).items():
                    table.add("parity", f"{shape}, {precision}, against f32 on the CPU", f"{found['worst_nats']:.6f} nats",
                              f"{found['names_only_on_gpu']} of {found['of']} names only on the GPU")
        else:
            parts[part](args, table)
        say(f"{part}: {time.perf_counter() - start:.0f} s")
    if args.json:
        print(json.dumps({"device": driver, "rows": table.rows}, indent=1))


if __name__ == "__main__":
    main()
