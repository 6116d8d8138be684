//! What routers have to tell about ports that lead here (`portmap.rs`): weighed as evidence, announced unless that
//! speaks against them, and kept for whoever asks why there are none.

use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::{Multiaddr, upnp};
use tracing::{debug, info};

use super::{
    super::{
        portmap::{Mapper, Mapping, Report},
        reachability::{Evidence, Source, Verdict},
    },
    Actor,
};

/// How long the router's UPnP service has to take ports back when the node stops.
const FAREWELL: Duration = Duration::from_secs(1);

impl Actor {
    pub(super) fn on_upnp(&mut self, event: upnp::Event) {
        let report = match event {
            upnp::Event::NewExternalAddr { external_addr, .. } => Report::Mapped(external_addr),
            upnp::Event::ExpiredExternalAddr { external_addr, .. } => Report::Lost(external_addr),
            upnp::Event::GatewayNotFound => Report::Failed(Mapping::NoGateway),
            upnp::Event::NonRoutableGateway => Report::Failed(Mapping::NotPublic),
        };
        self.on_mapping(Mapper::Upnp, report);
    }

    pub(super) fn on_mapping(&mut self, mapper: Mapper, report: Report) {
        match report {
            Report::Mapped(addr) => {
                info!(%addr, ?mapper, "the router lets others in");
                self.mapped.insert((mapper, addr.clone()));
                self.on_candidate(addr.clone());
                let evidence = Evidence::new(Source::PortMapping, Verdict::Dialable, Instant::now());
                self.hear(evidence.about(addr.clone()));
                let effects = self.judge.confirm(addr);
                self.apply(effects);
                // libp2p's UPnP takes every port for proven.
                self.announce();
            }
            Report::Lost(addr) => {
                debug!(%addr, ?mapper, "the router no longer lets others in");
                self.mapped.remove(&(mapper, addr.clone()));
                if !self.mapped.iter().any(|(_, other)| *other == addr) {
                    let effects = self.judge.withdraw(&addr);
                    self.apply(effects);
                }
                self.announce();
            }
            Report::Failed(outcome) => {
                if self.outputs.port_map.borrow().get(&mapper) != Some(&outcome) {
                    debug!(?mapper, ?outcome, "the router gives no port");
                }
                self.tell_mapping(mapper, outcome);
                return;
            }
        }
        let addrs = self.mapped.iter().filter(|(by, _)| *by == mapper);
        let addrs: Vec<Multiaddr> = addrs.map(|(_, addr)| addr.clone()).collect();
        self.tell_mapping(mapper, Mapping::Mapped(addrs));
    }

    fn tell_mapping(&mut self, mapper: Mapper, outcome: Mapping) {
        // One port that was given says more than another that was not.
        let has_some = self.mapped.iter().any(|(by, _)| *by == mapper);
        if has_some && !matches!(outcome, Mapping::Mapped(_)) {
            return;
        }
        self.outputs
            .port_map
            .send_if_modified(|all| all.insert(mapper, outcome.clone()).as_ref() != Some(&outcome));
    }

    /// Gives ports back that were got over UPnP: libp2p does so when a listener is closed.
    pub(super) async fn unmap(&mut self) {
        if !self.mapped.iter().any(|(by, _)| *by == Mapper::Upnp) {
            return;
        }
        for id in std::mem::take(&mut self.listeners) {
            self.swarm.remove_listener(id);
        }
        let quiet = async {
            loop {
                self.swarm.select_next_some().await;
            }
        };
        // The router answers nothing that would tell the end.
        let _: Result<(), _> = tokio::time::timeout(FAREWELL, quiet).await;
    }
}
