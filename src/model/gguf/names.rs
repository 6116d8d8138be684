//! What the tensors that transformers names are called in a GGUF file, and what llama.cpp did to them
//! (`gguf-py/gguf/tensor_mapping.py`, `convert_hf_to_gguf.py`).

use super::{GgufError, Header};

/// Where a tensor of transformers is, and what has to be undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) tensor: String,
    /// One of many in the same tensor.
    pub(super) expert: Option<usize>,
    /// The rows of so many heads are in another order.
    pub(super) interleaved_heads: Option<usize>,
    /// The file has the weights with 1 added.
    pub(super) is_one_more: bool,
}

/// How one file names its tensors.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// Llama's rows are reordered.
    heads: Option<[usize; 2]>,
    /// Gemma's norms have 1 added.
    norms_are_one_more: bool,
    has_post_norms: bool,
}

/// Suffixes of transformers' names in a block and ours in the file. The order matters: the first that fits is taken.
const BLOCK: [(&str, &str); 17] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("input_layernorm", "attn_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    // The router.
    ("mlp.gate", "ffn_gate_inp"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("post_attention_layernorm", ""),
];

/// The matrices of an expert in the names of Mixtral and of Qwen.
const EXPERT: [(&str, &str); 6] = [
    ("w1", "ffn_gate_exps"),
    ("w2", "ffn_down_exps"),
    ("w3", "ffn_up_exps"),
    ("gate_proj", "ffn_gate_exps"),
    ("down_proj", "ffn_down_exps"),
    ("up_proj", "ffn_up_exps"),
];

impl Names {
    pub(super) fn new(header: &Header) -> Result<Self, GgufError> {
        let architecture = header.text("general.architecture").unwrap_or_default();
        let heads = if architecture == "llama" {
            let count = |key: &str| header.integer(&format!("llama.attention.{key}"));
            let queries = count("head_count").ok_or_else(|| GgufError::Missing {
                key: "llama.attention.head_count".to_owned(),
            })?;
            let keys = count("head_count_kv").unwrap_or(queries);
            Some([queries, keys].map(|heads| usize::try_from(heads).unwrap_or(0)))
        } else {
            None
        };
        let is_gemma = architecture.starts_with("gemma");
        Ok(Self {
            heads,
            norms_are_one_more: is_gemma,
            has_post_norms: is_gemma && architecture != "gemma",
        })
    }

    /// `None` for names that no model of ours has.
    pub(super) fn place(&self, name: &str) -> Option<Place> {
        let (stem, kind) = name
            .rsplit_once('.')
            .filter(|(_, kind)| ["weight", "bias"].contains(kind))?;
        let found = |tensor: String| Place {
            tensor,
            expert: None,
            interleaved_heads: None,
            is_one_more: false,
        };
        let outside = match stem {
            "model.embed_tokens" => Some("token_embd"),
            "model.norm" => Some("output_norm"),
            "lm_head" => Some("output"),
            _ => None,
        };
        if let Some(outside) = outside {
            return Some(Place {
                is_one_more: self.norms_are_one_more && outside == "output_norm",
                ..found(format!("{outside}.{kind}"))
            });
        }
        let (block, stem) = stem.strip_prefix("model.layers.")?.split_once('.')?;
        let block: u32 = block.parse().ok()?;
        for folder in ["mlp.experts.", "block_sparse_moe.experts."] {
            if let Some((expert, matrix)) = stem.strip_prefix(folder).and_then(|rest| rest.split_once('.')) {
                let (_, tensor) = EXPERT.iter().find(|(usual, _)| *usual == matrix)?;
                return Some(Place {
                    expert: Some(expert.parse().ok()?),
                    ..found(format!("blk.{block}.{tensor}.{kind}"))
                });
            }
        }
        let (usual, tensor) = BLOCK.iter().find(|(usual, _)| *usual == stem)?;
        let tensor = match (*tensor, self.has_post_norms) {
            ("", true) => "post_attention_norm",
            ("", false) => "ffn_norm",
            (tensor, _) => tensor,
        };
        Some(Place {
            interleaved_heads: self.heads.and_then(|[queries, keys]| match *usual {
                "self_attn.q_proj" => Some(queries),
                "self_attn.k_proj" => Some(keys),
                _ => None,
            }),
            is_one_more: self.norms_are_one_more && tensor.ends_with("_norm"),
            ..found(format!("blk.{block}.{tensor}.{kind}"))
        })
    }
}
