#!/usr/bin/env python3
"""Writes protocol/vectors/sepal/gguf/: tiny random models as GGUF files in several types of blocks, and what transformers
makes in float32 of the weights that are left in them.

    pip install torch 'numpy<2' transformers==4.57.6 gguf==0.19.0
    scripts/make-gguf-vectors.py [NAME...]

The gguf package writes the files, names the tensors, quantises and widens; what llama.cpp's converter does to tensors besides
(permuted queries and keys of llama, norms of gemma with 1 added, experts in one tensor) is done here, and transformers' own
reader of GGUF files has to find the same weights. Types that the package cannot quantise to are random blocks.
"""

import importlib.util
import json
import pathlib
import sys

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Q
from gguf.quants import dequantize, quantize
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / "protocol/vectors/sepal/gguf"
spec = importlib.util.spec_from_file_location("families", ROOT / "scripts/make-family-vectors.py")
families = importlib.util.module_from_spec(spec)
spec.loader.exec_module(families)

TOKENS, NEW_TOKENS = 8, 6
COMMON = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=128, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
WIDE = dict(COMMON, hidden_size=256, intermediate_size=256, num_hidden_layers=1)
HEAD = dict(COMMON, head_dim=32)

# Name: architecture, kind, options, types of matrices by parts of their names (the first that fits).
CASES = {
    "llama-q8_0": ("llama", "Llama", COMMON, {"": Q.Q8_0}),
    "llama-q4_0": ("llama", "Llama", dict(COMMON, tie_word_embeddings=True), {"attn_v": Q.Q4_1, "ffn_down": Q.Q5_0, "": Q.Q4_0}),
    "llama-q4_k_m": ("llama", "Llama", WIDE, {"attn_v": Q.Q6_K, "ffn_down": Q.Q6_K, "output.": Q.Q6_K, "": Q.Q4_K}),
    "llama-k": ("llama", "Llama", WIDE, {"attn_q": Q.Q2_K, "attn_k": Q.Q3_K, "attn_v": Q.Q5_K, "ffn_up": Q.Q5_1, "": Q.Q6_K}),
    "mixtral-q8_0": ("llama", "Mixtral", dict(COMMON, num_local_experts=3, num_experts_per_tok=2, sliding_window=None,
                                              intermediate_size=32), {"": Q.Q8_0}),
    "qwen2-q4_0": ("qwen2", "Qwen2", dict(COMMON, tie_word_embeddings=True, use_sliding_window=False), {"": Q.Q4_0}),
    "qwen3-q8_0": ("qwen3", "Qwen3", HEAD, {"": Q.Q8_0}),
    "qwen3moe-q4_0": ("qwen3moe", "Qwen3Moe", dict(HEAD, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=32,
                                                   norm_topk_prob=True), {"": Q.Q4_0}),
    "gemma2-q8_0": ("gemma2", "Gemma2", dict(HEAD, query_pre_attn_scalar=32, sliding_window=4, attn_logit_softcapping=50.0,
                                             final_logit_softcapping=30.0), {"": Q.Q8_0}),
    "gemma3-q4_0": ("gemma3", "Gemma3Text", dict(HEAD, query_pre_attn_scalar=32, sliding_window=4, rope_theta=1e6), {"": Q.Q4_0}),
    "phi3-q4_0": ("phi3", "Phi3", dict(COMMON, rope_scaling=None, sliding_window=64), {"": Q.Q4_0}),
}  # fmt: skip


