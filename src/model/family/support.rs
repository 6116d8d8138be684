//! What is supported of each family, in words: the table in the README, which the tests compare with this.

use super::Family;

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Support {
    /// For people.
    pub name: &'static str,
    /// `model_type` of `config.json`.
    pub model_types: &'static [&'static str],
    /// Some of the models.
    pub models: &'static str,
    /// The fixtures under `protocol/vectors/` that are run.
    pub fixtures: &'static [&'static str],
    /// What its checkpoints may have that is refused or computed otherwise; empty for nothing known.
    pub missing: &'static str,
}

impl Family {
    /// What is supported of it.
    #[expect(clippy::too_many_lines, reason = "a table")]
    pub const fn support(self) -> Support {
        match self {
            Self::Llama => Support {
                name: "Llama",
                model_types: &["llama"],
                models: "Llama 1–3.3, TinyLlama, SmolLM 1 and 2, Yi, Vicuna, StableBeluga, DeepSeek-R1-Distill-Llama",
                fixtures: &["petals/tiny-llama", "petals/tiny-llama31", "sepal/llama_blocks.json"],
                missing: "",
            },
            Self::Mistral => Support {
                name: "Mistral",
                model_types: &["mistral", "mistral3"],
                models: "Mistral 7B, Nemo, Small 2 to 3.2 and Large 2, Zephyr",
                fixtures: &["families/mistral"],
                missing: "images, Ministral 3",
            },
            Self::Mixtral => Support {
                name: "Mixtral",
                model_types: &["mixtral"],
                models: "Mixtral 8x7B and 8x22B",
                fixtures: &["petals/tiny-mixtral", "families/mixtral"],
                missing: "",
            },
            Self::Qwen2 => Support {
                name: "Qwen 2",
                model_types: &["qwen2"],
                models: "Qwen 2 and 2.5, QwQ, DeepSeek-R1-Distill-Qwen",
                fixtures: &["families/qwen2"],
                missing: "Qwen2-MoE",
            },
            Self::Qwen3 => Support {
                name: "Qwen 3",
                model_types: &["qwen3"],
                models: "Qwen 3 0.6B to 32B",
                fixtures: &["families/qwen3"],
                missing: "",
            },
            Self::Qwen3Moe => Support {
                name: "Qwen 3 MoE",
                model_types: &["qwen3_moe"],
                models: "Qwen 3 30B-A3B and 235B-A22B, Qwen3-Coder",
                fixtures: &["families/qwen3-moe", "families/qwen3-moe-unnormed"],
                missing: "blocks without experts among those with",
            },
            Self::Gemma2 => Support {
                name: "Gemma 2",
                model_types: &["gemma2"],
                models: "Gemma 2 2B, 9B and 27B",
                fixtures: &["families/gemma2"],
                missing: "",
            },
            Self::Gemma3 => Support {
                name: "Gemma 3",
                model_types: &["gemma3_text", "gemma3"],
                models: "Gemma 3 270M to 27B",
                fixtures: &["families/gemma3"],
                missing: "images",
            },
            Self::Phi2 => Support {
                name: "Phi-2",
                model_types: &["phi"],
                models: "Phi-1, 1.5 and 2",
                fixtures: &["families/phi2"],
                missing: "norms of heads, which no published model has",
            },
            Self::Phi3 => Support {
                name: "Phi-3",
                model_types: &["phi3"],
                models: "Phi-3 and 3.5 mini and medium, Phi-4, Phi-4 mini",
                fixtures: &["families/phi3", "families/phi3-long"],
                missing: "keys cached before a session outgrows the original context keep their angles, where transformers computes them anew",
            },
            Self::Falcon => Support {
                name: "Falcon",
                model_types: &["falcon"],
                models: "Falcon 7B, 11B, 40B and 180B, Falcon RW",
                fixtures: &[
                    "petals/tiny-falcon-7b",
                    "petals/tiny-falcon-new",
                    "petals/tiny-falcon-rw-alibi",
                    "families/falcon-11b",
                    "families/falcon-rw",
                ],
                missing: "configurations from before transformers had Falcon (`RefinedWeb`)",
            },
            Self::Bloom => Support {
                name: "BLOOM",
                model_types: &["bloom"],
                models: "BLOOM, BLOOMZ",
                fixtures: &["petals/tiny-bloom", "families/bloom"],
                missing: "residuals taken after the norm, which no published model has",
            },
            Self::GptOss => Support {
                name: "GPT-OSS",
                model_types: &["gpt_oss"],
                models: "gpt-oss-20b and 120b",
                fixtures: &["families/gpt-oss"],
                missing: "weights that were unpacked from MXFP4; they take 16 bits in memory (8 or 4 if quantised)",
            },
        }
    }
}
