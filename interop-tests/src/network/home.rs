//! A home: machines in a local network behind a router that translates addresses and lets nobody in unasked.

use std::sync::Arc;

use anyhow::ensure;

use super::{Lines, Namespace};
use crate::place::Place;

/// How a router chooses the public port of a connection from inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// The port of the machine inside, whoever is dialed: two routers of this kind let a hole be punched.
    Easy,
    /// Another random port for each connection ("symmetric"): what one peer sees is of no use to another.
    Symmetric,
}

/// All homes have the same local network, as most real ones do: an address in it leads elsewhere in every home.
const LAN: &str = "192.168.1";

/// A home that is connected to the internet.
#[derive(Debug)]
pub struct Home {
    router: Arc<Namespace>,
    prefix: String,
    /// Its line to the internet.
    pub line: String,
    /// The first three numbers of its public address.
    net: String,
    public: u8,
    machines: u8,
}

impl Home {
    pub(super) fn new(
        router: Arc<Namespace>,
        prefix: &str,
        (line, net): (&str, String),
        nat: Nat,
    ) -> anyhow::Result<Self> {
        router.ip(&["link", "add", "lan", "type", "bridge", "mcast_snooping", "0"])?;
        router.ip(&["addr", "add", &format!("{LAN}.1/24"), "dev", "lan"])?;
        router.ip(&["link", "set", "lan", "up"])?;
        router.forward_packets()?;
        router.nft(&["-f", "-"], &rules(nat))?;
        Ok(Self {
            router,
            prefix: prefix.to_owned(),
            line: line.to_owned(),
            net,
            public: Lines::FIRST_ADDRESS,
            machines: 0,
        })
    }

    /// The address that the internet sees.
    pub fn public_ip(&self) -> String {
        format!("{}.{}", self.net, self.public)
    }

    /// A machine in this home.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub fn machine(&mut self, name: &str) -> anyhow::Result<Place> {
        ensure!(self.machines < 100, "a home of {} machines", self.machines);
        let ip = format!("{LAN}.{}", 10 + self.machines);
        let port = format!("port{}", self.machines);
        self.machines += 1;
        let machine = Arc::new(Namespace::new(format!("{}-{name}", self.prefix))?);
        let cable = ["netns", machine.name(), "type", "veth", "peer", "name", &port];
        machine.ip(&[&["link", "add", "lan"], &cable[..], &["netns", self.router.name()]].concat())?;
        self.router.ip(&["link", "set", &port, "master", "lan", "up"])?;
        machine.ip(&["addr", "add", &format!("{ip}/24"), "dev", "lan"])?;
        machine.ip(&["link", "set", "lan", "up"])?;
        machine.ip(&["route", "add", "default", "via", &format!("{LAN}.1")])?;
        Ok(Place::new(machine, ip, self.line.clone()))
    }

    /// Gives the router another public address, as providers do at night. Connections over the old one are lost without a
    /// word: nobody answers there any more.
    ///
    /// # Errors
    ///
    /// If the address cannot be changed.
    pub fn change_address(&mut self) -> anyhow::Result<()> {
        self.public += 1;
        self.router.ip(&["addr", "flush", "dev", Lines::WAN])?;
        let ip = self.public_ip();
        self.router
            .ip(&["addr", "add", &format!("{ip}/24"), "dev", Lines::WAN])?;
        self.router
            .ip(&["route", "add", "default", "via", &format!("{}.1", self.net)])
    }
}

/// Neither kind lets anybody in who was not dialed from inside, nor says so: a refusal would end the attempts of a peer
/// that dials at the same time.
fn rules(nat: Nat) -> String {
    let wan = Lines::WAN;
    let ports = match nat {
        Nat::Easy => "",
        Nat::Symmetric => "random,fully-random",
    };
    format!(
        "table ip home {{
            chain input {{
                type filter hook input priority 0; policy drop;
                ct state established,related accept
                iifname != \"{wan}\" accept
            }}
            chain forward {{
                type filter hook forward priority 0; policy drop;
                ct state established,related accept
                iifname \"lan\" accept
            }}
            chain translate {{
                type nat hook postrouting priority 100;
                oifname \"{wan}\" masquerade {ports}
            }}
        }}"
    )
}
