//! Calls of tools in what a model writes, found while it writes. It knows no HTTP and no templates.
//!
//! ```text
//! <tool_call>{"name": …, "arguments": {…}}</tool_call>       Hermes, Qwen; with text before it
//! {"name": …, "parameters": {…}}                             Llama 3.1, several with `;` between
//! [TOOL_CALLS] [{"name": …, "arguments": {…}}]                Mistral
//! [TOOL_CALLS]name[ARGS]{…}                                   Mistral, newer, some with [CALL_ID]id before [ARGS]
//! ```
//!
//! Tags that are special tokens do not appear in the text: they are told as what they are where the tokenizer says so, and
//! calls are recognised without them at the beginning of an answer. What names no tool of the request is text, and so is what
//! begins like a call and is none. Arguments are told while they are written, so they may turn out to be no JSON.

mod object;

use self::object::{Object, Progress};

/// Where calls begin within a text.
const OPENING: [&str; 3] = ["<tool_call>", "[TOOL_CALLS]", "<|python_tag|>"];
/// What stands around and between calls besides.
const AROUND: [&str; 2] = ["</tool_call>", "<|eom_id|>"];
/// What stands between the name of a tool and its arguments: perhaps an id, then the end of both.
const BEFORE_ID: &str = "[CALL_ID]";
const BEFORE_ARGUMENTS: &str = "[ARGS]";

/// What is new in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Text for people.
    Text(String),
    /// A call begins; arguments follow.
    Call {
        /// Of the tool.
        name: String,
    },
    /// More of the last call's arguments: JSON.
    Arguments(String),
}

/// Finds calls in an answer that comes in pieces.
#[derive(Debug)]
pub(crate) struct CallFinder {
    /// Tools that there are; none: everything is text.
    names: Vec<String>,
    state: State,
    /// Not yet known to be text or call.
    held: String,
    most_calls: usize,
    n_calls: usize,
}

#[derive(Debug)]
enum State {
    /// At the beginning, after a tag, or between calls.
    Between,
    Text,
    Call(CallText),
    /// After the last call that is allowed.
    Over,
}

/// A call of which some has come.
#[derive(Debug)]
struct CallText {
    /// What stood before it and after the last text or call.
    before: String,
    object: Object,
    /// Set for calls that are written as a name and arguments.
    name: Option<String>,
    begun: bool,
    /// Bytes of the arguments that were handed out.
    told: usize,
}

impl CallFinder {
    /// For answers with calls of these tools, so many at most.
    pub(crate) fn new(names: Vec<String>, most_calls: usize) -> Self {
        let state = if names.is_empty() { State::Text } else { State::Between };
        Self {
            names,
            state,
            held: String::new(),
            most_calls,
            n_calls: 0,
        }
    }

    /// Calls that were begun.
    pub(crate) fn n_calls(&self) -> usize {
        self.n_calls
    }

