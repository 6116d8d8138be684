//! Which running node a command talks to: the only one of this machine, the one that is named, or the one at a path.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args as ClapArgs;

use super::{
    environment,
    plain::{cut, plain},
};
use crate::control::{self, Connection, Found};

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct TargetArgs {
    /// Which node, if several of yours run here: its name, the beginning or end of it, or its peer id.
    #[arg(long, value_name = "NAME", conflicts_with = "control")]
    node: Option<String>,
    /// The node that was started with --control PATH.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

impl TargetArgs {
    /// Connects.
    ///
    /// # Errors
    /// There is no such node, or more than one.
    pub(super) async fn connect(&self) -> anyhow::Result<Connection> {
        if let Some(path) = &self.control {
            return Ok(Connection::open(path).await?);
        }
        let folders = environment::control_folders();
        let found = control::find(&folders).await;
        let path = choose(&found, self.node.as_deref()).with_context(|| {
            let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
            format!("looked for nodes in {}", folders.join(" and "))
        });
        // The reason is for people, the place only for those whose node is somewhere else.
        let path = match path {
            Err(error) if !found.is_empty() => Err(anyhow::anyhow!("{}", error.root_cause())),
            path => path,
        }?;
        Ok(Connection::open(&path).await?)
    }
}

/// The socket of the node that is meant.
///
/// # Errors
/// It is not clear which, with all there are.
fn choose(found: &[Found], name: Option<&str>) -> anyhow::Result<PathBuf> {
    let is_meant = |found: &&Found| match name {
        None => true,
        Some(name) => {
            let of_peer = found.who.as_ref().is_some_and(|who| who.peer_id.ends_with(name));
            of_peer || name_of(found).starts_with(name) || name_of(found).ends_with(name)
        }
    };
    let meant: Vec<&Found> = found.iter().filter(is_meant).collect();
    match (meant.as_slice(), name) {
        ([one], _) => Ok(one.path.clone()),
        _ if found.is_empty() => bail!(
            "no node of yours runs on this machine: start one with sepal serve, or name its socket with --control PATH"
        ),
        ([], Some(name)) => bail!("no running node is called {name}; there are:{}", list(found)),
        (several, _) => bail!(
            "several nodes run here: say which with --node NAME{}",
            list(several.iter().copied())
        ),
    }
}

/// As it calls itself; of one that does not answer, as its socket is called.
fn name_of(found: &Found) -> String {
    let socket = || {
        found
            .path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    found.who.as_ref().map_or_else(socket, |who| who.name.clone())
}

fn list<'a>(found: impl IntoIterator<Item = &'a Found>) -> String {
    let lines = found.into_iter().map(|found| {
        let name = cut(&name_of(found), 16);
        match &found.who {
            None => format!("\n  {name:<10} does not answer"),
            Some(who) => format!(
                "\n  {name:<10} {:<10} {:<9} process {:<8} {}",
                cut(&who.command, 10),
                who.state.as_str(),
                who.pid,
                plain(&who.models.join(" "))
            ),
        }
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::{State, Who};

    fn node(name: &str, command: &str) -> Found {
        let who = Who {
            name: name.to_owned(),
            peer_id: format!("12D3KooWPeer{name}"),
            command: command.to_owned(),
            pid: 7,
            state: State::Online,
            models: vec!["demo".to_owned()],
            ..Who::default()
        };
        Found {
            path: format!("/run/{name}.sock").into(),
            who: Some(who),
        }
    }

    #[test]
    fn the_only_node_is_meant_and_of_several_the_one_that_is_named() {
        let one = [node("aaaa1111", "serve")];
        assert_eq!(choose(&one, None).unwrap(), PathBuf::from("/run/aaaa1111.sock"));
        let two = [node("aaaa1111", "serve"), node("bbbb2222", "api")];
        for name in ["bbbb2222", "bb", "2222", "Peerbbbb2222", "12D3KooWPeerbbbb2222"] {
            assert_eq!(choose(&two, Some(name)).unwrap(), PathBuf::from("/run/bbbb2222.sock"));
        }
        let error = choose(&two, None).unwrap_err().to_string();
        assert!(
            error.starts_with("several nodes run here: say which with --node NAME\n"),
            "{error}"
        );
        assert!(
            error.contains("\n  aaaa1111   serve      online    process 7        demo"),
            "{error}"
        );
        let error = choose(&two, Some("cc")).unwrap_err().to_string();
        assert!(error.contains("called cc") && error.contains("bbbb2222"), "{error}");
        let error = choose(&[], None).unwrap_err().to_string();
        assert!(error.contains("sepal serve"), "{error}");
    }

    #[test]
    fn a_node_that_does_not_answer_is_listed() {
        let mut silent = node("aaaa1111", "serve");
        silent.who = None;
        let error = choose(&[silent, node("bbbb2222", "api")], None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("aaaa1111   does not answer"), "{error}");
    }
}
