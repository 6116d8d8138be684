#!/usr/bin/env python3
"""Writes protocol/vectors/sepal/llama_blocks.json: what transformers' Llama block makes of random weights and inputs,
for every kind of rope scaling, with and without biases, whole and token by token.

    pip install torch 'numpy<2' transformers==4.43.1
    scripts/make-block-vectors.py
"""

import json
import pathlib

import torch
import transformers
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

SIZES = dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1, vocab_size=8)
TOKENS = 24
FACTORS = dict(long_factor=[1.0, 2.0, 3.5, 6.0], short_factor=[1.0, 1.1, 1.3, 1.5])

CASES = {
    "default": dict(),
    "large_theta": dict(rope_theta=500000.0),
    "biases": dict(attention_bias=True, mlp_bias=True),
    "linear": dict(rope_scaling=dict(rope_type="linear", factor=2.5)),
    "dynamic_beyond_training": dict(max_position_embeddings=16, rope_scaling=dict(rope_type="dynamic", factor=2.0)),
    "dynamic_within_training": dict(max_position_embeddings=64, rope_scaling=dict(rope_type="dynamic", factor=2.0)),
    "llama3": dict(
        rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
    ),
    "yarn": dict(rope_scaling=dict(rope_type="yarn", factor=4.0)),
    "yarn_with_options": dict(rope_scaling=dict(rope_type="yarn", factor=4.0, attention_factor=1.3, beta_fast=16.0, beta_slow=2.0)),
    "longrope": dict(rope_scaling=dict(rope_type="longrope", factor=4.0, **FACTORS)),
    "longrope_of_factor_1": dict(rope_scaling=dict(rope_type="longrope", factor=1.0, attention_factor=1.2, **FACTORS)),
    "longrope_from_original_length": dict(original_max_position_embeddings=32, rope_scaling=dict(rope_type="longrope", **FACTORS)),
}  # fmt: skip


def tensor(x):
    return {"shape": list(x.shape), "dtype": "float32", "hex_le": x.detach().contiguous().numpy().astype("<f4").tobytes().hex()}


def layer_of(options, weights):
    config = LlamaConfig(**SIZES, **{"max_position_embeddings": 128, **options, "rope_scaling": None})
    config.rope_scaling = options.get("rope_scaling")  # later, because the check of the constructor refuses good longrope options
    config._attn_implementation = "eager"
    layer = LlamaDecoderLayer(config, 0).eval()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name not in weights:
                scale = 0.5 if parameter.dim() == 1 else 1.5 / parameter.shape[1] ** 0.5
                weights[name] = torch.randn(parameter.shape) * scale + ("layernorm" in name)
            parameter.copy_(weights[name])
    return layer


def run(layer, x, start, cache):
    tokens = x.shape[1]
    mask = torch.full((tokens, start + tokens), torch.finfo(torch.float32).min).triu(start + 1)[None, None]
    positions = torch.arange(start, start + tokens)
    out = layer(x, attention_mask=mask, position_ids=positions[None], past_key_value=cache, use_cache=True, cache_position=positions)
    return out[0]


@torch.no_grad()
def main():
    torch.manual_seed(5)
    torch.set_num_threads(1)
    weights, cases = {}, []
    x = torch.randn(1, TOKENS, SIZES["hidden_size"])
    for name, options in CASES.items():
        whole = run(layer_of(options, weights), x, 0, DynamicCache())
        layer, cache = layer_of(options, weights), DynamicCache()
        one_by_one = [run(layer, x[:, i : i + 1], i, cache) for i in range(TOKENS)]
        cases.append({"name": name, "config": options, "output": tensor(whole), "output_one_by_one": tensor(torch.cat(one_by_one, 1))})
    data = {
        "note": f"LlamaDecoderLayer of transformers {transformers.__version__}, eager attention, float32; options of each case over `sizes`",
        "sizes": {"model_type": "llama", "max_position_embeddings": 128, "rms_norm_eps": 1e-6, **SIZES},
        "weights": {name: tensor(weight) for name, weight in weights.items()},
        "input": tensor(x),
        "cases": cases,
    }
    path = pathlib.Path(__file__).parent.parent / "protocol/vectors/sepal/llama_blocks.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
