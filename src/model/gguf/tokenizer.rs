//! The tokenizer in a GGUF file as the `tokenizer.json` that does the same: byte-level BPE ("gpt2") and SentencePiece's BPE
//! ("llama"). It turns no text into tokens itself.

use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::{
    GgufError, Header,
    config::{numbers, texts},
};

/// `enum llama_token_type`: of special tokens, and of texts that are never taken apart.
pub(super) const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

/// How texts are cut before byte-level BPE (the tokenizer.json of Llama 3, Qwen 2, Mistral Nemo and Phi-4 mini).
const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN_WORDS: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O_WORDS: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What stands for a space in SentencePiece's pieces.
const SPACE: &str = "\u{2581}";

pub(super) fn json(header: &Header) -> Result<Json, GgufError> {
    let kind = header.text("tokenizer.ggml.model").unwrap_or("none");
    let tokens = texts(header, "tokenizer.ggml.tokens").ok_or_else(|| missing("tokenizer.ggml.tokens"))?;
    let (mut tokenizer, starts_text) = match kind {
        "gpt2" => byte_level(header, &tokens)?,
        "llama" => (sentence_piece(header, &tokens)?, true),
        other => {
            return Err(GgufError::Tokenizer { kind: other.to_owned() });
        }
    };
    tokenizer["version"] = "1.0".into();
    tokenizer["added_tokens"] = added_tokens(header, &tokens);
    let with_start = header.bool("tokenizer.ggml.add_bos_token").unwrap_or(starts_text);
    let start = header.integer("tokenizer.ggml.bos_token_id").filter(|_| with_start);
    let start = start.and_then(|id| Some((id, *tokens.get(usize::try_from(id).ok()?)?)));
    if let Some((id, token)) = start {
        tokenizer["post_processor"] = starting_with(id, token);
    }
    Ok(tokenizer)
}

fn missing(key: &str) -> GgufError {
    GgufError::Missing { key: key.to_owned() }
}

/// With whether texts begin with a token when the file does not say.
fn byte_level(header: &Header, tokens: &[&str]) -> Result<(Json, bool), GgufError> {
    let merges = texts(header, "tokenizer.ggml.merges").ok_or_else(|| missing("tokenizer.ggml.merges"))?;
    let pre = header.text("tokenizer.ggml.pre").unwrap_or("default");
    let (pre_tokenizer, keeps_words) = cut(pre).ok_or_else(|| GgufError::Tokenizer { kind: pre.to_owned() })?;
    let model = json!({
        "type": "BPE",
        "vocab": vocabulary(tokens),
        "merges": merges,
        "ignore_merges": keeps_words,
    });
    let tokenizer = json!({"model": model, "pre_tokenizer": pre_tokenizer, "decoder": bytes(true)});
    Ok((tokenizer, keeps_words))
}

/// How texts are cut where the file calls it `pre` (llama.cpp's `llama-vocab.cpp`, `tokenizer_pre`), and whether words that are
/// tokens are taken as such and texts begin with a token: the same kinds do both.
fn cut(pre: &str) -> Option<(Json, bool)> {
    let sequence = |first: Json, cuts_words| json!({"type": "Sequence", "pretokenizers": [first, bytes(cuts_words)]});
    let words = |words: &str| {
        let split = json!({"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": false});
        sequence(split, false)
    };
    Some(match pre {
        "llama-bpe" | "llama3" | "llama-v3" => (words(LLAMA3_WORDS), true),
        "dbrx" | "smaug-bpe" => (words(LLAMA3_WORDS), false),
        "qwen2" | "deepseek-r1-qwen" => (words(QWEN2_WORDS), false),
        "tekken" => (words(TEKKEN_WORDS), true),
        "gpt-4o" => (words(GPT4O_WORDS), false),
        "gpt-2" | "default" => (bytes(true), false),
        "smollm" => (
            sequence(json!({"type": "Digits", "individual_digits": true}), true),
            false,
        ),
        _ => return None,
    })
}

fn bytes(cuts_words: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": cuts_words})
}

fn sentence_piece(header: &Header, tokens: &[&str]) -> Result<Json, GgufError> {
    let scores = numbers(header, "tokenizer.ggml.scores").ok_or_else(|| missing("tokenizer.ggml.scores"))?;
    let with_space = header.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let to_space = json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "});
    let from_space = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let mut normalizers = vec![from_space];
    let mut decoders = vec![to_space, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if with_space {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = header.integer("tokenizer.ggml.unknown_token_id").unwrap_or(0);
    let unknown = usize::try_from(unknown).ok().and_then(|id| tokens.get(id));
    let model = json!({
        "type": "BPE",
        "vocab": vocabulary(tokens),
        "merges": merges_by_score(tokens, &scores),
        "unk_token": unknown,
        "fuse_unk": true,
        "byte_fallback": true,
    });
    Ok(json!({
        "model": model,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "decoder": {"type": "Sequence", "decoders": decoders},
    }))
}

fn vocabulary(tokens: &[&str]) -> serde_json::Map<String, Json> {
    let ids = tokens.iter().enumerate();
    ids.map(|(id, token)| ((*token).to_owned(), Json::from(id))).collect()
}

/// SentencePiece keeps scores of pieces where BPE has an order of merges: better pieces are put together first, of any two
/// that are pieces themselves (transformers' `convert_slow_tokenizer.py: generate_merges`).
fn merges_by_score(tokens: &[&str], scores: &[f64]) -> Vec<[String; 2]> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    let mut merges: Vec<(f64, &str, &str)> = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        let splits = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let mut local: Vec<(usize, usize, &str, &str)> = splits
            .filter_map(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?, left, right)))
            .collect();
        local.sort_unstable_by_key(|(left, right, ..)| (*left, *right));
        merges.extend(local.into_iter().map(|(_, _, left, right)| (*score, left, right)));
    }
    let length = |text: &str| text.chars().count();
    merges.sort_by(|a, b| {
        let by_score = b.0.total_cmp(&a.0);
        by_score.then_with(|| (length(b.1), length(b.2)).cmp(&(length(a.1), length(a.2))))
    });
    let texts = merges
        .into_iter()
        .map(|(_, left, right)| [left.to_owned(), right.to_owned()]);
    texts.collect()
}

fn added_tokens(header: &Header, tokens: &[&str]) -> Json {
    let kinds = numbers(header, "tokenizer.ggml.token_type").unwrap_or_default();
    let added = tokens.iter().zip(kinds).enumerate().filter_map(|(id, (token, kind))| {
        let is_special = kind == CONTROL;
        (is_special || kind == USER_DEFINED).then(|| {
            json!({
                "id": id, "content": token, "special": is_special, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false,
            })
        })
    });
    added.collect()
}

fn starting_with(id: u64, token: &str) -> Json {
    let start = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
    json!({
        "type": "TemplateProcessing",
        "single": [start, text("A")],
        "pair": [start, text("A"), start, text("B")],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}
