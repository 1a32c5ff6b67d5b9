"""Converts a GGUF file of the llama family to a CTranslate2 model, so that both engines have the same weights.

    python scripts/benches/ct2_model.py MODEL.gguf FOLDER

Tensors are dequantised by the `gguf` package and written in f32; CTranslate2 quantises them when it loads. The rotary pairs
of a GGUF llama are interleaved, so `rotary_interleave` is set.
"""

import pathlib
import sys

import ctranslate2
import gguf
import numpy
from ctranslate2.specs import TransformerDecoderModelSpec
from ctranslate2.specs.common_spec import Activation


def tensors(reader):
    for tensor in reader.tensors:
        yield tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)


def convert(path, folder):
    reader = gguf.GGUFReader(path)
    field = lambda key: reader.fields[key].contents()
    if field("general.architecture") != "llama":
        sys.exit(f"{path} is not of the llama family, the only one that can be converted here")
    weights = dict(tensors(reader))
    heads, keys = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    spec = TransformerDecoderModelSpec.from_config(
        field("llama.block_count"),
        heads,
        pre_norm=True,
        activation=Activation.SWISH,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=True,
        rotary_base=field("llama.rope.freq_base"),
        num_heads_kv=None if keys == heads else keys,
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = weights["token_embd.weight"]
    decoder.layer_norm.gamma = weights["output_norm.weight"]
    decoder.projection.weight = weights.get("output.weight", weights["token_embd.weight"])
    for nth, layer in enumerate(decoder.layer):
        part = lambda name: weights[f"blk.{nth}.{name}.weight"]
        layer.self_attention.layer_norm.gamma = part("attn_norm")
        layer.self_attention.linear[0].weight = numpy.concatenate([part("attn_q"), part("attn_k"), part("attn_v")])
        layer.self_attention.linear[1].weight = part("attn_output")
        layer.ffn.layer_norm.gamma = part("ffn_norm")
        layer.ffn.linear_0.weight = part("ffn_gate")
        layer.ffn.linear_0_noact.weight = part("ffn_up")
        layer.ffn.linear_1.weight = part("ffn_down")
    tokens = field("tokenizer.ggml.tokens")
    assert len(set(tokens)) == len(tokens), "a token is in the vocabulary twice"
    spec.register_vocabulary(tokens)
    spec.config.bos_token = tokens[field("tokenizer.ggml.bos_token_id")]
    spec.config.eos_token = tokens[field("tokenizer.ggml.eos_token_id")]
    spec.config.unk_token = tokens[0]
    spec.config.layer_norm_epsilon = field("llama.attention.layer_norm_rms_epsilon")
    spec.validate()
    spec.optimize(quantization=None)
    folder = pathlib.Path(folder)
    part = folder.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    spec.save(str(part))
    part.rename(folder)
    return len(tokens)


if __name__ == "__main__":
    print(f"{convert(*sys.argv[1:])} tokens, CTranslate2 {ctranslate2.__version__}", file=sys.stderr)
