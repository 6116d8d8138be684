//! What a line of the conversation means. It does nothing.

use std::path::PathBuf;

use anyhow::bail;

/// What `/help` prints.
pub(super) const HELP: &str = "\
/help               this
/reset              forget the conversation, but not what the model was told before it
/system TEXT        tell the model TEXT before the conversation; without TEXT, nothing
/save FILE          write the conversation as JSON
/load FILE          go on with a conversation that was saved
/route              the servers of the last answer (`here` is this program), what a step took on each, and which servers
                    are left out for what they did
/stats              tokens and times of the last answer
/set NAME VALUE     temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, seed,
                    max_new_tokens
/regenerate         answer the last message again
/undo               take back the last message and its answer
/quit, /exit        end, as Ctrl-D
A line that ends with a backslash goes on in the next one; \"\"\" begins and ends a message of many lines.";

/// One line of a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Say(String),
    Help,
    Reset,
    System(Option<String>),
    Save(PathBuf),
    Load(PathBuf),
    Route,
    Stats,
    Set(Setting),
    Regenerate,
    Undo,
    Quit,
}

/// A parameter and its new value, as texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) name: String,
    pub(super) value: String,
}

impl Command {
    /// Everything that does not begin with `/` is said to the model; so is `//…`, with one slash less.
    ///
    /// # Errors
    /// A command that there is not, or one that lacks something.
    pub(super) fn parse(line: &str) -> anyhow::Result<Self> {
        let Some(command) = line.strip_prefix('/') else {
            return Ok(Self::Say(line.to_owned()));
        };
        if command.starts_with('/') {
            return Ok(Self::Say(command.to_owned()));
        }
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        let file = || {
            if rest.is_empty() {
                bail!("/{name} needs the name of a file");
            }
            Ok(PathBuf::from(rest))
        };
        Ok(match name {
            "help" => Self::Help,
            "reset" => Self::Reset,
            "system" => Self::System(Some(rest.to_owned()).filter(|text| !text.is_empty())),
            "save" => Self::Save(file()?),
            "load" => Self::Load(file()?),
            "route" => Self::Route,
            "stats" => Self::Stats,
            "set" => match rest.split_once([' ', '=']) {
                Some((name, value)) => Self::Set(Setting {
                    name: name.trim().replace('-', "_"),
                    value: value.trim().trim_start_matches('=').trim_start().to_owned(),
                }),
                None => bail!("/set needs a name and a value, such as /set temperature 0.7"),
            },
            "regenerate" => Self::Regenerate,
            "undo" => Self::Undo,
            "quit" | "exit" => Self::Quit,
            _ => bail!("there is no command /{name}; /help lists those that there are"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_unless_they_begin_with_a_slash() {
        let parse = |line| Command::parse(line).unwrap();
        assert_eq!(parse("Hi / there"), Command::Say("Hi / there".to_owned()));
        assert_eq!(parse("//etc is a folder"), Command::Say("/etc is a folder".to_owned()));
        assert_eq!(parse("/quit"), Command::Quit);
        assert_eq!(parse("/save  my chat.json "), Command::Save("my chat.json".into()));
        assert_eq!(
            parse("/system Be brief."),
            Command::System(Some("Be brief.".to_owned()))
        );
        assert_eq!(parse("/system"), Command::System(None));
    }

    #[test]
    fn settings_are_written_with_a_space_or_an_equals_sign() {
        for line in ["/set top-k 5", "/set top_k=5", "/set top_k = 5"] {
            let expected = Setting {
                name: "top_k".to_owned(),
                value: "5".to_owned(),
            };
            assert_eq!(Command::parse(line).unwrap(), Command::Set(expected), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_command_is_said() {
        for (line, wrong) in [
            ("/dance", "there is no command /dance; /help lists those that there are"),
            ("/load", "/load needs the name of a file"),
            (
                "/set top_k",
                "/set needs a name and a value, such as /set temperature 0.7",
            ),
        ] {
            assert_eq!(Command::parse(line).unwrap_err().to_string(), wrong);
        }
    }

    #[test]
    fn every_command_is_in_the_help() {
        for name in [
            "help",
            "reset",
            "system",
            "save",
            "load",
            "route",
            "stats",
            "set",
            "regenerate",
            "undo",
            "quit",
        ] {
            assert!(HELP.contains(&format!("/{name}")), "{name}");
        }
    }
}
