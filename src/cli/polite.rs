//! What a node keeps to for the sake of the machine, the line and the people around it: flags of `sepal serve`. What they
//! do is in `server` and `p2p`; only the hours are kept here.

mod hours;
mod values;

use std::{sync::Arc, thread, time::Duration};

use clap::Args as ClapArgs;
use jiff::{Timestamp, Zoned};
use tracing::{info, warn};

pub(super) use self::values::bandwidth;
use self::{
    hours::{Hours, Moment},
    values::Listed,
};
use super::parsers::at_least_one;
use crate::{
    p2p::PeerId,
    server::{Politeness, Quotas, Server, Who},
    task::Tasks,
};

/// How long the clock of the wall is trusted to go on as it does: machines sleep, and people change zones and clocks.
const LOOK_AGAIN: Duration = Duration::from_secs(20);

#[derive(Clone, Debug, Default, ClapArgs)]
pub(super) struct PoliteArgs {
    /// How much of the machine's processors computing may take, such as 50%: between two pieces of work it rests. The announced
    /// throughput is less by as much. Use --threads to leave whole cores to others.
    #[arg(long, value_name = "PERCENT", value_parser = values::percent)]
    max_cpu: Option<f64>,
    /// Hours of the week, in the time zone of the machine, in which new sessions are taken: such as
    /// "mon-fri 18:00-08:00, sat-sun". Outside of them the node is paused. What `sepal pause` and `sepal resume` say holds
    /// until the hours begin or end the next time.
    #[arg(long, value_name = "HOURS")]
    schedule: Option<Hours>,
    /// Peers that are served before others, and have no quotas: peer ids, or @FILE with one a line.
    #[arg(long, value_name = "PEER|@FILE", num_args = 1.., value_parser = values::peers)]
    own: Vec<Listed<PeerId>>,
    /// The only peers that blocks are computed for: peer ids, IP addresses, networks such as 10.0.0.0/8, or @FILE with one a
    /// line. Peers behind relays are known by their ids only. The DHT answers everybody.
    #[arg(long, value_name = "PEER|IP|NETWORK|@FILE", num_args = 1.., value_parser = values::allowed)]
    allow: Vec<Listed<Who>>,
    /// Peers that no blocks are computed for, whatever --allow says: as for --allow.
    #[arg(long, value_name = "PEER|IP|NETWORK|@FILE", num_args = 1.., value_parser = values::who)]
    deny: Vec<Listed<Who>>,
    /// Sessions that one peer may have open; more are refused.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_sessions_per_peer: Option<u32>,
    /// Tokens that one peer may have computed in a minute; more are refused until then.
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    max_tokens_per_peer: Option<u32>,
    /// Part of a model's attention cache that one peer may reserve, such as 25%.
    #[arg(long, value_name = "PERCENT", value_parser = values::percent)]
    max_cache_per_peer: Option<f64>,
}

impl PoliteArgs {
    /// The rules for computing with so many threads.
    pub(super) fn rules(&self, threads: usize) -> Politeness {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let quotas = Quotas {
            sessions: self.max_sessions_per_peer.map(|max| max as usize),
            tokens_per_minute: self.max_tokens_per_peer,
            cache: self.max_cache_per_peer,
        };
        let listed = |lists: &[Listed<Who>]| lists.iter().flat_map(|list| list.0.clone()).collect();
        Politeness {
            own: self.own.iter().flat_map(|list| list.0.clone()).collect(),
            allow: listed(&self.allow),
            deny: listed(&self.deny),
            quotas,
            ..Politeness::new(share(self.max_cpu, threads, processors))
        }
    }

    /// Keeps the hours, if there are some: from now on, so that nothing is announced outside of them.
    pub(super) fn keep_hours(&self, servers: &[Arc<Server>], tasks: &Tasks) {
        let Some(hours) = self.schedule.clone() else { return };
        let servers = servers.to_vec();
        let now = Zoned::now();
        told(&hours, &servers, &now);
        info!(%hours, "{}", said(&hours.at(&now), &now));
        tasks.spawn_until_stopped("hours", keep(hours, servers, Zoned::now));
    }
}

/// The part of the time in which this many threads may compute, so that they take a part of all processors.
fn share(max_cpu: Option<f64>, threads: usize, processors: usize) -> f64 {
    let part = max_cpu.unwrap_or(1.0) * processors as f64 / threads.max(1) as f64;
    part.min(1.0)
}

/// Tells the servers of a node what hours it is. Returns whether that changes what they do.
fn told(hours: &Hours, servers: &[Arc<Server>], now: &Zoned) -> bool {
    let moment = hours.at(now);
    let changes: Vec<bool> = servers
        .iter()
        .map(|server| server.set_hours(moment.within, moment.until.map(Into::into)))
        .collect();
    changes.contains(&true)
}

/// What the hours are, for whoever reads the log.
fn said(moment: &Moment, now: &Zoned) -> String {
    let until = moment.until.map_or_else(String::new, |until| {
        let until = until.to_zoned(now.time_zone().clone());
        format!(" until {}", until.strftime("%a %H:%M"))
    });
    match moment.within {
        true => format!("the schedule lets new sessions in{until}"),
        false => format!("paused by the schedule{until}"),
    }
}

/// Pauses and resumes the servers of a node as the hours and the clock say, for ever.
async fn keep(hours: Hours, servers: Vec<Arc<Server>>, clock: impl Fn() -> Zoned) {
    loop {
        let now = clock();
        if told(&hours, &servers, &now) {
            info!(%hours, "{}", said(&hours.at(&now), &now));
            for told in futures::future::join_all(servers.iter().map(|server| server.tell_pause())).await {
                if let Err(error) = told {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "the swarm does not learn whether new sessions are taken"
                    );
                }
            }
        }
        let left = hours.at(&now).until.map_or(LOOK_AGAIN, |until| time_to(until, &now));
        tokio::time::sleep(left.min(LOOK_AGAIN)).await;
    }
}

fn time_to(until: Timestamp, now: &Zoned) -> Duration {
    let left = until.duration_since(now.timestamp());
    Duration::try_from(left).unwrap_or_default()
}

#[cfg(test)]
mod tests;
