//! `sepal swarms`, `connect` and `disconnect`: which swarms a running node is in, and which it shall be in.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::Args as ClapArgs;

use crate::{
    cli::{
        output,
        parsers::{multiaddr, port},
        plain::{cut, duration, plain},
        serve,
        status::{self, show},
    },
    control::{
        Connection,
        protocol::{Answer, Connect, Request, SwarmRow, SwarmState},
    },
    p2p::Multiaddr,
};

/// How often a node is asked how far it is.
const LOOK: Duration = Duration::from_millis(500);

/// Characters of the blocks of a swarm, and of an address.
const BLOCKS: usize = 40;
const ADDRESS: usize = 120;

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct ConnectArgs {
    /// Nodes of the swarm to join through, each ending in /p2p/PEER_ID.
    #[arg(value_name = "ADDR", required = true, value_parser = multiaddr)]
    addresses: Vec<Multiaddr>,
    /// What to call the swarm here [default: swarm-2, swarm-3 and so on].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// File with the key of a private swarm.
    #[arg(long, value_name = "FILE", alias = "swarm_key")]
    swarm_key: Option<PathBuf>,
    /// TCP and UDP port to listen on in that swarm; 0 takes any free one.
    #[arg(long, value_name = "PORT", default_value_t = 0, value_parser = port)]
    port: u16,
    #[command(flatten)]
    order: status::Args,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct DisconnectArgs {
    /// Its name, its number, or one of the addresses that it was joined through.
    #[arg(value_name = "SWARM")]
    swarm: String,
    /// Leave after this time even if sessions are open.
    #[arg(long, value_name = "SECONDS", value_parser = serve::parse_seconds)]
    timeout: Option<Duration>,
    #[command(flatten)]
    order: status::Args,
}

/// Has a node be in another swarm as well, and returns when it is.
///
/// # Errors
/// There is no node to tell, or it does not get in.
pub(in crate::cli) async fn connect(args: ConnectArgs) -> anyhow::Result<()> {
    // The node may run in another folder.
    let key = args.swarm_key.as_deref().map(std::path::absolute).transpose();
    let key = key.context("cannot tell where the swarm key is")?;
    let request = Request::Connect(Connect {
        addresses: args.addresses.iter().map(Multiaddr::to_string).collect(),
        name: args.name,
        swarm_key: key.map(|path| path.display().to_string()),
        port: (args.port != 0).then_some(args.port),
    });
    let mut connection = args.order.target.connect().await?;
    let mut row = one(connection.ask(&request).await?)?;
    while row.joined_s.is_none() && row.state == SwarmState::Joining {
        tokio::time::sleep(LOOK).await;
        row = look(&mut connection, &row)
            .await?
            .with_context(|| format!("{} cannot be joined: sepal status shows why", row.name))?;
    }
    show(Answer::Swarm(Box::new(row)), args.order.json)
}

/// Has a node leave a swarm, and returns when it has left it. Whoever breaks this off does not keep it there.
///
/// # Errors
/// There is no node to tell, or it cannot leave.
pub(in crate::cli) async fn disconnect(args: &DisconnectArgs) -> anyhow::Result<()> {
    let order = &args.order;
    let request = Request::Disconnect {
        swarm: args.swarm.clone(),
        timeout_s: args.timeout.map(|timeout| timeout.as_secs_f64()),
    };
    let mut connection = order.target.connect().await?;
    let mut row = one(connection.ask(&request).await?)?;
    let mut told = None;
    loop {
        if row.sessions > 0 && told != Some(row.sessions) && !order.json {
            output::line(format_args!("waiting for {} open session(s)", row.sessions));
            told = Some(row.sessions);
        }
        let now = look(&mut connection, &row).await?;
        // One that was left and joined anew meanwhile is not waited for.
        let Some(now) = now.filter(|now| now.state == SwarmState::Leaving) else {
            break;
        };
        row = now;
        tokio::time::sleep(LOOK).await;
    }
    match order.json {
        true => output::line(serde_json::json!({"left": row.name, "number": row.number})),
        false => output::line(plain(&format!("left {}", row.name))),
    }
    Ok(())
}

/// How the node is now with a swarm, if it is still in it.
async fn look(connection: &mut Connection, row: &SwarmRow) -> anyhow::Result<Option<SwarmRow>> {
    match connection.ask(&Request::Swarms).await? {
        Answer::Swarms { swarms } => Ok(swarms.into_iter().find(|other| is_same(row, other))),
        _ => bail!("the node answers something else"),
    }
}

/// Whether two rows are about one swarm. Numbers become free when swarms are left, and are given to others.
fn is_same(row: &SwarmRow, other: &SwarmRow) -> bool {
    (row.number, &row.name, &row.addresses) == (other.number, &other.name, &other.addresses)
}

fn one(answer: Answer) -> anyhow::Result<SwarmRow> {
    match answer {
        Answer::Swarm(row) => Ok(*row),
        _ => bail!("the node answers something else"),
    }
}

/// The swarms of a node, with a second line for each: where it is joined.
pub(in crate::cli) fn lines(swarms: &[SwarmRow]) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<3} {:<16} {:<8} {:>6} {:>6} {:>9} {:<24} {}",
        "", "swarm", "state", "nodes", "peers", "sessions", "blocks", "joined"
    )];
    for swarm in swarms {
        let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let joined = swarm.joined_s.map(|seconds| format!("{} ago", duration(seconds)));
        lines.push(format!(
            "{:<3} {:<16} {:<8} {:>6} {:>6} {:>9} {:<24} {}",
            swarm.number,
            swarm.name,
            swarm.state.as_str(),
            swarm.nodes,
            swarm.peers,
            swarm.sessions,
            or_none(cut(&swarm.blocks.join(", "), BLOCKS)),
            or_none(joined.unwrap_or_default())
        ));
        if let Some(reason) = &swarm.reason {
            lines.push(format!("    {reason}"));
        }
        lines.push(format!("    {}", place(swarm)));
    }
    lines
}

