"""Checkpoints of random weights in the shapes of published models, for benchmarks: a few blocks, a small vocabulary.

Usage: python bench_shapes.py FOLDER SHAPE BLOCKS {float32|bfloat16}       writes config.json and model.safetensors
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file

VOCABULARY = 512  # small, so that embeddings and head take no part in what is measured
TINY = "tiny"  # hardly any arithmetic, so that what remains is the way there and back

WIDE = "wide"  # the same, but activations as large as those of a large model, so that what remains are narrow lines

# hidden, inner, heads, key heads, numbers of a head, epsilon, theta
SHAPES = {
    "tinyllama-1.1b": (2048, 5632, 32, 4, 64, 1e-5, 10000.0),
    TINY: (64, 176, 4, 2, 16, 1e-5, 10000.0),
    WIDE: (4096, 256, 4, 2, 128, 1e-5, 10000.0),
    "llama-8b": (4096, 14336, 32, 8, 128, 1e-5, 500000.0),
}


def config(shape: str, n_blocks: int, dtype: str) -> dict:
    hidden, inner, heads, key_heads, head, eps, theta = SHAPES[shape]
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": dtype,
        "hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": heads, "num_key_value_heads": key_heads,
        "head_dim": head, "num_hidden_layers": n_blocks, "vocab_size": VOCABULARY, "max_position_embeddings": 4096, "rms_norm_eps": eps,
        "rope_theta": theta, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


def tensors(shape: str, n_blocks: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights of the size that keeps activations in range: one over the square root of what is summed."""
    hidden, inner, heads, key_heads, head, *_ = SHAPES[shape]
    queries, keys = head * heads, head * key_heads
    generator = torch.Generator().manual_seed(7)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) / columns**0.5).to(dtype)

    ones = torch.ones(hidden, dtype=dtype)
    result = {"model.embed_tokens.weight": matrix(VOCABULARY, hidden), "model.norm.weight": ones, "lm_head.weight": matrix(VOCABULARY, hidden)}
    for block in range(n_blocks):
        name = f"model.layers.{block}."
        result |= {
            name + "input_layernorm.weight": ones.clone(), name + "post_attention_layernorm.weight": ones.clone(),
            name + "self_attn.q_proj.weight": matrix(queries, hidden), name + "self_attn.k_proj.weight": matrix(keys, hidden),
            name + "self_attn.v_proj.weight": matrix(keys, hidden), name + "self_attn.o_proj.weight": matrix(hidden, queries),
            name + "mlp.gate_proj.weight": matrix(inner, hidden), name + "mlp.up_proj.weight": matrix(inner, hidden),
            name + "mlp.down_proj.weight": matrix(hidden, inner),
        }  # fmt: skip
    return result


def write(folder: pathlib.Path, shape: str, n_blocks: int, dtype: str) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(shape, n_blocks, dtype)))
    save_file(tensors(shape, n_blocks, getattr(torch, dtype)), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4])
