//! What is set where, and what of it counts; and that the file with all options says what goes without saying.

use std::{ffi::OsString, fs, path::Path};

use clap::ArgMatches;

use super::*;
use crate::cli::command;

const ADDR: &str = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWQnwEGNqcM2nAcPtRR9rAX8Hrg4k9kJLCHoTR5chJfz6d";

fn args(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

/// Parses a command line beside a file and an environment.
fn parsed(line: &str, file: &str, variables: &[(&str, &str)]) -> Result<ArgMatches, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sepal.toml");
    fs::write(&path, file.replace("ADDR", ADDR)).unwrap();
    let around = Surroundings {
        variables: variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        files: vec![folder.path().join("not.toml"), path],
    };
    match parse(&command(), &args(line), &around) {
        Ok(parsed) => Ok(parsed.matches),
        Err(Stop::Wrong(problems)) => Err(problems),
        Err(Stop::Usage(error, places)) => Err([vec![error.to_string()], places].concat()),
    }
}

/// What `option` of `sepal serve` is given, as text.
fn of_serve(matches: &ArgMatches, option: &str) -> Vec<String> {
    let (path, matches) = innermost(matches);
    assert_eq!(path, ["serve"]);
    let raw = matches.get_raw(option).unwrap_or_default();
    raw.map(|value| value.to_string_lossy().into_owned()).collect()
}

fn wrong(file: &str) -> String {
    parsed("sepal serve demo", file, &[]).unwrap_err().join("\n")
}

#[test]
fn every_name_has_one_meaning() {
    let catalogue = Catalogue::of(command());
    let mut seen = std::collections::BTreeMap::new();
    for options in &catalogue.commands {
        let mut keys = std::collections::BTreeSet::new();
        for (key, option) in options
            .options
            .iter()
            .flat_map(|o| o.keys.iter().map(move |key| (key, o)))
        {
            assert!(keys.insert(key), "{} has two options {key}", options.path.join(" "));
            let own = format!("{}-{key}", options.path.join("-"));
            let id = format!("{} {}", options.path.join(" "), option.key());
            assert_eq!(seen.entry(own.clone()).or_insert(id.clone()), &id, "{own}");
            assert_ne!(key, FILE_OPTION);
        }
    }
    for options in &catalogue.commands {
        for key in options.options.iter().flat_map(|option| &option.keys) {
            assert!(
                !seen.contains_key(key),
                "SEPAL_{key} is for all commands and for one: {:?}",
                seen.get(key)
            );
        }
    }
}

#[test]
fn options_of_many_values_are_repeated_by_their_flag() {
    for options in Catalogue::of(command()).commands {
        for option in options.options {
            let many = option.arg.get_num_args().is_some_and(|range| range.max_values() > 1);
            let repeated = option.kind() == options::Kind::Many;
            assert!(!many || repeated, "{} of {}", option.key(), options.path.join(" "));
        }
    }
}

#[test]
fn the_file_with_all_options_changes_nothing_also_with_every_line_uncommented() {
    let catalogue = Catalogue::of(command());
    let document = init::document(&catalogue, None);
    let path = Path::new("sepal.toml");
    assert!(file::parse(path, &document, &catalogue).unwrap().is_empty());

    let is_option = |line: &str| line.starts_with('#') && !line.starts_with("# ") && line != "#";
    let uncommented = |which: &dyn Fn(usize) -> bool| {
        let lines = document
            .lines()
            .enumerate()
            .map(|(n, line)| match is_option(line) && which(n) {
                true => &line[1..],
                false => line,
            });
        lines.collect::<Vec<_>>().join("\n")
    };
    let mut texts = vec![uncommented(&|_| true)];
    let each = document.lines().enumerate().filter(|(_, line)| is_option(line));
    texts.extend(each.map(|(n, _)| uncommented(&|other| other == n)));
    for (n, text) in texts.iter().enumerate() {
        let settings = file::parse(path, text, &catalogue).unwrap();
        assert!(!settings.is_empty() && (n == 0 || settings.len() == 1), "{text}");
        for options in &catalogue.commands {
            for effective in merge(options, None, &settings).unwrap() {
                let (value, default) = (text::plain(&effective), Effective::default_of(effective.option));
                assert_eq!(
                    value,
                    text::plain(&default),
                    "{} {}",
                    options.path.join(" "),
                    effective.option.key()
                );
            }
        }
    }
    let line = "sepal serve demo --listen /ip4/127.0.0.1/tcp/0";
    let all = parsed(line, &texts[0], &[]).unwrap();
    assert!(of_serve(&all, "port").iter().all(|port| port == "0"));
}

