//! Announces blocks of a tiny model as a server does, and looks at them as the health map does. It computes nothing: what it
//! takes to be seen in a Petals swarm is a record for each block, and an answer to the question what one is.
//!
//! ```text
//! $ cargo run --release --example petals_visible
//! 12D3KooW… announces blocks 0:3 of example-hf
//! joining: tiny/example, 0 of 4 blocks can be used; Ada …, blocks 0:3, signature valid
//! online: tiny/example, 3 of 4 blocks can be used; Ada …, blocks 0:3, signature valid
//! missing 3:4: sepal serve tiny/example --blocks 3:4 --initial-peers ADDR
//! offline: tiny/example, 0 of 4 blocks can be used; Ada …, blocks 0:3, signature valid
//! ```
//!
//! With addresses of nodes (`petals_visible ADDR…`) it is seen in the swarm of those, for as long as it runs.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use sepal::p2p::{Config, Handler, HandlerLimits, Multiaddr, Router};
use sepal::swarm::Node;
use sepal::swarm::announce::{AnnounceConfig, Announcer};
use sepal::swarm::health::{self, Health, ModelState};
use sepal_protocol::record::{RpcInfo, ServerInfo, ServerState};
use sepal_protocol::{Message, names, proto};

const PREFIX: &str = "example-hf";
const PERIOD: Duration = Duration::from_secs(60);

/// Who asks `rpc_info` learns that there is somebody.
fn info() -> Handler {
    Handler::unary(names::INFO, HandlerLimits::default(), |_, _| async {
        let info = RpcInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            dht_client_mode: false,
            cache_tokens_available: 0,
            schema: None,
        };
        let serialized_info = info.encode();
        Ok(proto::ExpertInfo { serialized_info }.encode_to_vec().into())
    })
}

fn announcer(node: &Node) -> Announcer {
    let config = AnnounceConfig {
        peer: node.p2p.peer_id(),
        prefix: PREFIX.to_owned(),
        blocks: 0..3,
        n_model_blocks: 4,
        repository: Some("https://huggingface.co/tiny/example".to_owned()),
        period: PERIOD,
        expiration: AnnounceConfig::default_expiration(PERIOD),
    };
    println!("{} announces blocks 0:3 of {PREFIX}", config.peer);
    // Asked whenever records are stored, so that they say how things are then. The announcer adds state and blocks.
    let describe = || ServerInfo {
        public_name: Some("Ada".to_owned()),
        ..ServerInfo::new(ServerState::Offline, 100.0)
    };
    Announcer::spawn(node.dht.clone(), config, describe, &node.tasks)
}

fn show(model: &ModelState) {
    let usable = model.coverage.iter().filter(|servers| **servers > 0).count();
    for server in &model.servers {
        println!(
            "{}: {}, {usable} of {} blocks can be used; {} {}, blocks {}:{}, signature {}",
            server.state.name(),
            model.name,
            model.n_blocks,
            server.public_name.as_deref().unwrap_or("somebody"),
            server.short_id,
            server.start,
            server.end,
            format!("{:?}", server.signature).to_lowercase(),
        );
    }
    for hole in model.holes.iter().filter(|_| usable > 0) {
        println!("missing {}:{}: {}", hole.start, hole.end, hole.fill);
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let given: Result<Vec<Multiaddr>, _> = std::env::args().skip(1).map(|addr| addr.parse()).collect();
    let server = Node::join(Config::on_loopback(given?)).await?;
    Router::new(server.p2p.clone()).serve(vec![info()]).spawn(&server.tasks);
    let announcer = announcer(&server);
    let looker = Node::join(Config::client(server.p2p.addrs())).await?;
    let (p2p, dht) = looker.network();
    let health = Health::new(p2p, dht, health::Config::default(), &looker.tasks);
    for state in [ServerState::Joining, ServerState::Online, ServerState::Offline] {
        announcer.set_state(state).await?;
        let seen = health.collect().await;
        let model = seen.models.iter().find(|model| model.prefix == PREFIX);
        model.into_iter().for_each(show);
    }
    looker.stop().await;
    server.stop().await;
    Ok(())
}
