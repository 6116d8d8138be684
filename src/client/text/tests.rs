//! Text that appears token by token must be the text that decoding everything at once gives.

use serde_json::json;

use super::*;
use crate::model::{
    Blocks, Ends, HubOptions, ModelSource, Precision, Sampler, Seen, WeightDType, WeightFormat, testing::engine,
};

/// A tokenizer like Llama 2's: words after `▁`, every byte as a fallback, and a decoder that drops the first space.
fn codec() -> TextCodec {
    let mut vocab = serde_json::Map::new();
    let specials = ["<unk>", "<s>", "</s>"].map(str::to_owned);
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let words = ["▁", "a", "b", "▁a", "▁b", "ab", "▁ab", "S"].map(str::to_owned);
    for token in specials.into_iter().chain(bytes).chain(words) {
        let id = vocab.len();
        vocab.insert(token, json!(id));
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let json = json!({
        "version": "1.0",
        "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": ["▁ a", "▁ b", "a b", "▁a b"]},
    });
    TextCodec::from_json(json.to_string().as_bytes()).unwrap()
}

fn byte(byte: u8) -> u32 {
    3 + u32::from(byte)
}

fn word(codec: &TextCodec, token: &str) -> u32 {
    codec.tokenizer.token_to_id(token).unwrap()
}

/// All pieces put together, and whether a stop string ended the text.
fn streamed(codec: &TextCodec, prompt: &[u32], tokens: &[u32], stops: &[&str]) -> (String, bool) {
    let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
    let mut stream = codec.stream(prompt, &stops);
    let mut text = String::new();
    for &token in tokens {
        let piece = stream.push(token).unwrap();
        text.push_str(&piece.text);
        if piece.stopped.is_some() {
            return (text, true);
        }
    }
    let piece = stream.finish().unwrap();
    (text + &piece.text, piece.stopped.is_some())
}

#[test]
fn a_prompt_gets_its_special_tokens_and_is_never_cut() {
    let codec = codec();
    let ids = codec.encode("ab a b").unwrap();
    assert_eq!(ids, [1, word(&codec, "▁ab"), word(&codec, "▁a"), word(&codec, "▁b")]);
    assert_eq!(codec.decode(&ids).unwrap(), "ab a b");
}

#[test]
fn the_space_before_the_first_output_word_is_kept() {
    let codec = codec();
    let prompt = codec.encode("ab").unwrap();
    let output = [word(&codec, "▁a"), word(&codec, "▁b")];
    assert_eq!(streamed(&codec, &prompt, &output, &[]).0, " a b");
}

#[test]
fn a_character_of_several_tokens_appears_once_it_is_complete() {
    let codec = codec();
    let prompt = codec.encode("a").unwrap();
    let mut stream = codec.stream(&prompt, &[]);
    let shown: Vec<String> = "é🌸"
        .bytes()
        .map(|part| stream.push(byte(part)).unwrap().text)
        .collect();
    assert_eq!(shown, ["", "é", "", "", "", "🌸"]);
}

#[test]
fn an_unfinished_character_at_the_end_is_shown_as_broken() {
    let codec = codec();
    let prompt = codec.encode("a").unwrap();
    let (text, stopped) = streamed(&codec, &prompt, &[word(&codec, "b"), byte(0xf0), byte(0x9f)], &[]);
    assert_eq!((text.trim_end_matches(REPLACEMENT), stopped), ("b", false));
    assert!(text.ends_with(REPLACEMENT));
}

#[test]
fn bytes_that_are_no_character_do_not_hold_the_text_back_for_ever() {
    let codec = codec();
    let prompt = codec.encode("a").unwrap();
    let mut stream = codec.stream(&prompt, &[]);
    let shown: String = (0..20).map(|_| stream.push(byte(0xff)).unwrap().text).collect();
    assert!(shown.chars().count() >= 15, "only {shown:?} was shown");
    assert!(stream.window.len() <= 2 * (MAX_PENDING_TOKENS + 1) + CONTEXT_TOKENS);
}

#[test]
fn special_tokens_are_not_part_of_the_text() {
    let codec = codec();
    let prompt = codec.encode("a").unwrap();
    assert_eq!(streamed(&codec, &prompt, &[word(&codec, "b"), 2], &[]).0, "b");
}

