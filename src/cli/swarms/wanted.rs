//! A further swarm, as it is asked for: by `--also-join`, in one text, or by `sepal connect`, part by part.

use std::path::PathBuf;

use crate::{
    cli::swarm::Swarm,
    control::protocol::Connect,
    p2p::{self, Multiaddr, SwarmKey},
};

/// Characters of a name.
const MAX_NAME: usize = 32;

/// A further swarm to be in.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wanted {
    /// What to call it.
    pub(super) name: Option<String>,
    /// Nodes to join through, at least one.
    pub(super) addresses: Vec<Multiaddr>,
    /// File with its key.
    pub(super) key: Option<PathBuf>,
    /// Port to listen on there; 0 is any free one.
    pub(super) port: u16,
}

impl Wanted {
    /// Reads `[NAME=]ADDR [ADDR ...] [key=FILE] [port=N]`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut wanted = Self::default();
        for (i, word) in text.split_whitespace().enumerate() {
            match word.split_once('=') {
                _ if word.starts_with('/') => wanted.addresses.push(address(word)?),
                Some(("key", file)) => wanted.key = Some(file.into()),
                Some(("port", port)) => {
                    let port = port.parse().map_err(|_| format!("{port:?} is no port: 0 to 65535"));
                    wanted.port = port?;
                }
                Some((name, addr)) if i == 0 => {
                    wanted.name = Some(named(name)?);
                    wanted.addresses.push(address(addr)?);
                }
                _ => {
                    return Err(format!(
                        "{word:?} is not understood: expected [NAME=]ADDR [ADDR ...] [key=FILE] [port=N]"
                    ));
                }
            }
        }
        wanted.checked()
    }

    /// # Errors
    /// What is wrong with what is asked.
    pub(super) fn of(asked: Connect) -> Result<Self, String> {
        let wanted = Self {
            name: asked.name.map(|name| named(&name)).transpose()?,
            addresses: asked
                .addresses
                .iter()
                .map(|text| address(text))
                .collect::<Result<_, _>>()?,
            key: asked.swarm_key.map(PathBuf::from),
            port: asked.port.unwrap_or_default(),
        };
        wanted.checked()
    }

    fn checked(self) -> Result<Self, String> {
        match self.addresses.is_empty() {
            true => Err("no address: name at least one node of the swarm to join through".to_owned()),
            false => Ok(self),
        }
    }

    /// The swarm itself.
    ///
    /// # Errors
    /// Its key cannot be used.
    pub(super) fn swarm(&self) -> anyhow::Result<Swarm> {
        Ok(Swarm {
            initial_peers: self.addresses.clone(),
            key: self.key.as_deref().map(SwarmKey::load).transpose()?,
            ..Swarm::default()
        })
    }
}

fn address(text: &str) -> Result<Multiaddr, String> {
    let addr: Multiaddr = text
        .parse()
        .map_err(|error| format!("{text:?} is no address: {error}"))?;
    match p2p::peer_id_of(&addr) {
        Some(_) => Ok(addr),
        None => Err(format!("{addr} does not end in /p2p/PEER_ID")),
    }
}

/// Numbers, and what looks like an address, are not names: `sepal disconnect` takes all three.
fn named(name: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
    match name.len() <= MAX_NAME && name.chars().all(fits) && !is_number {
        true => Ok(name.to_owned()),
        false => Err(format!(
            "{name:?} is no name for a swarm: 1 to {MAX_NAME} letters, digits, dots, dashes and underscores, not only digits"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDR: &str = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWQnwEGNqcM2nAcPtRR9rAX8Hrg4k9kJLCHoTR5chJfz6d";

    #[test]
    fn a_swarm_is_read_from_one_text_and_from_parts() {
        let addr: Multiaddr = ADDR.parse().unwrap();
        let plain = Wanted {
            addresses: vec![addr.clone()],
            ..Wanted::default()
        };
        assert_eq!(Wanted::parse(ADDR), Ok(plain));
        let full = Wanted {
            name: Some("friends".to_owned()),
            addresses: vec![addr.clone(), addr],
            key: Some("/etc/sepal/friends.key".into()),
            port: 31331,
        };
        let text = format!("friends={ADDR} {ADDR} key=/etc/sepal/friends.key port=31331");
        assert_eq!(Wanted::parse(&text), Ok(full.clone()));
        let asked = Connect {
            addresses: vec![ADDR.to_owned(); 2],
            name: full.name.clone(),
            swarm_key: Some("/etc/sepal/friends.key".to_owned()),
            port: Some(31331),
        };
        assert_eq!(Wanted::of(asked), Ok(full));
    }

    #[test]
    fn what_is_wrong_with_a_swarm_is_said() {
        for (text, problem) in [
            ("", "no address: name at least one node of the swarm to join through"),
            ("key=file", "no address"),
            (
                "/ip4/127.0.0.1/tcp/1",
                "/ip4/127.0.0.1/tcp/1 does not end in /p2p/PEER_ID",
            ),
            ("/ip4/nowhere", "\"/ip4/nowhere\" is no address"),
            ("friends=somewhere", "\"somewhere\" is no address"),
            (
                "friends",
                "\"friends\" is not understood: expected [NAME=]ADDR [ADDR ...] [key=FILE] [port=N]",
            ),
            ("port=70000", "\"70000\" is no port: 0 to 65535"),
        ] {
            let said = Wanted::parse(text).unwrap_err();
            assert!(said.starts_with(problem), "{text}: {said}");
        }
        for name in ["", "2", "a b", "/ip4", &"x".repeat(33)] {
            let said = named(name).unwrap_err();
            assert!(said.contains("1 to 32 letters, digits, dots"), "{said}");
        }
        let missing = Wanted {
            key: Some("/nowhere/swarm.key".into()),
            ..Wanted::parse(ADDR).unwrap()
        };
        let said = missing.swarm().unwrap_err().to_string();
        assert!(said.contains("sepal swarm-key"), "{said}");
    }
}
