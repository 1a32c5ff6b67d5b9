"""Writes a model of random weights in the geometry of Qwen2.5-1.5B, with names and prompts. Called by scripts/benches/memory.

    python scripts/benches/random_model.py FOLDER

Token N is the word tN. Weights are bf16, tensor by tensor, so that little memory is needed.
"""

import json
import pathlib
import random
import shutil
import struct
import sys

import numpy

HIDDEN, FEED, HEADS, KEYS, WIDTH, LAYERS, VOCABULARY = 1536, 8960, 12, 2, 128, 28, 151936
CONFIG = {
    "model_type": "qwen2", "hidden_size": HIDDEN, "intermediate_size": FEED, "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY, "rope_theta": 1e6,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "tie_word_embeddings": True, "hidden_act": "silu",
    "use_sliding_window": False, "sliding_window": None, "max_window_layers": LAYERS, "torch_dtype": "bfloat16",
    "bos_token_id": 1, "eos_token_id": 1,
}


def shapes():
    """Name, shape and standard deviation of each tensor; 0 is a norm of ones."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN), 3 * HIDDEN**-0.5
    yield "model.norm.weight", (HIDDEN,), 0
    for nth in range(LAYERS):
        name = f"model.layers.{nth}."
        yield name + "input_layernorm.weight", (HIDDEN,), 0
        yield name + "post_attention_layernorm.weight", (HIDDEN,), 0
        for part, out, into in (("q", HEADS * WIDTH, HIDDEN), ("k", KEYS * WIDTH, HIDDEN), ("v", KEYS * WIDTH, HIDDEN)):
            yield f"{name}self_attn.{part}_proj.weight", (out, into), into**-0.5
            yield f"{name}self_attn.{part}_proj.bias", (out,), 0.1
        yield name + "self_attn.o_proj.weight", (HIDDEN, HEADS * WIDTH), (HEADS * WIDTH) ** -0.5
        yield name + "mlp.gate_proj.weight", (FEED, HIDDEN), HIDDEN**-0.5
        yield name + "mlp.up_proj.weight", (FEED, HIDDEN), HIDDEN**-0.5
        yield name + "mlp.down_proj.weight", (HIDDEN, FEED), FEED**-0.5


def bf16(values):
    return (values.astype(numpy.float32).view(numpy.uint32) >> 16).astype("<u2").tobytes()


def write_weights(path):
    header, at = {}, 0
    for name, shape, _ in shapes():
        size = 2 * int(numpy.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    chance = numpy.random.default_rng(7)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for _, shape, scale in shapes():
            if scale == 0:
                file.write(bf16(numpy.ones(shape)))
                continue
            for row in range(0, shape[0], 4096):
                part = (min(4096, shape[0] - row), *shape[1:])
                file.write(bf16(chance.standard_normal(part, dtype=numpy.float32) * numpy.float32(scale)))


def main(folder):
    folder = pathlib.Path(folder)
    if folder.exists():
        return
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    (part / "config.json").write_text(json.dumps(CONFIG))
    words = {"<unk>": 0, "<end>": 1} | {f"t{nth}": nth for nth in range(2, VOCABULARY)}
    special = lambda nth, word: {"id": nth, "content": word, "single_word": False, "lstrip": False, "rstrip": False,
                                 "normalized": False, "special": True}
    (part / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None, "decoder": None,
        "added_tokens": [special(0, "<unk>"), special(1, "<end>")], "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}}))
    (part / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    chance = random.Random(3)
    line = lambda many: " ".join(f"t{chance.randrange(2, VOCABULARY)}" for _ in range(many))
    (part / "names.txt").write_text("".join(f"{name}\n" for name in sorted({line(3) for _ in range(1000)})))
    (part / "prompts.txt").write_text("".join(f"{line(120)}\n" for _ in range(8)))
    print("writing 3.1 GB of random weights", file=sys.stderr)
    write_weights(part / "model.safetensors")
    part.rename(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
