//! What constraints allow, written by a writer who knows no better than to take the first token that may follow.

use super::*;

const END: u32 = 2;
const VOCABULARY: usize = 512;

fn codec() -> TextCodec {
    TextCodec::from_json(include_bytes!("../../model/demo/tokenizer.json")).unwrap()
}

fn constraints() -> Constraints {
    Constraints::new(&codec(), VOCABULARY, &[END]).unwrap()
}

/// Whether `text` is allowed from its first token to its last, and may end there.
fn takes(constraint: &Constraint, text: &str) -> bool {
    let mut constraint = constraint.afresh();
    for token in codec().encode_rendered(text).unwrap() {
        if constraint.is_complete() || !constraint.allowed(&[END]).unwrap().has(token) {
            return false;
        }
        constraint.accept(token).unwrap();
    }
    constraint.is_complete() || constraint.allowed(&[END]).unwrap().has(END)
}

#[test]
fn a_schema_is_kept_and_nothing_else_is_allowed() {
    let schema = json!({
        "type": "object",
        "properties": {"sum": {"type": "integer"}, "kind": {"enum": ["small", "large"]}},
        "required": ["sum", "kind"], "additionalProperties": false,
    });
    let constraint = constraints().json_schema(&schema).unwrap();
    assert!(takes(&constraint, r#"{"sum": 4, "kind": "small"}"#));
    assert!(takes(&constraint, "{\n  \"sum\": -17,\n  \"kind\": \"large\"\n}"));
    for wrong in [
        r#"{"sum": 4}"#,
        r#"{"sum": "4", "kind": "small"}"#,
        "4",
        r#"{"sum": 4, "kind": "huge"}"#,
        "",
    ] {
        assert!(!takes(&constraint, wrong), "{wrong}");
    }
    assert!(!takes(
        &constraint,
        &format!("{{{}\"sum\": 4, \"kind\": \"small\"}}", " ".repeat(30))
    ));
}

#[test]
fn a_regular_expression_is_kept() {
    let constraint = constraints().regex(r"[0-9]{2,3} (cats|dogs)").unwrap();
    assert!(takes(&constraint, "12 cats"));
    assert!(takes(&constraint, "123 dogs"));
    for wrong in ["1 cats", "1234 cats", "12 birds", "12 cats and"] {
        assert!(!takes(&constraint, wrong), "{wrong}");
    }
}

#[test]
fn json_mode_takes_objects() {
    let constraint = constraints().json_object().unwrap();
    assert!(takes(&constraint, r#"{"a": [1, null, {"b": "é"}]}"#));
    assert!(!takes(&constraint, "[1]"));
}

#[test]
fn what_cannot_be_kept_is_refused_before_anything_is_written() {
    assert!(matches!(constraints().regex("(("), Err(ConstraintError::Grammar(_))));
    let error = constraints().json_schema(&json!({"type": "nothing"})).unwrap_err();
    assert!(
        error.to_string().starts_with("the output cannot be constrained: "),
        "{error}"
    );
    assert!(matches!(
        Constraints::new(&codec(), VOCABULARY, &[]),
        Err(ConstraintError::NoEnd)
    ));
    let words = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"0": 0}, "unk_token": "0"},
    });
    let words = TextCodec::from_json(words.to_string().as_bytes()).unwrap();
    let error = Constraints::new(&words, 1, &[0]).unwrap_err();
    assert!(matches!(error, ConstraintError::Tokenizer(_)), "{error}");
}

#[test]
fn special_tokens_are_no_text() {
    let mut constraint = constraints().regex("(?s:.*)").unwrap();
    let allowed = constraint.allowed(&[END]).unwrap();
    assert!(allowed.has(END) && !allowed.has(1) && !allowed.has(0) && allowed.has(10));
    assert!(!allowed.has(VOCABULARY as u32 + 7));
}
