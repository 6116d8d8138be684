#!/usr/bin/env python3
"""Writes protocol/vectors/families/NAME/: for each model family a tiny random model (weights that bfloat16 can hold, saved
as such) and what transformers makes of it in float32: inputs and outputs of all blocks, logits, greedy tokens.

    pip install torch 'numpy<2' transformers==4.57.6
    scripts/make-family-vectors.py [NAME...]
"""

import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

FOLDER = pathlib.Path(__file__).parent.parent / "protocol/vectors/families"
TOKENS, NEW_TOKENS, WINDOW = 20, 8, 6
SLIDING, FULL = "sliding_attention", "full_attention"

COMMON = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128,
              bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
GROUPED = dict(COMMON, intermediate_size=48, num_key_value_heads=2, rms_norm_eps=1e-5)
LONGROPE = dict(type="longrope", short_factor=[1.0, 1.1, 1.3], long_factor=[1.0, 2.5, 4.0])

FAMILIES = {
    "mistral": ("Mistral", dict(GROUPED, head_dim=12, sliding_window=WINDOW)),
    "mixtral": ("Mixtral", dict(GROUPED, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)),
    "qwen2": ("Qwen2", dict(GROUPED, num_hidden_layers=3, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1,
                            tie_word_embeddings=True)),
    "qwen3": ("Qwen3", dict(GROUPED, head_dim=16)),
    "qwen3-moe": ("Qwen3Moe", dict(GROUPED, head_dim=16, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=16,
                                   norm_topk_prob=True)),
    "qwen3-moe-unnormed": ("Qwen3Moe", dict(GROUPED, num_hidden_layers=1, head_dim=8, num_experts=4, num_experts_per_tok=2,
                                            moe_intermediate_size=16, norm_topk_prob=False)),
    "gemma2": ("Gemma2", dict(GROUPED, num_hidden_layers=4, head_dim=16, query_pre_attn_scalar=24, sliding_window=WINDOW,
                              attn_logit_softcapping=2.0, final_logit_softcapping=5.0)),
    "gemma3": ("Gemma3Text", dict(GROUPED, num_hidden_layers=3, head_dim=16, query_pre_attn_scalar=24, sliding_window=WINDOW,
                                  sliding_window_pattern=3, rope_theta=1e6, rope_local_base_freq=100.0,
                                  rope_scaling=dict(rope_type="linear", factor=4.0))),
    "phi2": ("Phi", dict(COMMON, intermediate_size=48, partial_rotary_factor=0.5, layer_norm_eps=1e-5, hidden_act="gelu_new")),
    "phi3": ("Phi3", dict(GROUPED, partial_rotary_factor=0.75, original_max_position_embeddings=64, rope_scaling=LONGROPE,
                          sliding_window=WINDOW)),
    "phi3-long": ("Phi3", dict(GROUPED, partial_rotary_factor=0.75, original_max_position_embeddings=16, rope_scaling=LONGROPE)),
    "falcon-11b": ("Falcon", dict(COMMON, num_kv_heads=2, new_decoder_architecture=True, num_ln_in_parallel_attn=1,
                                  ffn_hidden_size=48, tie_word_embeddings=False)),
    "falcon-rw": ("Falcon", dict(COMMON, num_attention_heads=6, hidden_size=36, alibi=True, parallel_attn=False, multi_query=False,
                                 new_decoder_architecture=False, bias=True, ffn_hidden_size=48)),
    "bloom": ("Bloom", dict(vocab_size=64, hidden_size=36, n_layer=2, n_head=6, bos_token_id=1, eos_token_id=2, pad_token_id=0)),
    "gpt-oss": ("GptOss", dict(GROUPED, num_hidden_layers=4, head_dim=16, intermediate_size=32, num_local_experts=4,
                               num_experts_per_tok=2, sliding_window=WINDOW, layer_types=[SLIDING, FULL] * 2,
                               rope_scaling=dict(rope_type="yarn", factor=4.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
                                                 original_max_position_embeddings=32))),
}  # fmt: skip


