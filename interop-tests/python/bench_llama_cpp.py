"""Times llama.cpp's CPU kernels on a checkpoint of bench_shapes.py, for the engine benchmark.

Usage: python bench_llama_cpp.py FOLDER BLOCKS THREADS FORMAT       formats: F32 F16 BF16 Q8_0 Q4_0 Q4_K
Prints one JSON object for each line of its input: seconds of a block for one token (median) and for a prompt of PROMPT
tokens, over the first BLOCKS of the checkpoint.
The model has a vocabulary so small that its ends do not count, so a block is the whole divided by the number of blocks.
Needs llama-cpp-python, gguf and numpy.
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

PROMPT, STEPS = 512, 30
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


def checkpoint(path: pathlib.Path):
    """Names, and functions that read the tensors as float32: numpy knows no bfloat16, the upper half of one."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))

    def read(info: dict) -> np.ndarray:
        begin, end = info["data_offsets"]
        kind = {"F32": np.float32, "BF16": np.uint16}[info["dtype"]]
        data = np.fromfile(path, kind, (end - begin) // np.dtype(kind).itemsize, offset=8 + size + begin)
        whole = data if kind is np.float32 else (data.astype(np.uint32) << 16).view(np.float32)
        return whole.reshape(info["shape"])

    return ((name, lambda info=info: read(info)) for name, info in header.items() if name != "__metadata__")


def convert(folder: pathlib.Path, n_blocks: int, path: pathlib.Path) -> None:
    """The first blocks of the checkpoint as a GGUF file in float32 without a vocabulary."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(n_blocks)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in checkpoint(folder / "model.safetensors"):
        if name in ENDS or int(name.split(".")[2]) < n_blocks:
            writer.add_tensor(gguf_name(name), tensor())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: pathlib.Path, target: pathlib.Path, kind: str) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure = FTYPES[kind], True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp cannot convert to {kind}")


def decode(context, tokens: list[int], position: int) -> float:
    """The outputs of all tokens are asked for, as clients ask servers: llama.cpp leaves out what else it does not need of the last block."""
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, position + i, 1, 0, 1
    start = time.perf_counter()
    if llama_cpp.llama_decode(context, batch):
        raise SystemExit("llama.cpp cannot decode")
    seconds = time.perf_counter() - start
    llama_cpp.llama_batch_free(batch)
    return seconds


def context_of(path: pathlib.Path, n_threads: int):
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = PROMPT, PROMPT, PROMPT
    params.n_threads = params.n_threads_batch = n_threads
    return llama_cpp.llama_init_from_model(model, params)


def clear(context) -> None:
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)


def measure(context) -> tuple[float, float]:
    clear(context)
    steps = statistics.median(decode(context, [i % 500], i) for i in range(STEPS))
    clear(context)
    return steps, decode(context, [i * 7 % 500 for i in range(PROMPT)], 0)


def main() -> None:
    folder, n_blocks, n_threads, kind = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    llama_cpp.llama_log_set(QUIET, ctypes.c_void_p(0))
    path, whole = folder / f"{kind}.gguf", folder / "float32.gguf"
    convert(folder, n_blocks, whole)
    if kind == "F32":
        whole.rename(path)
    else:
        quantize(whole, path, kind)
        whole.unlink()
    context = context_of(path, n_threads)
    for _ in sys.stdin:
        steps, prompt = measure(context)
        print(json.dumps({"decode_s": steps / n_blocks, "prefill_s": prompt / n_blocks}), flush=True)
    path.unlink()


@llama_cpp.llama_log_callback
def QUIET(_level, _text, _data) -> None:
    """Swallows llama.cpp's log."""


if __name__ == "__main__":
    main()
