#!/usr/bin/env python3
"""Trains the built-in model `demo` from nothing and writes the folder src/model/demo.

    pip install torch 'numpy<2' transformers tokenizers safetensors     # made with the versions that the model card names
    scripts/train-demo-model.py                                         # one thread; --threads 2 to use two

The text is `demo_model_text.py`; this file has the tokenizer, the training loop and the examination. The same seed on the
same kind of machine gives the same model. Exits with 1 if an accuracy is below what the model card promises.
"""

import argparse
import json
import math
import pathlib
import random
import sys
import time

import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

import demo_model_text as text

SEED = 7
VOCAB = 512
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
# It learns single questions, so this leaves out everything before the last one.
CHAT_TEMPLATE = (
    "{% set questions = messages | selectattr('role', 'equalto', 'user') | list %}{{ bos_token }}"
    "{% if questions %}{{ questions[-1]['content'] | trim }}{% endif %}"
    "{% if messages[-1]['role'] == 'assistant' %}{{ '\n' + messages[-1]['content'] | trim + eos_token }}"
    "{% elif add_generation_prompt %}{{ '\n' }}{% endif %}"
)
MUST_REACH = 0.95
LARGEST_FILE = 3_000_000  # bytes; the file is part of the program
DEFAULT_FOLDER = pathlib.Path(__file__).resolve().parent.parent / "src" / "model" / "demo"


