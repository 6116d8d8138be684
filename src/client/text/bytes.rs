//! Which bytes each token of a vocabulary stands for. Needed where text is constrained token by token; decoding knows
//! whole sequences only.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::Tokenizer;

/// How a vocabulary spells bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Each byte as a character of its own (GPT-2's `bytes_to_unicode`).
    ByteLevel,
    /// Text, with `▁` for spaces and `<0xAB>` for bytes (SentencePiece).
    Sentence,
}

/// What begins a special token, so that no text can spell one.
const SPECIAL: u8 = 0xff;

impl Spelling {
    /// As the decoder of a `tokenizer.json` says; `None` if tokens are not simply put one behind the other.
    pub(super) fn of(tokenizer_json: &[u8]) -> Option<Self> {
        let json: Value = serde_json::from_slice(tokenizer_json).ok()?;
        let decoder = json.get("decoder")?;
        let steps: Vec<&Value> = match decoder["decoders"].as_array() {
            Some(steps) => steps.iter().collect(),
            None => vec![decoder],
        };
        let has = |kind: &str| steps.iter().any(|step| step["type"] == kind);
        if has("ByteLevel") {
            Some(Self::ByteLevel)
        } else if has("ByteFallback") || has("Metaspace") {
            Some(Self::Sentence)
        } else {
            None
        }
    }

    /// The bytes of the tokens `0..vocab_size`; nothing for ids that are no token.
    pub(super) fn bytes(self, tokenizer: &Tokenizer, vocab_size: usize) -> Vec<Vec<u8>> {
        let characters = character_bytes();
        let added = tokenizer.get_added_tokens_decoder();
        (0..vocab_size as u32)
            .map(|id| {
                if let Some(token) = added.get(&id) {
                    let text = token.content.as_bytes();
                    return if token.special {
                        [&[SPECIAL], text].concat()
                    } else {
                        text.to_vec()
                    };
                }
                let Some(token) = tokenizer.id_to_token(id) else {
                    return Vec::new();
                };
                match self {
                    Self::ByteLevel => token.chars().filter_map(|c| characters.get(&c).copied()).collect(),
                    Self::Sentence => match one_byte(&token) {
                        Some(byte) => vec![byte],
                        None => token.replace('▁', " ").into_bytes(),
                    },
                }
            })
            .collect()
    }
}

/// `<0xAB>`.
fn one_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

/// Printable bytes stand for themselves, the others for the characters from U+0100 on, in their order.
fn character_bytes() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut next = '\u{100}'..;
    (0..=u8::MAX)
        .filter_map(|byte| {
            let character = if printable(byte) {
                Some(char::from(byte))
            } else {
                next.next()
            };
            Some((character?, byte))
        })
        .collect()
}
