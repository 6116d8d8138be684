#!/usr/bin/env python3
"""Writes protocol/vectors/petals/sampling.json and, for what later versions brought, protocol/vectors/sepal/sampling.json:
what the logits processors of transformers make of given logits.

    pip install torch 'numpy<2' transformers
    scripts/make-sampling-vectors.py
"""

import json
import pathlib

import torch
import transformers
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.logits_process import MinPLogitsWarper, SequenceBiasLogitsProcessor

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "protocol/vectors"

CASES = [
    # temperature (0: greedy), top_k (0: off), top_p (1: off), repetition_penalty (1: off)
    (0.0, 0, 1.0, 1.0), (0.0, 0, 1.0, 1.3), (0.0, 5, 0.5, 2.0), (1.0, 0, 1.0, 1.0), (0.7, 0, 1.0, 1.0), (1.5, 10, 1.0, 1.0), (1.0, 1, 1.0, 1.0),
    (1.0, 64, 1.0, 1.0), (1.0, 1000, 1.0, 1.0), (1.0, 0, 0.9, 1.0), (1.0, 0, 0.5, 1.0), (1.0, 0, 0.01, 1.0), (0.6, 0, 0.95, 1.1), (0.8, 12, 0.8, 1.2),
    (2.0, 3, 0.7, 0.8), (0.3, 50, 0.99, 1.5),
]  # fmt: skip

LATER = [
    # temperature, top_k, top_p, min_p (0: off), repetition_penalty, biases by token
    (1.0, 0, 1.0, 0.1, 1.0, {}), (0.7, 0, 1.0, 0.05, 1.2, {}), (1.3, 20, 0.95, 0.02, 1.0, {}), (1.0, 0, 1.0, 1.0, 1.0, {}), (1.0, 0, 1.0, 0.999, 1.0, {}),
    (1.0, 0, 1.0, 0.0, 1.0, {3: 4.0, 17: -100.0}), (0.8, 10, 0.9, 0.1, 1.3, {0: 2.5, 1: 2.5, 63: -3.0}), (0.0, 0, 1.0, 0.0, 1.1, {5: 100.0}),
    (0.0, 0, 1.0, 0.0, 1.0, {}),
]  # fmt: skip


def main():
    earlier()
    later()


def later():
    torch.manual_seed(4)
    cases = []
    for at, (temperature, top_k, top_p, min_p, penalty, biases) in enumerate(LATER):
        logits = torch.randn(64) * 3
        if at % 2:
            logits[torch.randint(0, 64, (6,))] = logits.max() - 0.5  # ties
        history = torch.randint(0, 64, (12,))
        processors = LogitsProcessorList()
        if biases:
            processors.append(SequenceBiasLogitsProcessor({(token,): float(bias) for token, bias in biases.items()}))
        if penalty != 1.0:
            processors.append(RepetitionPenaltyLogitsProcessor(penalty))
        if temperature > 0:
            if temperature != 1.0:
                processors.append(TemperatureLogitsWarper(temperature))
            if top_k:
                processors.append(TopKLogitsWarper(top_k))
            if top_p < 1.0:
                processors.append(TopPLogitsWarper(top_p))
            if min_p:
                processors.append(MinPLogitsWarper(min_p))
        scores = processors(history[None], logits[None].clone())[0]
        cases.append({
            "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": penalty, "logit_bias": list(biases.items()),
            "history": history.tolist(), "logits": logits.tolist(), "greedy": scores.argmax().item(), "probabilities": torch.softmax(scores, -1).tolist(),
            "logprobs": torch.log_softmax(logits, -1).tolist(),
        })  # fmt: skip
    write("sepal/sampling.json", cases)


def earlier():
    torch.manual_seed(3)
    cases = []
    for at, (temperature, top_k, top_p, penalty) in enumerate(CASES):
        logits = torch.randn(64) * 3
        if at % 2:
            logits[torch.randint(0, 64, (6,))] = logits.max() - 0.5  # ties
        history = torch.randint(0, 64, (12,))
        processors = LogitsProcessorList()
        if penalty != 1.0:
            processors.append(RepetitionPenaltyLogitsProcessor(penalty))
        if temperature > 0:
            if temperature != 1.0:
                processors.append(TemperatureLogitsWarper(temperature))
            if top_k:
                processors.append(TopKLogitsWarper(top_k))
            if top_p < 1.0:
                processors.append(TopPLogitsWarper(top_p))
        scores = processors(history[None], logits[None].clone())[0]
        cases.append({
            "temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": penalty, "history": history.tolist(),
            "logits": logits.tolist(), "greedy": scores.argmax().item(), "probabilities": torch.softmax(scores, -1).tolist(),
        })  # fmt: skip
    write("petals/sampling.json", cases)


def write(name, cases):
    made_with = f"transformers {transformers.__version__}, torch {torch.__version__}"
    (FOLDER / name).write_text(json.dumps({"made_with": made_with, "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