def tensor(x):
    x = x.detach().float().contiguous()
    return {"shape": list(x.shape), "dtype": "float32", "hex_le": x.numpy().astype("<f4").tobytes().hex()}


def randomize(model, unit_offset):
    """Every parameter random, biases and norms too, rounded to bfloat16."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        if "norm" in name or ".ln_" in name:
            value = noise * 0.3 + (not unit_offset and name.endswith("weight"))
        elif parameter.dim() == 1 or name.endswith("_bias"):
            value = noise * 0.5
        elif "embed" in name:
            value = noise * 0.6
        else:
            value = noise * 1.4 / parameter.shape[-1] ** 0.5
        parameter.copy_(value.to(torch.bfloat16))


def pack_experts(model):
    """Gives the experts weights that MXFP4 can hold, and returns them packed, under the names of published checkpoints."""
    packed = {}
    for name, parameter in model.named_parameters():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, cols, rows = parameter.shape
            blocks = torch.randint(0, 256, (experts, rows, cols // 32, 16), dtype=torch.uint8)
            scales = torch.randint(119, 123, (experts, rows, cols // 32), dtype=torch.uint8)
            parameter.copy_(convert_moe_packed_tensors(blocks, scales))
            packed[f"{name}_blocks"], packed[f"{name}_scales"] = blocks, scales
    return packed


def blocks_of(model):
    return model.model.layers if hasattr(model, "model") else model.transformer.h


def record(model, ids):
    inputs, outputs = [], []
    hooks = []
    for layer in blocks_of(model):
        take = lambda _, args, kwargs: inputs.append(args[0] if args else kwargs["hidden_states"])  # noqa: E731
        give = lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out)  # noqa: E731
        hooks += [layer.register_forward_pre_hook(take, with_kwargs=True), layer.register_forward_hook(give)]
    logits = model(ids).logits
    for hook in hooks:
        hook.remove()
    return inputs[0], outputs, logits


@torch.no_grad()
def make(name, kind, options, seed):
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**options)
    # Falcon's eager attention adds slopes a second time that its mask has already.
    attention = "sdpa" if kind == "Falcon" else "eager"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    randomize(model, unit_offset=kind.startswith("Gemma"))
    packed = pack_experts(model) if kind == "GptOss" else {}
    ids = torch.randint(3, config.vocab_size, (1, TOKENS))
    x, blocks, logits = record(model, ids)
    model.generation_config.eos_token_id = None
    greedy = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0, TOKENS:]
    top = model(torch.cat([ids[0], greedy])[None]).logits[0, TOKENS - 1 :].topk(2).values
    assert (top[:, 0] - top[:, 1]).min() > 1e-3, "two tokens are almost equally likely: take another seed"

    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    state = {key: value.to(torch.bfloat16).contiguous() for key, value in model.state_dict().items()
             if key not in tied and f"{key}_blocks" not in packed}  # fmt: skip
    save_file({**state, **packed}, folder / "model.safetensors", metadata={"format": "pt"})
    config.dtype = torch.bfloat16
    (folder / "config.json").write_text(config.to_json_string())
    reference = {
        "transformers": transformers.__version__,
        "input_ids": ids.tolist(),
        "block_inputs": tensor(x),
        "blocks": [tensor(block) for block in blocks],
        "final_logits": tensor(logits[:, -1:]),
        "greedy_continuation_8": greedy.tolist(),
    }
    (folder / "reference.json").write_text(json.dumps(reference, indent=1) + "\n")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: {len(blocks)} blocks, {size} bytes, |x| up to {max(block.abs().max() for block in blocks):.1f}")


def main():
    torch.set_num_threads(1)
    for seed, (name, (kind, options)) in enumerate(FAMILIES.items()):
        if len(sys.argv) == 1 or name in sys.argv[1:]:
            make(name, kind, options, seed)


if __name__ == "__main__":
    main()