fn place(swarm: &SwarmRow) -> String {
    let more = match swarm.addresses.len() {
        0 | 1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    let mut place = match swarm.addresses.first() {
        Some(addr) => format!("joined through {}{more}", cut(addr, ADDRESS)),
        None => "begun by this node, or found on the local network".to_owned(),
    };
    if let Some(addr) = swarm.listening.first() {
        place += &format!(", listening {}", cut(addr, ADDRESS));
    }
    if let Some(key) = &swarm.key {
        place += &format!(", private, key {key}");
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swarm_that_has_the_number_of_one_that_was_left_is_another_one() {
        let row = |number, name: &str, addr: &str| SwarmRow {
            number,
            name: name.to_owned(),
            addresses: vec![addr.to_owned()],
            ..SwarmRow::default()
        };
        let friends = row(2, "friends", "A");
        let later = SwarmRow {
            state: SwarmState::Leaving,
            sessions: 1,
            ..friends.clone()
        };
        assert!(is_same(&friends, &later));
        for other in [row(3, "friends", "A"), row(2, "others", "A"), row(2, "friends", "B")] {
            assert!(!is_same(&friends, &other), "{other:?}");
        }
    }

    #[test]
    fn swarms_are_told_in_lines() {
        let home = SwarmRow {
            number: 1,
            name: "public".to_owned(),
            addresses: vec![
                "/ip4/192.0.2.1/tcp/1/p2p/A".to_owned(),
                "/ip4/192.0.2.2/tcp/1/p2p/B".to_owned(),
            ],
            state: SwarmState::Online,
            joined_s: Some(7325.0),
            nodes: 12,
            peers: 7,
            sessions: 2,
            blocks: vec!["demo-hf 0:4".to_owned()],
            ..SwarmRow::default()
        };
        let friends = SwarmRow {
            number: 3,
            name: "friends".to_owned(),
            key: Some("aabb".to_owned()),
            listening: vec!["/ip4/192.0.2.9/tcp/31331/p2p/C".to_owned()],
            state: SwarmState::Offline,
            reason: Some("nobody answers".to_owned()),
            ..SwarmRow::default()
        };
        assert_eq!(
            lines(&[home, friends]),
            [
                "    swarm            state     nodes  peers  sessions blocks                   joined",
                "1   public           online       12      7         2 demo-hf 0:4              2 h 2 min ago",
                "    joined through /ip4/192.0.2.1/tcp/1/p2p/A and 1 more",
                "3   friends          offline       0      0         0 -                        -",
                "    nobody answers",
                "    begun by this node, or found on the local network, listening /ip4/192.0.2.9/tcp/31331/p2p/C, \
                 private, key aabb",
            ]
        );
    }
}
