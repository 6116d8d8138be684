#!/usr/bin/env python3
"""Makes the adapters in protocol/vectors/sepal/lora and what peft computes with them on the tiny Llama of the Petals vectors:
outputs of all blocks, and the gradient of the chain's input.

Usage: "$(scripts/python-env.sh)" scripts/make-lora-vectors.py
"""

import json
import pathlib
import shutil

import peft
import torch
from transformers import AutoModelForCausalLM

VECTORS = pathlib.Path(__file__).parent.parent / "protocol/vectors"
MODEL = VECTORS / "petals/tiny-llama"
FOLDER = VECTORS / "sepal/lora"
ADAPTERS = {
    "queries-and-values": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    "everything": dict(
        r=3, lora_alpha=4, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    ),
}


def tensor(x):
    return {"shape": list(x.shape), "dtype": "float32", "hex_le": x.detach().contiguous().numpy().astype("<f4").tobytes().hex()}


def states(model, x):
    """Input of the first block and outputs of all."""
    layers = model.base_model.model.model.layers
    outputs = []
    hooks = [layer.register_forward_hook(lambda _layer, _args, out: outputs.append(out[0])) for layer in layers]
    model.base_model.model.model(inputs_embeds=x, use_cache=False)
    for hook in hooks:
        hook.remove()
    return outputs


def main():
    torch.manual_seed(17)
    torch.set_num_threads(1)
    shutil.rmtree(FOLDER, ignore_errors=True)
    x, by_output = torch.randn(2, 5, 64), torch.randn(2, 5, 64)
    cases = {}
    for name, options in ADAPTERS.items():
        plain = AutoModelForCausalLM.from_pretrained(MODEL, torch_dtype=torch.float32)
        model = peft.get_peft_model(plain, peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **options)).eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.copy_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(FOLDER / name, safe_serialization=True)
        for extra in (FOLDER / name).iterdir():
            if extra.name not in ("adapter_config.json", "adapter_model.safetensors"):
                extra.unlink()
        config = json.loads((FOLDER / name / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "tiny-llama"
        (FOLDER / name / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        inputs = x.clone().requires_grad_()
        outputs = states(model, inputs)
        (gradient,) = torch.autograd.grad(outputs[-1], inputs, by_output)
        cases[name] = {"blocks": [tensor(output) for output in outputs], "gradient": tensor(gradient)}
    data = {
        "note": f"peft {peft.__version__} on torch {torch.__version__}, float32; see scripts/make-lora-vectors.py",
        "input": tensor(x),
        "by_output": tensor(by_output),
        "adapters": cases,
    }
    (FOLDER / "reference.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