#[test]
fn all_options_are_in_the_file_once() {
    let catalogue = Catalogue::of(command());
    let document = init::document(&catalogue, None);
    for options in catalogue
        .commands
        .iter()
        .filter(|options| catalogue.is_table(&options.path))
    {
        let table = options.path.join(".");
        let (_, after) = document.split_once(&format!("\n[{table}]\n")).unwrap();
        let own = after.split("\n[").next().unwrap();
        let shared = document.split("\n[").next().unwrap();
        for option in options.options.iter().filter(|option| !option.arg.is_hide_set()) {
            let line = format!("\n#{} = ", option.key());
            let times = own.matches(&line).count() + shared.matches(&line).count();
            assert!(times >= 1, "{table} {}", option.key());
            assert!(option.arg.get_help().is_some(), "{table} {}", option.key());
        }
    }
}

#[test]
fn flags_count_before_variables_before_the_file_and_the_own_word_before_the_one_for_all() {
    let file = "threads = 1\nport = 1\n[serve]\nthreads = 2\nmodels = ['demo', 'org/x']\ncompression = 'float16'\n";
    let value = |line: &str, variables: &[(&str, &str)]| of_serve(&parsed(line, file, variables).unwrap(), "threads");
    assert_eq!(value("sepal serve", &[]), ["2"]);
    assert_eq!(value("sepal serve", &[("SEPAL_THREADS", "3")]), ["3"]);
    let both = [("SEPAL_THREADS", "3"), ("SEPAL_SERVE_THREADS", "4")];
    assert_eq!(value("sepal serve", &both), ["4"]);
    assert_eq!(value("sepal serve --threads 5", &both), ["5"]);

    let matches = parsed("sepal serve", file, &[]).unwrap();
    assert_eq!(of_serve(&matches, "models"), ["demo", "org/x"]);
    assert_eq!(of_serve(&matches, "port"), ["1"]);
    let matches = parsed("sepal serve other", file, &[]).unwrap();
    assert_eq!(of_serve(&matches, "models"), ["other"]);
    let matches = parsed("sepal serve -- other", file, &[]).unwrap();
    assert_eq!(of_serve(&matches, "models"), ["other"]);
}

#[test]
fn an_empty_variable_is_none_and_lists_are_separated_by_commas_or_written_as_in_the_file() {
    let value = |text: &str| {
        let matches = parsed("sepal serve demo", "blocks = ['9:10']", &[("SEPAL_SERVE_BLOCKS", text)]).unwrap();
        of_serve(&matches, "blocks")
    };
    assert_eq!(value(""), ["9:10"]);
    assert_eq!(value("demo=0:4, org/x=1:2"), ["demo=0:4", "org/x=1:2"]);
    assert_eq!(value("[\"demo=0:4\"]"), ["demo=0:4"]);
    assert!(value("[]").is_empty());
}

#[test]
fn flags_are_true_or_false_and_false_takes_back_what_is_set_for_all() {
    let file = "no-relay = true\nlan = 'home'\nswarm_key = 'key'\ninitial_peers = ['ADDR']\n";
    let matches = parsed("sepal serve demo", file, &[]).unwrap();
    assert_eq!(of_serve(&matches, "no_relay"), ["true"]);
    assert_eq!(of_serve(&matches, "lan"), ["home"]);

    let none = format!("{file}[serve]\nno-relay = false\nlan = true\nswarm-key = false\ninitial-peers = []\n");
    let matches = parsed("sepal serve demo", &none, &[]).unwrap();
    assert_eq!(of_serve(&matches, "no_relay"), ["false"]);
    assert_eq!(of_serve(&matches, "lan"), ["sepal"]);
    assert!(of_serve(&matches, "swarm_key").is_empty());
    assert!(of_serve(&matches, "initial_peers").is_empty());

    let matches = parsed(
        "sepal serve demo",
        &none,
        &[("SEPAL_NO_RELAY", "yes"), ("SEPAL_LAN", "off")],
    )
    .unwrap();
    assert_eq!(of_serve(&matches, "no_relay"), ["true"]);
    assert!(of_serve(&matches, "lan").is_empty());
}

