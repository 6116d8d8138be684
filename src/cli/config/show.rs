//! `sepal config`: what commands run with, and where each value comes from.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args as ClapArgs, Command};
use serde_json::{Map, Value, json};

use super::{
    Configuration, Stop, Surroundings, file_option, innermost,
    merge::{Effective, merge},
    options::{Catalogue, Options},
    setting::Origin,
    text, typed,
};
use crate::cli::output;

/// Where comments begin, if what is before them leaves room.
const COMMENTS: usize = 44;

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// Print one JSON object; may also stand behind COMMAND.
    #[arg(long)]
    json: bool,
    /// A command, and arguments as they would be typed: everything that it would run with [default: what is not a default,
    /// of all commands].
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// What is shown of one command.
type Shown<'a> = (&'a Options, Vec<Effective<'a>>);

/// `file` is the one that was asked for before the command.
///
/// # Errors
/// If the command line in `args`, the file or a variable is wrong.
pub(in crate::cli) fn run(
    command: &Command,
    args: &Args,
    file: Option<PathBuf>,
    around: &Surroundings,
) -> Result<(), Stop> {
    let is_json = |argument: &&OsString| *argument == "--json";
    let json = args.json || args.command.iter().any(|argument| is_json(&argument));
    let line = args.command.iter().filter(|argument| !is_json(argument));
    let line: Vec<OsString> = [OsString::from("sepal")].into_iter().chain(line.cloned()).collect();

    let catalogue = Catalogue::of(command.clone());
    let (configuration, shown) = if line.len() == 1 {
        let configuration = Configuration::read(&catalogue, file, around).map_err(Stop::Wrong)?;
        let shown = all(&catalogue, &configuration)?;
        (configuration, shown)
    } else {
        let matches = typed(command, &line)?;
        let (path, of_command) = innermost(&matches);
        let Some(options) = catalogue.command(&path) else {
            return Err(Stop::Wrong(vec![format!(
                "{} takes nothing from the configuration",
                path.join(" ")
            )]));
        };
        let named = file_option(&matches).or(file);
        let configuration = Configuration::read(&catalogue, named, around).map_err(Stop::Wrong)?;
        let mut effective = merge(options, Some(of_command), &configuration.settings).map_err(Stop::Wrong)?;
        effective.retain(|effective| is_set(effective) || !effective.option.arg.is_hide_set());
        (configuration, vec![(options, effective)])
    };
    for warning in &configuration.warnings {
        output::warning(warning);
    }
    match json {
        true => output::line(object(&configuration, &shown)),
        false => output::line(page(&configuration, around, &shown).trim_end()),
    }
    Ok(())
}

/// What is set, of every command.
fn all<'a>(catalogue: &'a Catalogue, configuration: &Configuration) -> Result<Vec<Shown<'a>>, Stop> {
    let (mut shown, mut problems) = (Vec::new(), Vec::new());
    for options in &catalogue.commands {
        match merge(options, None, &configuration.settings) {
            Ok(mut effective) => {
                effective.retain(is_set);
                shown.push((options, effective));
            }
            Err(wrong) => problems.extend(wrong),
        }
    }
    if problems.is_empty() {
        return Ok(shown);
    }
    // What is for all commands is wrong for each of them in the same words.
    problems.sort_unstable();
    problems.dedup();
    Err(Stop::Wrong(problems))
}

fn is_set(effective: &Effective<'_>) -> bool {
    effective.origin != Origin::Default
}

/// As a file that says the same.
fn page(configuration: &Configuration, around: &Surroundings, shown: &[Shown<'_>]) -> String {
    let mut page = match &configuration.file {
        Some(file) => format!("# {}\n", file.display()),
        None => {
            let looked: Vec<String> = around.files.iter().map(|file| file.display().to_string()).collect();
            format!("# no file; looked for {}\n", looked.join(", "))
        }
    };
    if shown.iter().all(|(_, effective)| effective.is_empty()) {
        page.push_str("# nothing is set; `sepal config serve` shows what `sepal serve` runs with by default\n");
    }
    for (options, effective) in shown.iter().filter(|(_, effective)| !effective.is_empty()) {
        page.push_str(&format!("\n[{}]\n", options.path.join(".")));
        for effective in effective {
            let value = text::value(effective);
            let unset = if value.is_null() { "#" } else { "" };
            let line = format!("{unset}{} = {}", effective.option.key(), text::literal(&value));
            page.push_str(&format!("{line:<COMMENTS$} # {}\n", effective.origin));
        }
    }
    page
}

fn object(configuration: &Configuration, shown: &[Shown<'_>]) -> Value {
    let commands = shown.iter().map(|(options, effective)| {
        let values = effective
            .iter()
            .map(|effective| (effective.option.key().to_owned(), described(effective)));
        (options.path.join("."), Value::Object(values.collect()))
    });
    json!({
        "file": configuration.file.as_ref().map(|file| file.display().to_string()),
        "commands": commands.collect::<Map<String, Value>>(),
    })
}

fn described(effective: &Effective<'_>) -> Value {
    let value = text::value(effective);
    match &effective.origin {
        Origin::Flag => json!({"value": value, "source": "flag"}),
        Origin::Default => json!({"value": value, "source": "default"}),
        Origin::Variable(name) => json!({"value": value, "source": "environment", "variable": name}),
        Origin::File { path, line } => {
            json!({"value": value, "source": "file", "file": path.display().to_string(), "line": line})
        }
    }
}