def permuted(weights, heads):
    """convert_hf_to_gguf.py: LlamaModel.permute"""
    return weights.reshape(heads, 2, -1, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def unpermuted(weights, heads):
    return weights.reshape(heads, -1, 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def random_blocks(kind, shape, rng):
    """Random codes and scales of codes; the scales of blocks such that weights are about as large as in other models."""
    per_block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // per_block, size), dtype=np.uint8)
    put = lambda at, value: blocks.__setitem__((..., slice(at, at + 2)), np.array([value], np.float16).view(np.uint8))  # noqa: E731
    if kind in (Q.Q4_K, Q.Q5_K):
        put(0, 2.5e-4 if kind == Q.Q4_K else 1.25e-4)
        put(2, 1.9e-3)
    elif kind == Q.Q2_K:
        put(80, 6e-3)
        put(82, 9e-3)
    elif kind == Q.Q3_K:
        put(108, 1.5e-3)
    elif kind == Q.Q6_K:
        put(208, 3e-4)
        scales = blocks[..., 192:208].view(np.int8)
        scales //= 4
    return blocks.reshape(*shape[:-1], -1)


def in_blocks(weights, kind, rng):
    """The bytes of a tensor, and the weights that are left in them."""
    if kind in (Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K):
        blocks = random_blocks(kind, weights.shape, rng)
    else:
        blocks = quantize(weights, kind)
    return blocks, dequantize(blocks, kind).reshape(weights.shape)


def metadata(writer, config, case):
    architecture, kind, options, _ = case
    writer.add_name(f"Tiny {kind}")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    if "head_dim" in options:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if kind in ("Llama", "Mixtral", "Phi3"):
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    if kind in ("Gemma2", "Gemma3Text", "Phi3"):
        writer.add_sliding_window(config.sliding_window)
    if kind == "Gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if experts := getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if kind == "Qwen3Moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)


def stacked(state, architecture):
    """Tensors as the converter sees them: those of all experts of a block in one, under the name of the first."""
    whole, experts = {}, {}
    for name, weights in state.items():
        parts = name.split(".experts.")
        if len(parts) == 1:
            whole[name] = (weights, [name])
            continue
        number, matrix = parts[1].split(".", 1)
        # Names of the package for what the converter calls them.
        experts.setdefault(f"{parts[0]}.experts.{matrix}", []).append((int(number), name, weights))
    for name, parts in experts.items():
        parts.sort(key=lambda part: part[0])
        whole[name] = (np.stack([weights for _, _, weights in parts]), [name for _, name, _ in parts])
    return whole


def write(path, case, config, state, rng):
    """Writes the file; returns what is left of the weights."""
    architecture, kind, _, types = case
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, architecture)
    metadata(writer, config, case)
    left = {}
    for name, (weights, parts) in stacked(state, architecture).items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored, name
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        heads = heads if architecture == "llama" else None
        more = 1.0 if kind.startswith("Gemma") and "norm" in name else 0.0
        weights = (permuted(weights, heads) if heads else weights) + np.float32(more)
        if weights.ndim == 1 or "gate_inp" in stored or name.endswith(".bias"):
            writer.add_tensor(stored, weights)
        else:
            quant = next(quant for part, quant in types.items() if part in stored)
            blocks, weights = in_blocks(weights, quant, rng)
            writer.add_tensor(stored, blocks, raw_dtype=quant)
        weights = weights - np.float32(more)
        weights = unpermuted(weights, heads) if heads else weights
        for part, of_part in zip(parts, [weights] if len(parts) == 1 else weights):
            left[part] = torch.from_numpy(np.ascontiguousarray(of_part))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return left


def same_in_transformers(path, model):
    """transformers reads GGUF files with code of its own."""
    other = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, config=model.config, dtype=torch.float32)
    for name, weights in model.state_dict().items():
        assert torch.allclose(other.state_dict()[name], weights, atol=1e-6), f"{path.name}: transformers reads another {name}"


@torch.no_grad()
def make(name, case, seed):
    _, kind, options, _ = case
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**options)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    families.randomize(model, unit_offset=kind.startswith("Gemma"))
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    state = {key: value.float().numpy() for key, value in model.state_dict().items() if key not in tied}
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.gguf"
    left = write(path, case, config, state, np.random.default_rng(seed))
    assert not model.load_state_dict(left, strict=False).unexpected_keys
    model.tie_weights()
    try:
        same_in_transformers(path, model)
        checked = "read the same by transformers"
    except (ValueError, NotImplementedError, KeyError, TypeError, AttributeError) as error:
        checked = f"not read by transformers: {error!r:.90}"
    ids = torch.randint(3, config.vocab_size, (1, TOKENS))
    x, blocks, logits = families.record(model, ids)
    model.generation_config.eos_token_id = None
    greedy = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0, TOKENS:]
    top = model(torch.cat([ids[0], greedy])[None]).logits[0, TOKENS - 1 :].topk(2).values
    gap = (top[:, 0] - top[:, 1]).min()
    reference = {
        "transformers": transformers.__version__,
        "input_ids": ids.tolist(),
        "block_inputs": families.tensor(x),
        "blocks": [families.tensor(block) for block in blocks],
        "final_logits": families.tensor(logits[:, -1:]),
        "greedy": greedy.tolist(),
    }
    (FOLDER / f"{name}.json").write_text(json.dumps(reference, indent=1) + "\n")
    assert gap > 1e-3, "two tokens are almost equally likely: take another seed"
    print(f"{name}: {path.stat().st_size} bytes, |x| up to {max(block.abs().max() for block in blocks):.1f}, {checked}", flush=True)


def main():
    torch.set_num_threads(1)
    for seed, (name, case) in enumerate(CASES.items()):
        if len(sys.argv) == 1 or name in sys.argv[1:]:
            make(name, case, 100 + seed)


if __name__ == "__main__":
    main()