#[test]
fn what_is_said_for_all_commands_is_not_about_the_swarm_that_connect_is_about() {
    let of_connect = |file: &str, variables: &[(&str, &str)], option: &str| {
        let matches = parsed(&format!("sepal connect {ADDR}"), file, variables).unwrap();
        let (path, matches) = innermost(&matches);
        assert_eq!(path, ["connect"]);
        let raw = matches.get_raw(option).unwrap_or_default();
        raw.map(|value| value.to_string_lossy().into_owned()).next()
    };
    let file = "port = 31337\nswarm-key = 'home.key'\ncontrol = 'home.sock'\n";
    let home = [("SEPAL_PORT", "31337"), ("SEPAL_SWARM_KEY", "home.key")];
    assert_eq!(of_connect(file, &home, "port").as_deref(), Some("0"));
    assert_eq!(of_connect(file, &home, "swarm_key"), None);
    // It is about the same node.
    assert_eq!(of_connect(file, &home, "control").as_deref(), Some("home.sock"));

    let own = format!("{file}[connect]\nswarm-key = 'friends.key'\nname = 'friends'\n");
    let port = [("SEPAL_PORT", "31337"), ("SEPAL_CONNECT_PORT", "31338")];
    assert_eq!(of_connect(&own, &port, "port").as_deref(), Some("31338"));
    assert_eq!(of_connect(&own, &port, "swarm_key").as_deref(), Some("friends.key"));
    assert_eq!(of_connect(&own, &port, "name").as_deref(), Some("friends"));
    // Nobody else has a name, so that one for all would be for nobody.
    let said = wrong("name = 'friends'");
    assert!(
        said.contains("unknown key name; it is an option of [connect]"),
        "{said}"
    );
    let catalogue = Catalogue::of(command());
    let variable = Variables::read(&[("SEPAL_NAME".to_owned(), "friends".to_owned())], &catalogue);
    assert!(variable.settings.is_empty());
    assert_eq!(variable.warnings.len(), 1);
    assert!(!variables::all(&catalogue).contains(&"name".to_owned()));
}

#[test]
fn whoever_counts_more_silences_what_excludes_it() {
    let file = "initial-peers = ['ADDR']\nlisten = ['/ip4/127.0.0.1/tcp/0']\n";
    let matches = parsed("sepal serve demo --new-swarm --port 7", file, &[]).unwrap();
    assert!(of_serve(&matches, "initial_peers").is_empty());
    assert!(of_serve(&matches, "listen").is_empty());
    let matches = parsed("sepal serve demo", &format!("{file}[serve]\nnew-swarm = true\n"), &[]).unwrap();
    assert!(of_serve(&matches, "initial_peers").is_empty());

    let problems = parsed("sepal serve demo", &format!("{file}new-swarm = true\n"), &[]).unwrap_err();
    assert!(problems[0].contains("cannot be used with"), "{problems:?}");
    let places = problems[1..].join("\n");
    assert!(
        places.contains("initial-peers is from ") && places.contains("sepal.toml:1"),
        "{places}"
    );
    assert!(
        places.contains("new-swarm is from ") && places.contains("sepal.toml:3"),
        "{places}"
    );
}

#[test]
fn blocks_and_their_number_exclude_each_other_unless_they_are_for_different_models() {
    let count = [("SEPAL_NUM_BLOCKS", "2")];
    let file = "[serve]\nblocks = '0:4'\n";
    for (line, variables) in [
        ("sepal serve demo", &count[..]),
        ("sepal serve demo --num-blocks 2", &count[..0]),
    ] {
        let matches = parsed(line, file, variables).unwrap();
        assert!(of_serve(&matches, "blocks").is_empty(), "{line}");
        assert_eq!(of_serve(&matches, "num_blocks"), ["2"], "{line}");
    }
    let matches = parsed("sepal serve demo --blocks 4:8", file, &count).unwrap();
    assert_eq!(of_serve(&matches, "blocks"), ["4:8"]);
    assert!(of_serve(&matches, "num_blocks").is_empty());

    let matches = parsed("sepal serve demo", "[serve]\nblocks = 'demo=0:4'\n", &count).unwrap();
    assert_eq!(of_serve(&matches, "blocks"), ["demo=0:4"]);
    assert_eq!(of_serve(&matches, "num_blocks"), ["2"]);
}