#[test]
fn pieces_put_together_are_the_text_decoded_at_once() {
    let codec = codec();
    let prompt = codec.encode("ab").unwrap();
    for seed in 0..200_u32 {
        // Words with whole characters between them, in an order that the seed decides.
        let mut output = Vec::new();
        for step in 0..12 {
            match seed.wrapping_mul(2_654_435_761).rotate_left(step) % 5 {
                0 => output.push(word(&codec, "▁a")),
                1 => output.push(word(&codec, "b")),
                2 => output.extend("ü".bytes().map(byte)),
                3 => output.extend("漢".bytes().map(byte)),
                _ => output.extend("🌸".bytes().map(byte)),
            }
        }
        let whole = codec.decode(&[&prompt[..], &output[..]].concat()).unwrap();
        assert_eq!(
            streamed(&codec, &prompt, &output, &[]).0,
            whole.strip_prefix("ab").unwrap(),
            "seed {seed}"
        );
    }
}

#[test]
fn a_stop_string_across_tokens_ends_the_text_before_it() {
    let codec = codec();
    let prompt = codec.encode("a").unwrap();
    let [s, t, a, b] = [word(&codec, "S"), byte(b'T'), word(&codec, "a"), word(&codec, "▁b")];
    let output = [a, b, s, t, a, b];
    assert_eq!(streamed(&codec, &prompt, &output, &["STa"]), ("a b".to_owned(), true));
    assert_eq!(
        streamed(&codec, &prompt, &output, &["STb"]),
        ("a bSTa b".to_owned(), false)
    );
    assert_eq!(
        streamed(&codec, &prompt, &output, &["Ta", " bS", ""]),
        ("a".to_owned(), true),
        "the first in the text wins, an empty one is ignored"
    );
}

#[test]
fn text_that_cannot_begin_a_stop_string_is_not_held_back() {
    let mut stops = StopStrings::new(&["END".to_owned(), "NO".to_owned()]);
    let shown = ["xE", "Ny", "EN", "O", "z"].map(|text| stops.push(text).text);
    assert_eq!(shown, ["x", "ENy", "", "E", ""]);
    assert_eq!(stops.stopped.as_deref(), Some("NO"));
}

#[test]
fn a_file_that_is_no_tokenizer_is_refused() {
    assert!(matches!(TextCodec::from_json(b"{}"), Err(TextError::Load(_))));
}

/// Greedy answer of the built-in model, with all its blocks in place of a swarm.
fn answer(question: &str, precision: impl Into<Precision>) -> String {
    answer_of("demo", question, precision)
}

fn answer_of(model: &str, question: &str, precision: impl Into<Precision>) -> String {
    let precision = precision.into();
    let offline = HubOptions::from_variables(|_| None);
    let source = ModelSource::resolve(model, &offline).unwrap();
    let n_blocks = source.config().n_blocks;
    let blocks = Blocks::load(
        &source.files_for_span(0..n_blocks).unwrap(),
        0..n_blocks,
        precision,
        engine(),
    )
    .unwrap();
    let ends = Ends::load(&source.files_for_ends().unwrap(), precision.dtype, &engine()).unwrap();
    let codec = TextCodec::from_json(&source.tokenizer_json().unwrap()).unwrap();
    let sampler = Sampler::new(source.generation_config().sampling()).unwrap();
    let mut history = codec.encode(question).unwrap();
    let mut stream = codec.stream(&history, &[]);
    let mut cache = blocks.new_cache(n_blocks as usize, 1, 512);
    let (mut position, mut text) = (0, String::new());
    while history.len() < 512 {
        let mut x = ends.embed(&history[position..]).unwrap();
        for block in 0..n_blocks {
            blocks
                .step(block, &mut cache, block as usize, &mut x, position)
                .unwrap();
        }
        position = history.len();
        let logits = ends.logits(&x.data[x.data.len() - x.width..]).unwrap();
        let seen = Seen {
            prompt: &history,
            output: &[],
        };
        let token = sampler.next(&logits, seen, None).unwrap().token;
        if source.generation_config().eos_token_ids.contains(&token) {
            break;
        }
        history.push(token);
        text.push_str(&stream.push(token).unwrap().text);
    }
    text + &stream.finish().unwrap().text
}

#[test]
fn the_built_in_model_answers_in_every_precision() {
    for dtype in [WeightDType::F32, WeightDType::Bf16, WeightDType::F16] {
        assert_eq!(answer("What is 2+2?", dtype), "\n2 + 2 = 4.");
    }
    for weights in WeightFormat::ALL.into_iter().filter(|format| format.dtype().is_none()) {
        let dtype = WeightDType::F32;
        let found = answer("What is 2+2?", Precision { weights, dtype });
        assert_eq!(found, "\n2 + 2 = 4.", "{}", weights.as_str());
    }
    assert_eq!(
        answer("How much is seven plus five?", WeightDType::F32),
        "\n7 + 5 = 12."
    );
    assert_eq!(
        answer("What is the capital of France?", WeightDType::F32),
        "\nThe capital of France is Paris."
    );
}

