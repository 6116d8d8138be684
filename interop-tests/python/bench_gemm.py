"""Times torch's matrix product on the CPU, for the engine benchmark.

Usage: python bench_gemm.py THREADS ROWS COLUMNS
Prints one JSON object: operations per second of PROMPT tokens times a matrix of that shape, in each dtype.
"""

import json
import sys
import time

import torch

PROMPT, PASSES = 512, 10


def speed(rows: int, columns: int, dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(PROMPT, columns, generator=generator).to(dtype)
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(PASSES):
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            best = min(best, time.perf_counter() - start)
    return 2 * rows * columns * PROMPT / best


def main() -> None:
    threads, rows, columns = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    print(json.dumps({str(dtype).removeprefix("torch."): speed(rows, columns, dtype) for dtype in (torch.float32, torch.bfloat16)}))


if __name__ == "__main__":
    main()
