//! The answering side of `/ipfs/kad/1.0.0`, which turns peer ids into addresses. (The asking side is libp2p's.)
//!
//! Why not libp2p-kad's own server: Hivemind nodes depend on two habits of go-libp2p's that it does not have and has no
//! hook for. A Go node takes a peer into its table only if that peer answers "who is near *you*?" with somebody, and
//! libp2p-kad leaves out the asker and itself, so the first peer of a new bootstrap node would be told "nobody". And a Go
//! server includes the wanted peer itself whenever it knows addresses of it, even of a peer that serves no kad: this is how
//! client-mode and relayed nodes are found at all. So libp2p-kad runs in client mode here, keeps the routing table and does
//! the iterative queries; inbound requests are answered by this file out of that table and the address book.

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use libp2p::{Multiaddr, PeerId, Stream};
use sepal_protocol::{
    Message,
    frame::{DelimitedReader, delimited},
    proto::{KadMessage, KadPeer},
};

use super::wire;

/// The protocol's name; the same as that of the public IPFS network.
pub(crate) const NAME: &str = "/ipfs/kad/1.0.0";

/// Message type of a request for the peers nearest to a peer id.
const FIND_NODE: i32 = 4;

/// Message type of a sign of life.
const PING: i32 = 5;

/// Largest request, bytes. A FIND_NODE is about 50; go-libp2p allows 4 MiB because it also stores values.
const MAX_REQUEST: usize = 16 * 1024;

/// A stream without a request for so long is closed; go-libp2p uses the same.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// A peer in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) peer: PeerId,
    pub(crate) addrs: Vec<Multiaddr>,
    pub(crate) connected: bool,
}

/// Answers the requests of one stream, which come one after another. `find` looks up the peers nearest to a key.
pub(crate) async fn serve(stream: Stream, find: impl Fn(Bytes) -> BoxFuture<'static, Vec<Found>>) {
    let (mut input, mut output) = wire::split(stream);
    let mut reader = DelimitedReader::new(MAX_REQUEST);
    loop {
        let request = match reader.next_frame() {
            Ok(Some(request)) => request,
            Ok(None) => match tokio::time::timeout(IDLE_TIMEOUT, input.read()).await {
                Ok(Ok(bytes)) if !bytes.is_empty() => {
                    reader.extend(bytes);
                    continue;
                }
                _ => break,
            },
            Err(_) => break,
        };
        let Some(answer) = answer(request, &find).await else {
            break;
        };
        output.queue(delimited(&answer.encode_to_vec()));
        if !matches!(tokio::time::timeout(IDLE_TIMEOUT, output.flush()).await, Ok(Ok(()))) {
            return;
        }
    }
    let _ = tokio::time::timeout(IDLE_TIMEOUT, output.close()).await;
}

/// The answer to one request, or `None` if it is not one that a Hivemind node asks: values and providers are not kept.
async fn answer(request: Bytes, find: impl Fn(Bytes) -> BoxFuture<'static, Vec<Found>>) -> Option<KadMessage> {
    let mut message = KadMessage::decode(request).ok()?;
    match message.r#type {
        PING => Some(message),
        FIND_NODE => {
            // Not always a peer id: Hivemind's daemon, looking for relays, asks for the text of its own.
            message.closer_peers = find(message.key.clone().into())
                .await
                .into_iter()
                .map(to_wire)
                .collect();
            Some(message)
        }
        _ => None,
    }
}

fn to_wire(found: Found) -> KadPeer {
    KadPeer {
        id: found.peer.to_bytes(),
        addrs: found.addrs.iter().map(Multiaddr::to_vec).collect(),
        connection: i32::from(found.connected),
    }
}
