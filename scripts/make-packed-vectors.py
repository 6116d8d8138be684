#!/usr/bin/env python3
"""Writes protocol/vectors/sepal/packed/NAME/: tiny random models with the weights of their blocks in 4 bits as GPTQ and AWQ
publish them, and what transformers makes in float32 of the weights that are left.

    pip install torch 'numpy<2' transformers==4.57.6; pip install --no-deps auto-gptq==0.7.1 autoawq==0.2.9
    scripts/make-packed-vectors.py

Weights are rounded to the nearest code, which is enough for a fixture, and packed here; the two packages' own code for CPUs has
to find the same weights in what was packed.
"""

import importlib.util
import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / "protocol/vectors/sepal/packed"
TOKENS, NEW_TOKENS = 8, 6
COMMON = dict(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=128, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]

# Name: kind, options of the model, what quantization_config says. Queries of gptq-plain stay as they are.
CASES = {
    "gptq": ("Llama", COMMON, dict(quant_method="gptq", bits=4, group_size=32, sym=True, desc_act=False)),
    "gptq-asymmetric": ("Qwen2", COMMON, dict(quant_method="gptq", bits=4, group_size=64, sym=False, desc_act=False)),
    "gptq-act-order": ("Llama", COMMON, dict(quant_method="gptq", bits=4, group_size=32, sym=True, desc_act=True)),
    "gptq-v2": ("Phi3", dict(COMMON, rope_scaling=None, sliding_window=None),
                dict(quant_method="gptq", bits=4, group_size=-1, sym=True, desc_act=False, checkpoint_format="gptq_v2")),
    "awq": ("Llama", COMMON, dict(quant_method="awq", bits=4, group_size=32, zero_point=True, version="gemm")),
    "awq-mixtral": ("Mixtral", dict(COMMON, intermediate_size=32, num_local_experts=2, num_experts_per_tok=1, sliding_window=None),
                    dict(quant_method="awq", bits=4, group_size=32, zero_point=True, version="gemm",
                         modules_to_not_convert=["gate", "v_proj"])),
}  # fmt: skip


def module_at(path):
    spec = importlib.util.spec_from_file_location(path.stem.replace("-", "_"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def module_of(package, path):
    """A file of a package without the rest of it, which wants more packages."""
    return module_at(pathlib.Path(importlib.util.find_spec(package).submodule_search_locations[0]) / path)


def words(codes, dim):
    """Eight codes of 4 bits in each int32 along a dimension, the first in the lowest bits."""
    codes = codes.movedim(dim, -1).unflatten(-1, (-1, 8)).to(torch.int64)
    packed = (codes << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32).movedim(-1, dim).contiguous()


def awq_words(codes):
    return words(codes.unflatten(-1, (-1, 8))[..., AWQ_ORDER].flatten(-2), -1)


def quantise(weight, quant):
    """Tensors of one matrix [out, in], and the weights that are left in them."""
    rows, cols = weight.shape
    size = cols if quant["group_size"] == -1 else quant["group_size"]
    group_of = torch.arange(cols) // size
    if quant.get("desc_act"):
        group_of = group_of[torch.randperm(cols)]
    groups = int(group_of.max()) + 1
    scales, zeros = torch.empty(groups, rows), torch.empty(groups, rows, dtype=torch.int64)
    for group in range(groups):
        part = weight[:, group_of == group]
        low, high = part.min(1).values.clamp(max=0), part.max(1).values.clamp(min=0)
        if quant.get("sym"):
            scales[group], zeros[group] = torch.maximum(-low / 8, high / 7), 8
        else:
            scales[group] = (high - low) / 15
            zeros[group] = (-low / scales[group]).round().clamp(1 if quant["quant_method"] == "gptq" else 0, 15)
    scales = scales.half()
    of_column = scales.float()[group_of].T, zeros[group_of].T
    codes = (weight / of_column[0] + of_column[1]).round().clamp(0, 15).to(torch.int64)
    left = of_column[0] * (codes - of_column[1])
    if quant["quant_method"] == "awq":
        return {"qweight": awq_words(codes.T), "qzeros": awq_words(zeros), "scales": scales}, left
    stored = zeros if quant.get("checkpoint_format") == "gptq_v2" else zeros - 1
    packed = {"qweight": words(codes.T, 0), "qzeros": words(stored, -1), "scales": scales, "g_idx": group_of.to(torch.int32)}
    return packed, left


def check(packed, left, quant):
    """The packages' own reading of it, in float16."""
    rows, cols = left.shape
    if quant["quant_method"] == "awq":
        awq = module_of("awq", "utils/packing_utils.py")
        found = awq.dequantize_gemm(packed["qweight"], packed["qzeros"], packed["scales"], 4, quant["group_size"]).T
    elif quant.get("checkpoint_format") == "gptq_v2":
        return  # not read by this version
    else:
        gptq = module_of("auto_gptq", "nn_modules/qlinear/qlinear_cuda.py")
        layer = gptq.QuantLinear(4, quant["group_size"], cols, rows, bias=False)
        layer.load_state_dict(packed)
        layer.scales = layer.scales.float()
        found = layer(torch.eye(cols)).T
    assert torch.allclose(found.float(), left, atol=2e-3 * float(left.abs().max())), "another reading"


@torch.no_grad()
def make(name, case, seed):
    kind, options, quant = case
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**options)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    family.randomize(model, unit_offset=False)
    state = {}
    for key, weight in model.state_dict().items():
        module = key.removesuffix(".weight").rsplit(".", 1)[-1]
        if weight.dim() == 2 and ".layers." in key and module not in quant.get("modules_to_not_convert", []):
            packed, left = quantise(weight, quant)
            check(packed, left, quant)
            weight.copy_(left)
            state |= {f"{key.removesuffix('.weight')}.{part}": tensor for part, tensor in packed.items()}
        else:
            state[key] = weight.half().contiguous()
            weight.copy_(state[key].float())
    ids = torch.randint(3, config.vocab_size, (1, TOKENS))
    x, blocks, logits = family.record(model, ids)
    model.generation_config.eos_token_id = None
    greedy = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0, TOKENS:]
    top = model(torch.cat([ids[0], greedy])[None]).logits[0, TOKENS - 1 :].topk(2).values
    assert (top[:, 0] - top[:, 1]).min() > 1e-3, "two tokens are almost equally likely: take another seed"
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config.dtype = torch.float16
    written = {**json.loads(config.to_json_string()), "quantization_config": quant}
    (folder / "config.json").write_text(json.dumps(written, indent=1) + "\n")
    reference = {
        "transformers": transformers.__version__,
        "input_ids": ids.tolist(),
        "block_inputs": family.tensor(x),
        "blocks": [family.tensor(block) for block in blocks],
        "final_logits": family.tensor(logits[:, -1:]),
        "greedy": greedy.tolist(),
    }
    (folder / "reference.json").write_text(json.dumps(reference, indent=1) + "\n")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: {size} bytes, |x| up to {max(block.abs().max() for block in blocks):.1f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    family = module_at(ROOT / "scripts/make-family-vectors.py")
    for seed, (name, case) in enumerate(CASES.items()):
        if len(sys.argv) == 1 or name in sys.argv[1:]:
            make(name, case, 200 + seed)
