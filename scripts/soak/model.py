"""A model of random weights: as many blocks as a large one, hardly any bytes in each."""
import json
import pathlib
import random
import struct

HIDDEN, HEADS, KV_HEADS, MLP, VOCAB = 64, 4, 2, 176, 256


def write_model(folder: pathlib.Path, n_blocks: int) -> None:
    """Writes it into `folder`."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": MLP, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "num_hidden_layers": n_blocks, "vocab_size": VOCAB, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    }
    keys = HIDDEN // HEADS * KV_HEADS
    shapes = {"model.embed_tokens.weight": [VOCAB, HIDDEN], "model.norm.weight": [HIDDEN], "lm_head.weight": [VOCAB, HIDDEN]}
    for block in range(n_blocks):
        name = f"model.layers.{block}."
        shapes |= {
            name + "self_attn.q_proj.weight": [HIDDEN, HIDDEN], name + "self_attn.k_proj.weight": [keys, HIDDEN],
            name + "self_attn.v_proj.weight": [keys, HIDDEN], name + "self_attn.o_proj.weight": [HIDDEN, HIDDEN],
            name + "mlp.gate_proj.weight": [MLP, HIDDEN], name + "mlp.up_proj.weight": [MLP, HIDDEN],
            name + "mlp.down_proj.weight": [HIDDEN, MLP], name + "input_layernorm.weight": [HIDDEN],
            name + "post_attention_layernorm.weight": [HIDDEN],
        }
    header, body, rng = {}, bytearray(), random.Random(7)
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        # bfloat16 is the upper half of float32.
        values = (struct.pack("<f", 1.0 if len(shape) == 1 else rng.gauss(0, 0.05))[2:] for _ in range(count))
        data = b"".join(values)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