#[test]
fn a_gguf_file_answers_as_the_model_it_is_made_of_and_brings_its_tokenizer() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("demo.gguf");
    std::fs::write(&path, crate::model::demo_gguf()).unwrap();
    let name = path.to_str().unwrap();
    let question = "What is 2+2?";
    assert_eq!(
        answer_of(name, question, WeightDType::Bf16),
        answer(question, WeightDType::Bf16)
    );
    let offline = HubOptions::from_variables(|_| None);
    let json = |model| ModelSource::resolve(model, &offline).unwrap().tokenizer_json().unwrap();
    let [found, expected] = [name, "demo"].map(|model| TextCodec::from_json(&json(model)).unwrap());
    for text in [
        "What is 12+345?",
        "  two  spaces\n\nand lines",
        "naïve 日本 <eos> 🙂",
        "",
    ] {
        let ids = expected.encode(text).unwrap();
        assert_eq!(found.encode(text).unwrap(), ids, "{text}");
        assert_eq!(found.decode(&ids).unwrap(), expected.decode(&ids).unwrap());
    }
}

#[test]
fn pieces_of_a_gguf_file_are_put_together_by_their_scores() {
    let tokens = [
        "<unk>",
        "<s>",
        "</s>",
        "<0x21>",
        "\u{2581}",
        "a",
        "b",
        "ab",
        "\u{2581}a",
        "\u{2581}ab",
        "ba",
    ];
    let scores = [0.0, 0.0, 0.0, 0.0, -10.0, -11.0, -12.0, -2.0, -1.0, -3.0, -0.5];
    let json = crate::model::sentence_piece_json(&tokens, &scores);
    let codec = TextCodec::from_json(&json).unwrap();
    // "ba" is the best piece, then a space before "a", which is put together with a "b" that is left.
    assert_eq!(codec.encode("ab aba").unwrap(), [1, 9, 8, 10]);
    assert_eq!(codec.encode("!").unwrap(), [1, 4, 3]);
    assert_eq!(codec.decode(&[1, 9, 8, 10, 3]).unwrap(), "ab aba!");
}

#[test]
fn texts_are_cut_as_the_kind_of_a_gguf_tokenizer_asks() {
    let text = "I'LL say HelloWorld's 12345 a/b!\n/";
    let one_digit = ["1", "2", "3", "4", "5"];
    let three_digits = ["123", "45"];
    let llama = ["I", "'LL", " say", " HelloWorld", "'s", " "];
    let tekken = ["I", "'LL", " say", " Hello", "World", "'s", " "];
    let gpt_4o = ["I'LL", " say", " Hello", "World's", " "];
    let [apart, together] = [[" a", "/b", "!\n", "/"].as_slice(), &[" a", "/b", "!\n/"]];
    for (pre, words) in [
        ("llama-v3", [&llama[..], &three_digits, apart].concat()),
        ("dbrx", [&llama[..], &three_digits, apart].concat()),
        ("qwen2", [&llama[..], &one_digit, apart].concat()),
        ("deepseek-r1-qwen", [&llama[..], &one_digit, apart].concat()),
        ("tekken", [&tekken[..], &one_digit, together].concat()),
        ("gpt-4o", [&gpt_4o[..], &three_digits, together].concat()),
    ] {
        let tokenizer = tokenizers::Tokenizer::from_bytes(crate::model::byte_level_json(pre)).unwrap();
        let mut found = tokenizers::PreTokenizedString::from(text);
        let cutter = tokenizer.get_pre_tokenizer().unwrap();
        tokenizers::PreTokenizer::pre_tokenize(cutter, &mut found).unwrap();
        let (original, bytes) = (tokenizers::OffsetReferential::Original, tokenizers::OffsetType::Byte);
        let found = found.get_splits(original, bytes);
        let found: Vec<&str> = found.iter().map(|(_, (from, to), _)| &text[*from..*to]).collect();
        assert_eq!(found, words, "{pre}");
    }
}

#[test]
fn the_bytes_of_all_tokens_put_together_are_the_text() {
    let demo = TextCodec::from_json(include_bytes!("../../model/demo/tokenizer.json")).unwrap();
    let words = demo.token_bytes(520).unwrap();
    let text = "What is 7 plus 12? Übung 🌸\n";
    let ids = demo.encode_rendered(text).unwrap();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| words[*id as usize].clone()).collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), text);
    assert_eq!(words[1], b"\xff<bos>");
    assert_eq!(words.len(), 520);
    assert!(words[519].is_empty());
    let sentences = codec();
    let words = sentences.token_bytes(270).unwrap();
    assert_eq!(words[word(&sentences, "▁a") as usize], b" a");
    assert_eq!(words[byte(0xf0) as usize], [0xf0]);
}
