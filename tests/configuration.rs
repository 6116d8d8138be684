//! The program with a file, an environment and flags: what it takes from where, as `sepal config` tells it, and how it
//! ends when one of them is wrong.
#![expect(clippy::unwrap_used, reason = "all of this program is a test")]

#[path = "common/program.rs"]
mod program;

use std::{fs, path::Path, process::Output};

fn sepal(folder: &Path, line: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = program::sepal(folder, line);
    command.envs(variables.iter().copied()).output().unwrap()
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn complained(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_file_is_made_from_a_command_line_and_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let line = "init -- serve demo --new-swarm --port 31337 --token hf_secret";
    assert_eq!(printed(&sepal(folder, line, &[])), "wrote sepal.toml\n");
    assert!(complained(&sepal(folder, "init", &[])).contains("--force"));

    let shown = printed(&sepal(folder, "config", &[("SEPAL_SERVE_THREADS", "2")]));
    let shown: Vec<String> = shown
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    for (line, place) in [
        ("models = [\"demo\"]", "sepal.toml:"),
        ("new-swarm = true", "sepal.toml:"),
        ("port = 31337", "sepal.toml:"),
        ("token = \"(not shown)\"", "sepal.toml:"),
        ("threads = 2", "SEPAL_SERVE_THREADS"),
    ] {
        let is_it = |shown: &&String| shown.starts_with(&format!("{line} # {place}"));
        assert_eq!(shown.iter().filter(is_it).count(), 1, "{line}: {shown:#?}");
    }
    assert!(!shown.iter().any(|line| line.contains("hf_secret")));
    let all = printed(&sepal(folder, "config serve --port 1 --json", &[]));
    assert!(all.contains(r#""port":{"value":1,"source":"flag"}"#), "{all}");
    assert!(
        all.contains(r#""compression":{"value":"none","source":"default"}"#),
        "{all}"
    );

    assert!(printed(&sepal(folder, "init --force", &[])).contains("wrote"));
    let shown = printed(&sepal(folder, "config", &[]));
    assert!(!shown.contains('='), "nothing is set: {shown}");
    assert!(
        shown.contains("\n# nothing is set; `sepal config serve` shows "),
        "{shown}"
    );
}

#[test]
fn the_file_is_where_it_is_said_to_be_or_where_files_usually_are() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir_all(folder.join(".config/sepal")).unwrap();
    fs::create_dir_all(folder.join("elsewhere/sepal")).unwrap();
    fs::write(folder.join(".config/sepal/sepal.toml"), "").unwrap();
    fs::write(folder.join("elsewhere/sepal/sepal.toml"), "").unwrap();
    fs::write(folder.join("named.toml"), "").unwrap();
    let file = |line: &str, variables: &[(&str, &str)]| {
        let shown = printed(&sepal(folder, line, variables));
        shown.lines().next().unwrap().trim_start_matches("# ").to_owned()
    };
    assert!(file("config", &[]).ends_with("/.config/sepal/sepal.toml"));
    let elsewhere = folder.join("elsewhere");
    let xdg = [("XDG_CONFIG_HOME", elsewhere.to_str().unwrap())];
    assert!(file("config", &xdg).ends_with("/elsewhere/sepal/sepal.toml"));
    fs::write(folder.join("sepal.toml"), "").unwrap();
    assert_eq!(file("config", &xdg), "sepal.toml");
    let named = [("SEPAL_CONFIG", "named.toml")];
    assert_eq!(file("config", &named), "named.toml");
    assert_eq!(file("config serve", &named), "named.toml");
    assert_eq!(file("--config sepal.toml config", &named), "sepal.toml");
}

#[test]
fn commands_take_what_the_file_says_and_stop_where_it_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("sepal.toml"), "[serve]\nthread = 2\ncompresion = 1\n").unwrap();
    let said = complained(&sepal(folder, "serve demo", &[]));
    assert!(
        said.contains("error: sepal.toml:2: unknown key thread in [serve]; did you mean threads?"),
        "{said}"
    );
    assert!(
        said.contains("error: sepal.toml:3: unknown key compresion in [serve]"),
        "{said}"
    );

    // The model, which has no such blocks, is from the file, the blocks are from the environment; and a word about a typo.
    fs::write(
        folder.join("sepal.toml"),
        "[serve]\nmodels = 'demo'\nnew-swarm = true\n",
    )
    .unwrap();
    let variables = [("SEPAL_BLOCKS", "0:99"), ("SEPAL_THREDS", "1")];
    let ended = sepal(folder, "serve --listen /ip4/127.0.0.1/tcp/0", &variables);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.contains("--blocks 0:99 is outside of demo"), "{said}");
    assert!(
        said.contains("warning: SEPAL_THREDS is no option of sepal; did you mean SEPAL_THREADS?"),
        "{said}"
    );
    assert!(said.contains("read the configuration file=sepal.toml"), "{said}");
}
