//! What models of each family write, whole and in pieces of every size.

use super::*;

fn names() -> Vec<String> {
    ["get_weather", "add", "add_all"].map(str::to_owned).to_vec()
}

/// The text, and the calls with their arguments.
fn read(answer: &str, size: usize) -> (String, Vec<(String, String)>) {
    read_with(CallFinder::new(names(), usize::MAX), answer, size)
}

fn read_with(mut finder: CallFinder, answer: &str, size: usize) -> (String, Vec<(String, String)>) {
    let characters: Vec<char> = answer.chars().collect();
    let mut pieces = Vec::new();
    for part in characters.chunks(size) {
        pieces.extend(finder.push(&part.iter().collect::<String>()));
    }
    pieces.extend(finder.finish());
    let (mut text, mut calls) = (String::new(), Vec::new());
    for piece in pieces {
        match piece {
            Piece::Text(more) => text.push_str(&more),
            Piece::Call { name } => calls.push((name, String::new())),
            Piece::Arguments(more) => calls.last_mut().unwrap().1.push_str(&more),
        }
    }
    assert_eq!(calls.len(), finder.n_calls());
    (text, calls)
}

fn check(answer: &str, text: &str, calls: &[(&str, &str)]) {
    let calls: Vec<_> = calls.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    for size in [1, 2, 3, 7, 1000] {
        assert_eq!(
            read(answer, size),
            (text.to_owned(), calls.clone()),
            "{answer} by {size}"
        );
    }
}

