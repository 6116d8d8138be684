//! One JSON object that comes in pieces: where it ends, the name it calls, and its arguments as far as they are there.

use serde_json::Value;

/// Under which names the arguments of a call stand.
const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];
/// What else stands in calls. An object that begins with anything else is none.
const BESIDE: [&str; 4] = ["name", "type", "id", "function"];

/// What JSON has in strings only. Where it comes nevertheless, another call or text begins: models forget braces.
const NEVER: [char; 2] = ['<', ';'];

/// How far an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    /// From here on its name is known and arguments are there: what is told does not depend on how the text was cut.
    Begins,
    Complete,
    /// It is JSON perhaps, but no call; or it has begun as one and does not go on as JSON.
    NoCall,
}

/// An object of which some has come.
#[derive(Debug)]
pub(super) struct Object {
    text: String,
    /// It is the arguments themselves, not a call that has them.
    is_arguments: bool,
    depth: usize,
    /// The call itself stands one level deeper: `{"type": "function", "function": {…}}`.
    is_nested: bool,
    /// Where the string that has not ended yet begins.
    string: Option<usize>,
    escaped: bool,
    /// The next string of the outermost object is a key.
    at_key: bool,
    key: String,
    name: Option<String>,
    has_begun: bool,
    /// Where the arguments begin and, once they are all there, end.
    arguments: Option<(usize, Option<usize>)>,
}

impl Object {
    /// `{"name": …, "arguments": {…}}`.
    pub(super) fn of_call() -> Self {
        Self {
            text: String::new(),
            is_arguments: false,
            depth: 0,
            is_nested: false,
            string: None,
            escaped: false,
            at_key: true,
            key: String::new(),
            name: None,
            has_begun: false,
            arguments: None,
        }
    }

    /// `{…}`, the arguments of a call whose name is known.
    pub(super) fn of_arguments() -> Self {
        Self {
            is_arguments: true,
            ..Self::of_call()
        }
    }

    /// All of it that has come.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// What of the arguments has come, if they are an object.
    pub(super) fn arguments(&self) -> Option<&str> {
        let (start, end) = self.arguments?;
        Some(&self.text[start..end.unwrap_or(self.text.len())])
    }

    /// The arguments of an object that is complete: as they were written if they are an object, the content of a string, an
    /// empty object if there are none.
    pub(super) fn complete_arguments(&self) -> Option<String> {
        if let Some(text) = self.arguments() {
            return Some(text.to_owned());
        }
        let object: Value = serde_json::from_str(&self.text).ok()?;
        let arguments = ARGUMENTS.iter().find_map(|name| object.get(*name));
        Some(match arguments {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => "{}".to_owned(),
            Some(other) => other.to_string(),
        })
    }

    /// Takes of `text` what belongs to the object, and says how many bytes that was.
    pub(super) fn push(&mut self, text: &str) -> (usize, Progress) {
        for (at, character) in text.char_indices() {
            if self.string.is_none() && NEVER.contains(&character) {
                return (at, Progress::NoCall);
            }
            let here = self.text.len();
            self.text.push(character);
            let progress = match self.step(here, character) {
                Progress::More if self.begins() => Progress::Begins,
                progress => progress,
            };
            if progress != Progress::More {
                return (at + character.len_utf8(), progress);
            }
        }
        (text.len(), Progress::More)
    }

    /// Whether it is a call since the last character.
    fn begins(&mut self) -> bool {
        let is_call = self.arguments.is_some() && (self.is_arguments || self.name.is_some());
        is_call && !std::mem::replace(&mut self.has_begun, true)
    }

    fn step(&mut self, here: usize, character: char) -> Progress {
        if let Some(start) = self.string {
            return self.step_in_string(start, character);
        }
        match character {
            '"' => self.string = Some(here),
            '{' | '[' => {
                self.depth += 1;
                let is_value = self.depth == 2 && character == '{' && ARGUMENTS.contains(&self.key.as_str());
                if self.arguments.is_none() && (is_value || self.is_arguments) {
                    self.arguments = Some((here, None));
                }
                if self.depth == 2 && character == '{' && self.key == "function" && !self.is_nested {
                    self.is_nested = true;
                    self.depth = 1;
                    self.at_key = true;
                }
            }
            '}' | ']' => return self.step_out(here),
            ':' if self.depth == 1 => self.at_key = false,
            ',' if self.depth == 1 => self.at_key = true,
            _ => {}
        }
        Progress::More
    }

    fn step_in_string(&mut self, start: usize, character: char) -> Progress {
        match character {
            _ if self.escaped => self.escaped = false,
            '\\' => self.escaped = true,
            '"' => {
                self.string = None;
                if self.depth == 1 && !self.is_arguments {
                    return self.string_at_top(start);
                }
            }
            _ => {}
        }
        Progress::More
    }

    fn string_at_top(&mut self, start: usize) -> Progress {
        let text: String = serde_json::from_str(&self.text[start..]).unwrap_or_default();
        if self.at_key {
            let is_first = self.key.is_empty();
            self.key = text;
            let known = ARGUMENTS.contains(&self.key.as_str()) || BESIDE.contains(&self.key.as_str());
            if is_first && !known {
                return Progress::NoCall;
            }
        } else if self.key == "name" {
            self.name = Some(text);
        }
        Progress::More
    }

    fn step_out(&mut self, here: usize) -> Progress {
        self.depth = self.depth.saturating_sub(1);
        let top = usize::from(!self.is_arguments);
        if let Some((_, end @ None)) = &mut self.arguments
            && self.depth == top
        {
            *end = Some(here + 1);
        }
        if self.depth > 0 {
            return Progress::More;
        }
        // An object within a call closes before the call does.
        if std::mem::take(&mut self.is_nested) {
            self.depth = 1;
            Progress::More
        } else if self.is_arguments || serde_json::from_str::<Value>(&self.text).is_ok() {
            Progress::Complete
        } else {
            Progress::NoCall
        }
    }
}