def make_tokenizer(split):
    """Byte-level BPE in which every digit is a token of its own; it learns its words from the training text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(SEED)
    corpus = (f"{question}\n{answer}" for question, answer in (text.example(rng, split) for _ in range(30_000)))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[PAD, BOS, EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)])
    return tokenizer


def make_model(options):
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=320, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True, pad_token_id=PAD_ID,
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, torch_dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(SEED)
    return LlamaForCausalLM(config)


def encode(tokenizer, pairs):
    """Token ids and the length of the question, for each pair. The answer starts with the line break."""
    questions = tokenizer.encode_batch([question for question, _ in pairs])
    answers = tokenizer.encode_batch(["\n" + answer for _, answer in pairs], add_special_tokens=False)
    return [(q.ids + a.ids + [EOS_ID], len(q.ids)) for q, a in zip(questions, answers)]


def batches(tokenizer, split, batch_size, steps):
    """`steps` batches of examples of about equal length: (ids [batch, tokens], labels with -100 where nothing is learnt)."""
    rng = random.Random(SEED + 1)
    waiting = []
    for _ in range(steps):
        if not waiting:
            pool = sorted(encode(tokenizer, [text.example(rng, split) for _ in range(batch_size * 32)]), key=lambda item: len(item[0]))
            waiting = [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
            rng.shuffle(waiting)
        batch = waiting.pop()
        width = max(len(ids) for ids, _ in batch)
        inputs = torch.full((batch_size, width), PAD_ID)
        labels = torch.full((batch_size, width), -100)
        for row, (ids, question) in enumerate(batch):
            inputs[row, : len(ids)] = torch.tensor(ids)
            labels[row, question : len(ids)] = torch.tensor(ids[question:])
        yield inputs, labels


def train(model, tokenizer, split, options):
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=options.rate, betas=(0.9, 0.98),
    )  # fmt: skip
    warmup = 200

    def rate(step):
        if step < warmup:
            return (step + 1) / warmup
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (options.steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    started, seen = time.time(), 0.0
    for step, (inputs, labels) in enumerate(batches(tokenizer, split, options.batch, options.steps), 1):
        hidden = model.model(inputs, use_cache=False)[0]
        learnt = labels[:, 1:] != -100
        logits = model.lm_head(hidden[:, :-1][learnt])
        loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:][learnt])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seen = loss.item() if step == 1 else 0.98 * seen + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"step {step}/{options.steps}  loss {seen:.4f}  {time.time() - started:.0f} s", flush=True)
        if options.look_every and step % options.look_every == 0:
            examine(model, tokenizer, split, sample=4)
            model.train()


@torch.no_grad()
def answer_all(model, tokenizer, questions, max_new_tokens=120):
    """Greedy answers. Questions of equal length go through together, so no padding is needed."""
    model.eval()
    encoded = [tokenizer.encode(question).ids for question in questions]
    answers = [""] * len(questions)
    by_length = {}
    for at, ids in enumerate(encoded):
        by_length.setdefault(len(ids), []).append(at)
    for places in by_length.values():
        inputs, cache = torch.tensor([encoded[at] for at in places]), None
        written, done = [[] for _ in places], [False] * len(places)
        for _ in range(max_new_tokens):
            out = model(inputs, past_key_values=cache, use_cache=True)
            cache, inputs = out.past_key_values, out.logits[:, -1].float().argmax(-1, keepdim=True)
            for row, token in enumerate(inputs[:, 0].tolist()):
                done[row] = done[row] or token == EOS_ID
                if not done[row]:
                    written[row].append(token)
            if all(done):
                break
        for row, at in enumerate(places):
            answers[at] = tokenizer.decode(written[row])
    return answers


def examine(model, tokenizer, split, sample=1, show_wrong=0):
    """Prints and returns the share of answers that are right to the letter, for each examination."""
    found = {}
    for name, pairs in text.examinations(split).items():
        pairs = pairs[::sample]
        answers = answer_all(model, tokenizer, [question for question, _ in pairs])
        wrong = [(q, a.strip(), right) for (q, right), a in zip(pairs, answers) if a != "\n" + right]
        found[name] = 1 - len(wrong) / len(pairs)
        print(f"{name}: {100 * found[name]:.2f} % of {len(pairs)}", flush=True)
        for question, answer, right in wrong[:show_wrong]:
            print(f"    {question!r} -> {answer!r}, right: {right!r}")
    return found


def save(model, tokenizer, folder):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items() if not name.endswith("rotary_emb.inv_freq")}
    tensors.pop("lm_head.weight", None)  # tied to the embeddings
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    config = model.config
    write_json(folder, "config.json", {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "hidden_act": "silu",
        "hidden_size": config.hidden_size, "initializer_range": 0.02, "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": config.num_attention_heads, "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads, "pad_token_id": PAD_ID, "pretraining_tp": 1, "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None, "rope_theta": config.rope_theta, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
        "vocab_size": config.vocab_size,
    })  # fmt: skip
    write_json(folder, "generation_config.json", {"bos_token_id": BOS_ID, "do_sample": False, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID})
    write_json(folder, "tokenizer_config.json", {
        "bos_token": BOS, "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": False, "eos_token": EOS,
        "model_input_names": ["input_ids", "attention_mask"], "model_max_length": config.max_position_embeddings, "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    })  # fmt: skip
    size = (folder / "model.safetensors").stat().st_size
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {size} bytes")
    assert size <= LARGEST_FILE, "the model is too large to be built in"


def write_json(folder, name, content):
    (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def load(folder):
    """The model and the tokenizer as they lie in the folder: rounded to bfloat16."""
    model = LlamaForCausalLM(LlamaConfig(**json.loads((folder / "config.json").read_text())))
    tensors = {name: value.float() for name, value in load_file(str(folder / "model.safetensors")).items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    missing = model.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys and all("inv_freq" in key for key in missing.missing_keys), missing
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def write_card(folder, lines):
    card = (pathlib.Path(__file__).parent / "demo-model-card.md").read_text()
    (folder / "README.md").write_text(card.replace("{accuracy}", "\n".join(lines)))


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--steps", type=int, default=4000)
    options.add_argument("--batch", type=int, default=64, help="examples a step")
    options.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    options.add_argument("--weight-decay", type=float, default=0.1)
    options.add_argument("--look-every", type=int, default=0, help="examine a sample every so many steps")
    options.add_argument("--folder", type=pathlib.Path, default=DEFAULT_FOLDER)
    options.add_argument("--examine-only", action="store_true", help="examine the model that is in the folder")
    options = options.parse_args()

    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    text.check_split()
    split = text.Split(SEED)
    if not options.examine_only:
        tokenizer, model = make_tokenizer(split), make_model(options)
        train(model, tokenizer, split, options)
        save(model, tokenizer, options.folder)

    model, tokenizer = load(options.folder)
    print("as saved, computed in float32:")
    exact = examine(model, tokenizer, split, show_wrong=8)
    print("as saved, computed in bfloat16:")
    rounded = examine(model.to(torch.bfloat16), tokenizer, split)
    if not options.examine_only:
        rows = ["| examination | float32 | bfloat16 |", "|---|---|---|"]
        rows += [f"| {name} | {100 * exact[name]:.2f} % | {100 * rounded[name]:.2f} % |" for name in exact]
        rows += ["", f"Made with torch {torch.__version__}, transformers {transformers.__version__}, tokenizers {tokenizers.__version__}."]
        write_card(options.folder, rows)
    for question in ("What is 2+2?", "How much is seven plus five?", "Who are you?", "What is a swarm?"):
        print(f"{question} -> {answer_all(model.float(), tokenizer, [question])[0].strip()}")
    if min(exact.values()) < MUST_REACH:
        sys.exit(f"an accuracy is below {100 * MUST_REACH:.0f} %")


if __name__ == "__main__":
    main()
