//! A small internet of network namespaces in this machine: public hosts, homes behind routers, slow and broken lines.
//!
//! One namespace is the internet. Every host or home hangs on a line of its own and has a network of its own, so that the
//! internet only routes; it counts what goes from line to line, and can be told to cut it. Nothing leads out of the
//! namespaces to the real network. Needs root, `ip` and `nft`, and fails without.

mod home;
mod namespace;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, ensure};
use serde_json::Value;

pub use self::{
    home::{Home, Nat},
    namespace::Namespace,
};
use crate::{ANSWER, hub::repository, place::Place, process::Process};

/// What the internet does: route, count, cut.
const INTERNET: &str = "table inet internet {
    set cut { type ifname . ifname; }
    set flows { type ifname . ifname; size 4096; flags dynamic; }
    chain forward {
        type filter hook forward priority 0; policy accept;
        iifname . oifname @cut drop
        update @flows { iifname . oifname counter }
    }
}";

/// A line whose packets take their time, and some of which are lost.
#[derive(Clone, Copy, Debug)]
pub struct Slow {
    /// One way, in milliseconds.
    pub delay: u32,
    /// Share of lost packets, each way.
    pub loss: f64,
}

/// The names and addresses of the lines to the internet.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    names: Vec<String>,
}

impl Lines {
    /// The device at the customer's end.
    const WAN: &str = "wan";
    /// The last number of a customer's first address.
    const FIRST_ADDRESS: u8 = 2;

    /// The first three numbers of the addresses of a new line. Every program must take them for public ones: those kept
    /// for documentation and measurements are none to go-libp2p (`go-multiaddr/net/private.go`) and to rust-libp2p. These
    /// belong to somebody who has never used them on the internet; here they never leave the namespaces.
    fn add(&mut self, name: &str) -> anyhow::Result<String> {
        // The kernel's limit for the name of a device is 15 bytes.
        ensure!(
            name.len() <= 15 && !self.names.iter().any(|have| have == name),
            "bad name {name}"
        );
        self.names.push(name.to_owned());
        Ok(format!("25.{}.0", self.names.len()))
    }
}

/// The internet of one test.
#[derive(Debug)]
pub struct Network {
    internet: Namespace,
    prefix: String,
    lines: Lines,
    /// Routers do not go away with the handle to their home.
    customers: Vec<Arc<Namespace>>,
    slow_lines: Vec<Process>,
}

impl Network {
    /// An internet without anybody.
    ///
    /// # Errors
    ///
    /// If this user may not, or a program is missing.
    pub fn new() -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // No other running process has our number, and no other network of this process that of ours.
        let prefix = format!("sepal-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let internet = Namespace::new(format!("{prefix}-internet"))?;
        internet.forward_packets()?;
        internet.nft(&["-f", "-"], INTERNET)?;
        Ok(Self {
            internet,
            prefix,
            lines: Lines::default(),
            customers: Vec::new(),
            slow_lines: Vec::new(),
        })
    }