    /// What is certain after more text.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if self.names.is_empty() {
            push_text(&mut pieces, text);
            return pieces;
        }
        self.held.push_str(text);
        while self.advance(&mut pieces) {}
        pieces
    }

    /// What is certain after a special token, which no text can spell.
    pub(crate) fn push_special(&mut self, token: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        match self.state {
            State::Text if !self.names.is_empty() && OPENING.contains(&token) => {
                push_text(&mut pieces, &std::mem::take(&mut self.held));
                self.state = State::Between;
            }
            State::Between if [BEFORE_ID, BEFORE_ARGUMENTS].contains(&token) => return self.push(token),
            _ => {}
        }
        pieces
    }

    /// What was held back, at the end of the answer.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut held = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.state, State::Over) {
            // After other calls it is one more that did not come to its name.
            State::Call(call) if !call.begun && self.n_calls == 0 => {
                held.insert_str(0, &(call.before + call.object.text()));
            }
            State::Call(_) | State::Over => return pieces,
            State::Between if self.n_calls > 0 => held = without_tags(&held).to_owned(),
            State::Between | State::Text => {}
        }
        push_text(&mut pieces, &held);
        pieces
    }

    /// Goes on as far as what is held allows; `false` when more has to come first.
    fn advance(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match &mut self.state {
            State::Over => {
                self.held.clear();
                false
            }
            State::Text => self.read_text(pieces),
            State::Between => self.read_between(pieces),
            State::Call(_) => self.read_call(pieces),
        }
    }

    fn read_text(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let tag = OPENING.iter().filter_map(|tag| self.held.find(tag)).min();
        if let Some(at) = tag {
            let rest = self.held.split_off(at);
            push_text(pieces, &std::mem::replace(&mut self.held, rest));
            self.state = State::Between;
            return true;
        }
        let may_begin = |at: usize| OPENING.iter().any(|tag| tag.starts_with(&self.held[at..]));
        let mut places = self.held.char_indices().map(|(at, _)| at);
        let certain = places.find(|at| may_begin(*at)).unwrap_or(self.held.len());
        let rest = self.held.split_off(certain);
        push_text(pieces, &std::mem::replace(&mut self.held, rest));
        false
    }

    fn read_between(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let rest = without_tags(&self.held);
        if rest.is_empty() || is_part_of_a_tag(rest) {
            return false;
        }
        let skipped = self.held.len() - rest.len();
        if rest.starts_with('{') {
            self.begin(skipped, None);
            return true;
        }
        for name in &self.names {
            let Some(after) = rest.strip_prefix(name.as_str()) else {
                if name.starts_with(rest) {
                    return false;
                }
                continue;
            };
            let arguments = arguments_in(after);
            if arguments.starts_with('{') {
                let (at, name) = (self.held.len() - arguments.len(), name.clone());
                self.begin(at, Some(name));
                return true;
            }
            if BEFORE_ARGUMENTS.starts_with(arguments) || BEFORE_ID.starts_with(arguments) {
                return false;
            }
        }
        let skipped: String = self.held.drain(..skipped).collect();
        self.go_on_with_text(&skipped, pieces);
        true
    }

    /// It was no call. Real calls are taken out of the text with what stands around them.
    fn go_on_with_text(&mut self, before: &str, pieces: &mut Vec<Piece>) {
        if self.n_calls == 0 {
            push_text(pieces, before);
        }
        self.state = State::Text;
    }

    /// The call that begins at byte `at` of what is held.
    fn begin(&mut self, at: usize, name: Option<String>) {
        let before = self.held.drain(..at).collect();
        let object = if name.is_some() {
            Object::of_arguments()
        } else {
            Object::of_call()
        };
        self.state = State::Call(CallText {
            before,
            object,
            name,
            begun: false,
            told: 0,
        });
    }

    fn read_call(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let State::Call(call) = &mut self.state else {
            return false;
        };
        let (used, progress) = call.object.push(&self.held);
        self.held.drain(..used);
        if !call.begun {
            let name = call.name.as_deref().or(call.object.name());
            let is_known = name.is_none_or(|name| self.names.iter().any(|known| known == name));
            if progress == Progress::NoCall || !is_known || (progress == Progress::Complete && name.is_none()) {
                self.held.insert_str(0, call.object.text());
                let before = std::mem::take(&mut call.before);
                self.go_on_with_text(&before, pieces);
                return true;
            }
            let name = name.map(str::to_owned);
            if let Some(name) = name.filter(|_| call.object.arguments().is_some() || progress == Progress::Complete) {
                call.begun = true;
                self.n_calls += 1;
                pieces.push(Piece::Call { name });
            }
        }
        if progress == Progress::Begins {
            return true;
        }
        if call.begun {
            tell_arguments(call, progress, pieces);
        }
        if progress == Progress::More {
            return false;
        }
        self.state = if self.n_calls < self.most_calls {
            State::Between
        } else {
            State::Over
        };
        true
    }
}

fn tell_arguments(call: &mut CallText, progress: Progress, pieces: &mut Vec<Piece>) {
    let known = match progress {
        Progress::Complete => call.object.complete_arguments(),
        _ => call.object.arguments().map(str::to_owned),
    };
    let known = known.unwrap_or_default();
    let more = known.get(call.told..).unwrap_or_default();
    if !more.is_empty() {
        pieces.push(Piece::Arguments(more.to_owned()));
        call.told = known.len();
    }
}

fn push_text(pieces: &mut Vec<Piece>, text: &str) {
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
}

/// What follows the name of a tool, without what may stand between it and the arguments.
fn arguments_in(after: &str) -> &str {
    let mut rest = after.trim_start();
    if let Some(id) = rest.strip_prefix(BEFORE_ID) {
        rest = id.trim_start_matches(|c: char| c.is_ascii_alphanumeric());
    }
    rest.strip_prefix(BEFORE_ARGUMENTS).unwrap_or(rest).trim_start()
}

/// Without the tags, brackets and spaces that stand around calls.
fn without_tags(text: &str) -> &str {
    let tags = || OPENING.iter().chain(&AROUND);
    let mut rest = text;
    loop {
        let trimmed = rest.trim_start();
        let next = tags().find_map(|tag| trimmed.strip_prefix(tag));
        // `[` may also begin a tag.
        let bracket = || match trimmed.strip_prefix('[') {
            Some(after) if !is_part_of_a_tag(trimmed) => Some(after),
            _ => trimmed.strip_prefix([',', ';', ']']),
        };
        match next.or_else(bracket) {
            Some(next) => rest = next,
            None => return trimmed,
        }
    }
}

fn is_part_of_a_tag(text: &str) -> bool {
    OPENING
        .iter()
        .chain(&AROUND)
        .any(|tag| tag.len() > text.len() && tag.starts_with(text))
}

#[cfg(test)]
mod tests;
