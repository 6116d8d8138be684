"""Plain transformers on a model: what every swarm must reproduce.

In:  {"model": NAME, "prompts": [[id, …], …], "max_new_tokens": n}
Out: {"continuations": [[id, …], …]}  greedy, each prompt by itself, in float32, never stopping early
"""

import peer
import torch
from transformers import AutoModelForCausalLM


def load(name: str):
    """The model in float32 on one thread, as the servers compute it."""
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(name, torch_dtype=torch.float32).eval()


def generate(model, rows: list[list[int]], n_tokens: int, **options) -> list[list[int]]:
    """New tokens for a batch of equally long prompts."""
    with torch.inference_mode():
        ids = torch.tensor(rows)
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}
        out = model.generate(ids, max_new_tokens=n_tokens, **options)
        return out[:, ids.shape[1] :].tolist()


def main(order: dict) -> dict:
    model = load(order["model"])
    return {"continuations": [generate(model, [prompt], order["max_new_tokens"])[0] for prompt in order["prompts"]]}


if __name__ == "__main__":
    peer.run_once(main)
