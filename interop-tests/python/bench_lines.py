"""Times Petals' client in a swarm, wherever that is.

Usage: python bench_lines.py FOLDER PREFIX INITIAL_PEER PROMPT TOKENS
Sends a prompt of noise and then single tokens through a session. Prints a JSON object: milliseconds until the prompt was
through, everything about the session included, and tokens per second after that.
"""

import json
import sys
import time

import peer
import torch
from petals import AutoDistributedModelForCausalLM


def main(folder: str, prefix: str, initial: str, prompt: int, tokens: int) -> dict:
    torch.set_num_threads(1)
    model = AutoDistributedModelForCausalLM.from_pretrained(
        folder, dht_prefix=prefix, initial_peers=[initial], max_retries=3, torch_dtype=torch.float32
    ).eval()
    generator = torch.Generator().manual_seed(1)
    noise = lambda length: torch.randn(1, length, model.config.hidden_size, generator=generator)
    with torch.inference_mode(), model.transformer.h.inference_session(max_length=prompt + tokens) as session:
        start = time.perf_counter()
        session.step(noise(prompt))
        first = time.perf_counter()
        for _ in range(tokens - 1):
            session.step(noise(1))
        seconds = time.perf_counter() - first
    return {"first_ms": 1e3 * (first - start), "tokens_s": (tokens - 1) / seconds}


if __name__ == "__main__":
    folder, prefix, initial, prompt, tokens = sys.argv[1:]
    print(json.dumps(main(folder, prefix, initial, int(prompt), int(tokens))), flush=True)
    peer.finish(0)
