//! Which swarm a node belongs to: the flags that all nodes share, and what follows from them.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args as ClapArgs;

use super::parsers::multiaddr;
use crate::{
    p2p::{self, GossipConfig, Multiaddr, SwarmKey},
    swarm::models::PUBLIC_INITIAL_PEERS,
};

/// Flags of every node.
#[derive(Debug, ClapArgs)]
pub(super) struct SwarmArgs {
    /// Nodes of the swarm to join [default: the public swarm; for bootstrap, eligible and benchmark none, for job the local
    /// network].
    #[arg(long, value_name = "ADDR", num_args = 1.., value_parser = multiaddr, alias = "initial_peers")]
    initial_peers: Vec<Multiaddr>,
    /// File with the key of a private swarm, which shuts out everyone without it; `sepal swarm-key FILE` makes one.
    #[arg(long, value_name = "FILE", alias = "swarm_key")]
    swarm_key: Option<PathBuf>,
    /// Find the nodes of the swarm NAME on the local network, and be found; no initial peers are needed.
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = DEFAULT_LAN)]
    lan: Option<String>,
}

/// The name of the swarm of everyone who gives none.
const DEFAULT_LAN: &str = "sepal";

/// The swarm that a node belongs to.
#[derive(Clone, Debug, Default)]
pub(super) struct Swarm {
    /// Nodes to join through. Empty: this is the first one.
    pub(super) initial_peers: Vec<Multiaddr>,
    /// Its name on the local network, where its nodes are looked for.
    pub(super) lan: Option<String>,
    /// The key of a private swarm.
    pub(super) key: Option<SwarmKey>,
    /// What its nodes gossip about here.
    pub(super) gossip: Option<GossipConfig>,
    /// What others add to their command lines besides an address.
    pub(super) flags: String,
}

impl Swarm {
    /// Whether this node is the first one, and looks for no others.
    pub(super) fn is_new(&self) -> bool {
        self.initial_peers.is_empty() && self.lan.is_none()
    }
}

impl SwarmArgs {
    /// Whether any swarm is named.
    pub(super) fn is_named(&self) -> bool {
        !self.initial_peers.is_empty() || self.lan.is_some()
    }

    /// The swarm to join; without initial peers, the public one.
    ///
    /// # Errors
    /// An address that names no peer, or a swarm key that cannot be used.
    pub(super) fn joined(&self) -> anyhow::Result<Swarm> {
        let mut swarm = self.new_or_joined()?;
        if swarm.initial_peers.is_empty() && swarm.lan.is_none() {
            if swarm.key.is_some() {
                bail!(
                    "--swarm-key needs --initial-peers or --lan, to find the swarm that has it: the public swarm has no key"
                );
            }
            swarm.initial_peers = PUBLIC_INITIAL_PEERS
                .iter()
                .map(|text| text.parse())
                .collect::<Result<_, _>>()?;
        }
        Ok(swarm)
    }

    /// The swarm to join; without initial peers, that of the local network.
    ///
    /// # Errors
    /// An address that names no peer, or a swarm key that cannot be used.
    pub(super) fn joined_or_local(&self) -> anyhow::Result<Swarm> {
        let mut swarm = self.new_or_joined()?;
        if swarm.initial_peers.is_empty() && swarm.lan.is_none() {
            swarm.lan = Some(DEFAULT_LAN.to_owned());
        }
        Ok(swarm)
    }

    /// The swarm to join; without initial peers, a new one.
    ///
    /// # Errors
    /// An address that names no peer, or a swarm key that cannot be used.
    pub(super) fn new_or_joined(&self) -> anyhow::Result<Swarm> {
        if let Some(addr) = self.initial_peers.iter().find(|addr| p2p::peer_id_of(addr).is_none()) {
            bail!("--initial-peers {addr} does not end in /p2p/PEER_ID");
        }
        let mut swarm = Swarm {
            initial_peers: self.initial_peers.clone(),
            lan: self.lan.clone(),
            ..Swarm::default()
        };
        if let Some(file) = &self.swarm_key {
            swarm.key = Some(SwarmKey::load(file)?);
            swarm.flags = format!(" --swarm-key {}", file.display());
        }
        Ok(swarm)
    }
}

/// Flags of `sepal swarm-key`.
#[derive(Debug, ClapArgs)]
pub(super) struct KeyArgs {
    /// Where to keep the key; the file must not exist.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// # Errors
/// If the file exists, or cannot be written.
pub(super) fn make_key(args: &KeyArgs) -> anyhow::Result<()> {
    let key = SwarmKey::create(&args.file)?;
    let file = args.file.display();
    super::output::line(format_args!("made {file}, fingerprint {}", key.fingerprint()));
    super::output::line(format_args!(
        "give the file to every node of the swarm, and nobody else, and start each with: --swarm-key {file}"
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(initial_peers: &[&str], swarm_key: Option<PathBuf>) -> SwarmArgs {
        SwarmArgs {
            initial_peers: initial_peers.iter().map(|addr| addr.parse().unwrap()).collect(),
            swarm_key,
            lan: None,
        }
    }

    #[test]
    fn without_initial_peers_the_swarm_is_the_public_one_unless_there_is_a_key() {
        let public = args(&[], None).joined().unwrap();
        assert_eq!(public.initial_peers.len(), PUBLIC_INITIAL_PEERS.len());
        assert!(!public.is_new());
        assert!(args(&[], None).new_or_joined().unwrap().is_new());

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("swarm.key");
        SwarmKey::create(&file).unwrap();
        let keyed = args(&[], Some(file));
        let error = keyed.joined().unwrap_err().to_string();
        assert!(error.contains("--swarm-key needs --initial-peers"), "{error}");
        let lan = SwarmArgs {
            lan: Some("home".to_owned()),
            ..args(&[], None)
        };
        assert!(lan.joined().unwrap().initial_peers.is_empty());
        assert!(!lan.new_or_joined().unwrap().is_new(), "others may be there");
        assert_eq!(lan.joined_or_local().unwrap().lan.as_deref(), Some("home"));
        assert_eq!(
            args(&[], None).joined_or_local().unwrap().lan.as_deref(),
            Some(DEFAULT_LAN)
        );
        assert!(keyed.new_or_joined().unwrap().key.is_some());
    }

    #[test]
    fn an_address_without_a_peer_and_a_missing_key_are_errors_that_name_the_flag_or_the_remedy() {
        let error = args(&["/ip4/127.0.0.1/tcp/1"], None).joined().unwrap_err();
        assert!(error.to_string().contains("--initial-peers"), "{error}");
        let error = args(&[], Some("/nowhere/swarm.key".into()))
            .new_or_joined()
            .unwrap_err();
        assert!(error.to_string().contains("sepal swarm-key"), "{error}");
    }
}