#[test]
fn unknown_keys_are_named_with_their_line_and_the_nearest_right_one() {
    for (file, line, words) in [
        (
            "initial-peer = []",
            1,
            "unknown key initial-peer; did you mean initial-peers?",
        ),
        ("\n[serv]\n", 2, "unknown key serv; did you mean the table [serve]?"),
        (
            "[serve]\nthread = 4",
            2,
            "unknown key thread in [serve]; did you mean threads?",
        ),
        (
            "[serve]\nprompt = ''",
            2,
            "unknown key prompt in [serve]; it is an option of ",
        ),
        (
            "[serve]\nxyzzy = ''",
            2,
            "unknown key xyzzy in [serve]; sepal config serve lists them",
        ),
        ("config = 'x'", 1, "unknown key config"),
        ("serve = 4", 1, "serve is a command, so it is a table: [serve]"),
        ("[[port]]", 1, "port is an option, not a list of tables"),
    ] {
        let said = wrong(file);
        assert!(said.contains(&format!("sepal.toml:{line}: {words}")), "{file}: {said}");
    }
}

#[test]
fn bad_values_are_named_with_their_place_and_what_the_flag_says() {
    for (file, words) in [
        ("[serve]\nthreads = 0", "sepal.toml:2: threads = 0: "),
        (
            "port = 70000",
            "sepal.toml:1: port = 70000: expected a port from 0 to 65535",
        ),
        ("no-relay = 'yes'", "no-relay = yes: expected true or false"),
        ("port = [1, 2]", "port = [1, 2]: expected one value, PORT, not a list"),
        (
            "token = [1, 2]",
            "token = its value is not shown: expected one value, TOKEN, not a list",
        ),
        ("verbose = -1", "verbose = -1: expected how many times"),
        ("[serve]\ncompression = 'flota16'", "did you mean float16?"),
        ("initial-peers = ['ADDR']\ninitial_peers = []", "says the same option"),
    ] {
        let said = wrong(file);
        assert!(said.contains(words), "{file}: {said}");
    }
    let said = parsed("sepal serve demo", "", &[("SEPAL_PORT", "tcp")]).unwrap_err();
    assert!(said[0].starts_with("SEPAL_PORT=tcp: "), "{said:?}");
    // What is wrong for another command does not keep this one from running.
    assert!(parsed("sepal serve demo", "[generate]\nprompt = [1]", &[]).is_ok());
}

#[test]
fn a_file_that_is_no_toml_is_named_with_line_and_column() {
    let said = wrong("[serve]\nthreads = = 2\n");
    assert!(said.contains("sepal.toml:2:11: "), "{said}");
    let around = Surroundings::default();
    let Err(Stop::Wrong(problems)) = parse(&command(), &args("sepal serve demo --config /nowhere/a.toml"), &around)
    else {
        panic!("there is no such file");
    };
    assert!(problems[0].starts_with("cannot read /nowhere/a.toml: "), "{problems:?}");
}

#[test]
fn unknown_variables_are_warned_of_and_those_of_kubernetes_are_not_ours() {
    let catalogue = Catalogue::of(command());
    let read = |variables: &[(&str, &str)]| {
        let owned = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Variables::read(&owned.collect::<Vec<_>>(), &catalogue)
    };
    let variables = read(&[("SEPAL_THREDS", "1"), ("HOME", "/"), ("SEPAL_CONFIG", "a.toml")]);
    assert_eq!(
        variables.warnings,
        ["SEPAL_THREDS is no option of sepal; did you mean SEPAL_THREADS?"]
    );
    assert_eq!(variables.file.as_deref(), Some("a.toml"));
    let variables = read(&[("SEPAL_SERVICE_HOST", "10.0.0.1"), ("SEPAL_PORT", "tcp://10.0.0.1:80")]);
    assert!(variables.settings.is_empty() && variables.warnings.is_empty());
    let variables = read(&[("SEPAL_SERVE", "demo")]);
    assert_eq!(
        variables.warnings,
        ["SEPAL_SERVE is a variable of scripts/install.sh and no option of sepal"]
    );
}

#[test]
fn secrets_are_not_shown_and_paths_of_files_with_secrets_are() {
    let catalogue = Catalogue::of(command());
    let text = "token = 'hf_secret'\nswarm-key = 'swarm.key'\n";
    let settings = file::parse(Path::new("sepal.toml"), text, &catalogue).unwrap();
    let options = catalogue.command(&["serve".to_owned()]).unwrap();
    let shown: Vec<String> = merge(options, None, &settings)
        .unwrap()
        .iter()
        .map(|effective| text::literal(&text::value(effective)))
        .collect();
    assert!(shown.contains(&"\"swarm.key\"".to_owned()));
    assert!(!shown.concat().contains("hf_secret"));
}
