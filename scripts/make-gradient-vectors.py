#!/usr/bin/env python3
"""Writes protocol/vectors/sepal/gradients/NAME.json: the gradient that torch finds by the input of the first block of the tiny
models in protocol/vectors/families and protocol/vectors/petals, for a random one by the output of the last block.

    pip install torch 'numpy<2' transformers==4.57.6
    scripts/make-gradient-vectors.py [NAME...]
"""

import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

VECTORS = pathlib.Path(__file__).parent.parent / "protocol/vectors"
FOLDER = VECTORS / "sepal/gradients"
MODELS = ["families/mistral", "families/mixtral", "families/qwen2", "families/qwen3", "families/qwen3-moe", "families/gemma2",
          "families/gemma3", "families/phi2", "families/phi3", "families/falcon-11b", "families/falcon-rw", "families/bloom",
          "families/gpt-oss", "petals/tiny-falcon-7b", "petals/tiny-falcon-new", "petals/tiny-mixtral"]  # fmt: skip


def tensor(x):
    x = x.detach().float().contiguous()
    return {"shape": list(x.shape), "dtype": "float32", "hex_le": x.numpy().astype("<f4").tobytes().hex()}


def recorded(value):
    return torch.frombuffer(bytearray.fromhex(value["hex_le"]), dtype=torch.float32).reshape(value["shape"])


def unpacked(state):
    """The experts of GPT-OSS as numbers."""
    for name in [name for name in state if name.endswith("_blocks")]:
        stem = name.removesuffix("_blocks")
        blocks, scales = state.pop(name), state.pop(f"{stem}_scales")
        state[stem] = convert_moe_packed_tensors(blocks, scales)
    return {name: weights.float() for name, weights in state.items()}


def load(folder):
    config = AutoConfig.from_pretrained(folder)
    # As in make-family-vectors.py.
    attention = "sdpa" if config.model_type == "falcon" else "eager"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32).eval()
    state = unpacked(load_file(folder / "model.safetensors"))
    missing, unexpected = model.load_state_dict(state, strict=False)
    prefix = f"{model.base_model_prefix}."
    if unexpected:  # saved without the head
        missing, unexpected = model.load_state_dict({prefix + name: weights for name, weights in state.items()}, strict=False)
    assert not unexpected and all("lm_head" in name for name in missing), (missing, unexpected)
    return model


def make(path, seed):
    torch.manual_seed(seed)
    model = load(VECTORS / path)
    reference = json.loads((VECTORS / path / "reference.json").read_text())
    x = recorded(reference["block_inputs"]).requires_grad_()
    layers = model.model.layers if hasattr(model, "model") else model.transformer.h
    outputs = []

    def give(_layer, args, kwargs):
        if args:
            return (x, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": x}

    layers[0].register_forward_pre_hook(give, with_kwargs=True)
    layers[-1].register_forward_hook(lambda _layer, _args, out: outputs.append(out[0] if isinstance(out, tuple) else out))
    model(torch.tensor(reference["input_ids"]).reshape(1, -1), use_cache=False)
    found = (outputs[0] - recorded(reference["blocks"][-1])).abs().max()
    assert found < 1e-4, f"{path}: another output, by {found}"
    by_output = torch.randn_like(outputs[0])
    (gradient,) = torch.autograd.grad(outputs[0], x, by_output)
    data = {
        "note": f"transformers {transformers.__version__}, torch {torch.__version__}, float32; see scripts/make-gradient-vectors.py",
        "model": path,
        "by_output": tensor(by_output),
        "gradient": tensor(gradient),
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{path.split('/')[-1]}.json").write_text(json.dumps(data, indent=1) + "\n")
    print(f"{path}: gradient up to {gradient.abs().max():.1f}", flush=True)


def main():
    torch.set_num_threads(1)
    for seed, path in enumerate(MODELS):
        if len(sys.argv) == 1 or path.split("/")[-1] in sys.argv[1:]:
            make(path, seed)


if __name__ == "__main__":
    main()