#[test]
fn calls_of_hermes_and_qwen() {
    check(
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>",
        "",
        &[("get_weather", "{\"city\": \"Bern\"}")],
    );
    check(
        "Let me look.\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": [1, {\"b\": \"}\\\"\"}]}}\n</tool_call>\n\
         <tool_call>\n{\"name\": \"add\", \"arguments\": {}}\n</tool_call>",
        "Let me look.\n",
        &[("add", "{\"a\": [1, {\"b\": \"}\\\"\"}]}"), ("add", "{}")],
    );
}

#[test]
fn calls_of_llama() {
    check(
        "{\"name\": \"add\", \"parameters\": {\"a\": 1}}",
        "",
        &[("add", "{\"a\": 1}")],
    );
    check(
        "<|python_tag|>{\"type\": \"function\", \"name\": \"add\", \"parameters\": {\"a\": 1}}; {\"name\": \"add\", \"parameters\": {\"a\": 2}}",
        "",
        &[("add", "{\"a\": 1}"), ("add", "{\"a\": 2}")],
    );
    check(
        "{\"type\": \"function\", \"function\": {\"name\": \"add\", \"parameters\": {\"a\": 1}}}",
        "",
        &[("add", "{\"a\": 1}")],
    );
}

#[test]
fn calls_of_mistral() {
    for tag in ["[TOOL_CALLS]", "[TOOL_CALLS] ", " ", ""] {
        check(
            &format!(
                "{tag}[{{\"name\": \"add\", \"arguments\": {{\"a\": 1}}}}, {{\"name\": \"add_all\", \"arguments\": {{}}}}]"
            ),
            "",
            &[("add", "{\"a\": 1}"), ("add_all", "{}")],
        );
        check(
            &format!("{tag}add_all[ARGS]{{\"a\": 1}}"),
            "",
            &[("add_all", "{\"a\": 1}")],
        );
        check(&format!("{tag}add{{\"a\": \"}}\"}}"), "", &[("add", "{\"a\": \"}\"}")]);
        let calls = format!("{tag}add[CALL_ID]a1B2c3D4e[ARGS]{{}}[TOOL_CALLS]add_all[ARGS]{{\"a\": 1}}");
        check(&calls, "", &[("add", "{}"), ("add_all", "{\"a\": 1}")]);
    }
}

#[test]
fn arguments_before_the_name_as_text_or_not_at_all() {
    check(
        "{\"arguments\": {\"a\": 1}, \"name\": \"add\"}",
        "",
        &[("add", "{\"a\": 1}")],
    );
    check(
        "{\"name\": \"add\", \"arguments\": \"{\\\"a\\\": 1}\"}",
        "",
        &[("add", "{\"a\": 1}")],
    );
    check("{\"name\": \"add\"}", "", &[("add", "{}")]);
}

#[test]
fn tags_that_are_special_tokens_begin_calls_within_a_text() {
    let mut finder = CallFinder::new(names(), 9);
    let mut pieces = finder.push("Let me see <");
    pieces.extend(finder.push_special("[TOOL_CALLS]"));
    pieces.extend(finder.push("add"));
    pieces.extend(finder.push_special("[CALL_ID]"));
    pieces.extend(finder.push("a1B2c3D4e"));
    pieces.extend(finder.push_special("[ARGS]"));
    pieces.extend(finder.push("{}"));
    let text = |text: &str| Piece::Text(text.into());
    let arguments = Piece::Arguments("{}".into());
    assert_eq!(
        pieces,
        [
            text("Let me see "),
            text("<"),
            Piece::Call { name: "add".into() },
            arguments
        ]
    );
    // What is run by itself is no call, and the tag is not shown.
    let mut finder = CallFinder::new(names(), 9);
    assert_eq!(finder.push_special("<|python_tag|>"), []);
    assert_eq!(finder.push("print(1)"), [text("print(1)")]);
}

#[test]
fn a_call_that_is_no_json_takes_nothing_of_what_follows() {
    for broken in [
        "{\"name\": \"add\", \"arguments\": {a: 1}}",
        "{\"name\": \"add\", \"arguments\": {a: 1}",
    ] {
        let answer = format!(
            "<tool_call>{broken}</tool_call>\n<tool_call>{{\"name\": \"add_all\", \"arguments\": {{}}}}</tool_call>"
        );
        check(&answer, "", &[("add", "{a: 1}"), ("add_all", "{}")]);
    }
    let quotes = "<tool_call>{'name': 'add', 'arguments': {}}</tool_call> and more";
    check(quotes, quotes, &[]);
    check("{x} <tool_call>{\"name\": \"add\"}", "{x} ", &[("add", "{}")]);
}

#[test]
fn what_is_no_call_stays_text() {
    for text in [
        "Hello, [world] {this} is <tool> text",
        "{\"temperature\": 20}",
        "{\"name\": \"nobody\", \"arguments\": {}}",
        "add them up",
        "[1, 2, 3]",
        "{ not json",
        " leading space",
        "a < b, [TOOL",
        "{\"name\": \"ad",
        "",
    ] {
        check(text, text, &[]);
    }
}

#[test]
fn without_tools_everything_is_text_at_once() {
    let mut finder = CallFinder::new(Vec::new(), 1);
    assert_eq!(finder.push("<tool_call>"), [Piece::Text("<tool_call>".into())]);
    assert_eq!(finder.finish(), []);
}

#[test]
fn a_call_that_is_cut_off_is_told_as_far_as_it_came() {
    check(
        "{\"name\": \"add\", \"arguments\": {\"a\": 1",
        "",
        &[("add", "{\"a\": 1")],
    );
    let second = "<tool_call>{\"name\": \"add\", \"arguments\": {}}</tool_call>\n<tool_call>\n{\"na";
    check(second, "", &[("add", "{}")]);
}

#[test]
fn arguments_come_while_they_are_written() {
    let mut finder = CallFinder::new(names(), 1);
    assert_eq!(finder.push("<tool_call>\n{\"name\": \"add\", \"arg"), []);
    let begun = finder.push("uments\": {\"a\"");
    let expected = [Piece::Call { name: "add".into() }, Piece::Arguments("{\"a\"".into())];
    assert_eq!(begun, expected);
    assert_eq!(finder.push(": 1}}"), [Piece::Arguments(": 1}".into())]);
}

#[test]
fn one_call_is_enough_where_only_one_is_wanted() {
    let finder = CallFinder::new(names(), 1);
    let answer = "{\"name\": \"add\", \"parameters\": {}}; {\"name\": \"add\", \"parameters\": {}}";
    let (text, calls) = read_with(finder, answer, 4);
    assert_eq!((text.as_str(), calls.len()), ("", 1));
}