    /// A host with a public address that anyone can dial.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub fn host(&mut self, name: &str) -> anyhow::Result<Place> {
        let (host, net) = self.customer(name, None)?;
        Ok(Place::new(
            host,
            format!("{net}.{}", Lines::FIRST_ADDRESS),
            name.to_owned(),
        ))
    }

    /// The same at the end of a slow line.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub fn slow_host(&mut self, name: &str, slow: Slow) -> anyhow::Result<Place> {
        let (host, net) = self.customer(name, Some(slow))?;
        Ok(Place::new(
            host,
            format!("{net}.{}", Lines::FIRST_ADDRESS),
            name.to_owned(),
        ))
    }

    /// A home with nobody in it yet.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub fn home(&mut self, name: &str, nat: Nat) -> anyhow::Result<Home> {
        let (router, net) = self.customer(name, None)?;
        Home::new(router, &self.prefix, (name, net), nat)
    }

    /// Lets no packet pass between the lines of two groups.
    ///
    /// # Errors
    ///
    /// If `nft` fails.
    pub fn cut(&self, some: &[&str], others: &[&str]) -> anyhow::Result<()> {
        let pairs: Vec<String> = some
            .iter()
            .flat_map(|one| {
                others
                    .iter()
                    .map(move |other| format!("{one:?} . {other:?}, {other:?} . {one:?}"))
            })
            .collect();
        let element = format!("{{ {} }}", pairs.join(", "));
        self.internet
            .nft(&["add", "element", "inet", "internet", "cut", &element], "")
            .map(drop)
    }

    /// Lets everything pass again.
    ///
    /// # Errors
    ///
    /// If `nft` fails.
    pub fn heal(&self) -> anyhow::Result<()> {
        self.internet
            .nft(&["flush", "set", "inet", "internet", "cut"], "")
            .map(drop)
    }

    /// Bytes that went between two lines so far, both ways together.
    ///
    /// # Errors
    ///
    /// If `nft` fails.
    pub fn bytes_between(&self, one: &str, other: &str) -> anyhow::Result<u64> {
        let flows = self.flows()?;
        let way = |from: &str, to: &str| {
            flows
                .get(&(from.to_owned(), to.to_owned()))
                .copied()
                .unwrap_or_default()
        };
        Ok(way(one, other) + way(other, one))
    }

    fn flows(&self) -> anyhow::Result<BTreeMap<(String, String), u64>> {
        let listed = self
            .internet
            .nft(&["-j", "list", "set", "inet", "internet", "flows"], "")?;
        let listed: Value = serde_json::from_str(&listed)?;
        let mut flows = BTreeMap::new();
        for element in listed
            .pointer("/nftables/1/set/elem")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let name = |at| {
                element
                    .pointer(&format!("/elem/val/concat/{at}"))
                    .and_then(Value::as_str)
            };
            let bytes = element.pointer("/elem/counter/bytes").and_then(Value::as_u64);
            let (from, to) = name(0).zip(name(1)).with_context(|| format!("no flow: {element}"))?;
            let bytes = bytes.with_context(|| format!("no counter: {element}"))?;
            flows.insert((from.to_owned(), to.to_owned()), bytes);
        }
        Ok(flows)
    }

    /// A new line, and who is at its other end.
    fn customer(&mut self, name: &str, slow: Option<Slow>) -> anyhow::Result<(Arc<Namespace>, String)> {
        let net = self.lines.add(name)?;
        let customer = Arc::new(Namespace::new(format!("{}-{name}", self.prefix))?);
        self.customers.push(customer.clone());
        match slow {
            None => {
                let cable = ["netns", customer.name(), "type", "veth", "peer", "name", name];
                customer.ip(&[
                    &["link", "add", Lines::WAN],
                    &cable[..],
                    &["netns", self.internet.name()],
                ]
                .concat())?;
            }
            Some(slow) => {
                let line = self.slow_line(name, slow)?;
                self.slow_lines.push(line);
                self.internet
                    .ip(&["link", "set", Lines::WAN, "netns", customer.name()])?;
            }
        }
        self.internet
            .ip(&["addr", "add", &format!("{net}.1/24"), "dev", name])?;
        self.internet.ip(&["link", "set", name, "up"])?;
        let address = format!("{net}.{}/24", Lines::FIRST_ADDRESS);
        customer.ip(&["addr", "add", &address, "dev", Lines::WAN])?;
        customer.ip(&["link", "set", Lines::WAN, "up"])?;
        customer.ip(&["route", "add", "default", "via", &format!("{net}.1")])?;
        Ok((customer, net))
    }

    /// Not `tc netem`: not every kernel has it (virtual machines of continuous integration often do not), and one way of
    /// doing this is better than two. The program makes both devices; one of them is then given to the customer.
    fn slow_line(&self, name: &str, slow: Slow) -> anyhow::Result<Process> {
        let mut command = self.internet.command("python3".as_ref());
        command
            .arg(repository().join("interop-tests/python/slow_line.py"))
            .args([Lines::WAN, name, &slow.delay.to_string(), &slow.loss.to_string()]);
        let mut line = Process::start("slow_line.py", &mut command)?;
        line.wait_line("ready", ANSWER)?;
        Ok(line)
    }
}
