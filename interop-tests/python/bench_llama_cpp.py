"""Times llama.cpp's CPU kernels on a checkpoint of bench_shapes.py, for the engine benchmark.

Usage: python bench_llama_cpp.py FOLDER THREADS FORMAT…      formats: F32 F16 BF16 Q8_0 Q4_0 Q4_K
Prints one JSON object a format: seconds of a block for one token (median) and for a prompt of PROMPT tokens (best).
The model has a vocabulary so small that its ends do not count, so a block is the whole divided by the number of blocks.
Needs llama-cpp-python, gguf, safetensors and numpy.
"""

import ctypes
import json
import pathlib
import statistics
import sys
import time

import gguf
import llama_cpp
import numpy as np
from safetensors import safe_open

PROMPT, STEPS, PASSES = 512, 30, 3
FTYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K": 14, "BF16": 32}
NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
ENDS = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}


def gguf_name(name: str) -> str:
    if name in ENDS:
        return ENDS[name]
    _, _, block, rest = name.split(".", 3)
    return f"blk.{block}.{NAMES[rest.removesuffix('.weight')]}.weight"


def convert(folder: pathlib.Path, path: pathlib.Path) -> int:
    """The checkpoint as a GGUF file in float32 without a vocabulary; returns its number of blocks."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_tokenizer_model("no_vocab")
    with safe_open(folder / "model.safetensors", "numpy") as checkpoint:
        for name in checkpoint.keys():
            writer.add_tensor(gguf_name(name), checkpoint.get_tensor(name).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return config["num_hidden_layers"]


def quantize(source: pathlib.Path, target: pathlib.Path, kind: str) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure = FTYPES[kind], True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp cannot convert to {kind}")


def decode(context, tokens: list[int]) -> float:
    ids = (llama_cpp.llama_token * len(tokens))(*tokens)  # the batch only points to them
    batch = llama_cpp.llama_batch_get_one(ids, len(tokens))
    start = time.perf_counter()
    if llama_cpp.llama_decode(context, batch):
        raise SystemExit("llama.cpp cannot decode")
    return time.perf_counter() - start


def measure(path: pathlib.Path, n_threads: int) -> tuple[float, float]:
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = (PASSES + 2) * PROMPT + STEPS, PROMPT, PROMPT
    params.n_threads = params.n_threads_batch = n_threads
    context = llama_cpp.llama_init_from_model(model, params)
    decode(context, [1])
    steps = statistics.median(decode(context, [i % 500]) for i in range(STEPS))
    prompt = [i * 7 % 500 for i in range(PROMPT)]
    decode(context, prompt)
    passes = min(decode(context, prompt) for _ in range(PASSES))
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return steps, passes


def main() -> None:
    folder, n_threads, kinds = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    llama_cpp.llama_log_set(QUIET, ctypes.c_void_p(0))
    whole = folder / "float32.gguf"
    n_blocks = convert(folder, whole)
    for kind in kinds:
        path = folder / f"{kind}.gguf"
        quantize(whole, path, kind)
        steps, passes = measure(path, n_threads)
        print(json.dumps({"engine": "llama.cpp", "format": kind, "decode_s": steps / n_blocks, "prefill_s": passes / n_blocks}), flush=True)
        path.unlink()
    whole.unlink()


@llama_cpp.llama_log_callback
def QUIET(_level, _text, _data) -> None:
    """Swallows llama.cpp's log."""


if __name__ == "__main__":
    main()
