//! `rpc_ping`, both sides: is a node there, what is its id and its time, can it call us back?

use std::{sync::Arc, time::Duration};

use sepal_protocol::{
    Message,
    dht_id::DhtId,
    names,
    proto::{PingRequest, PingResponse},
};

use super::node_id;
use crate::{
    dht::{node::Node, routing::Contact},
    p2p::{CallError, PeerId},
};

/// Limit for calling back a node that asks to be validated. It waits no longer for us either.
const PING_BACK_TIMEOUT: Duration = Duration::from_secs(3);

/// What a node says about itself when pinged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pong {
    /// `None`: it is a client.
    pub(crate) node: Option<DhtId>,
    /// Its DHT time; `None` if it does not say.
    pub(crate) time: Option<f64>,
    /// With `validate`: it could call us back.
    pub(crate) available: bool,
}

impl Pong {
    /// How far the clock of the one who answered is ahead of ours, in seconds: it was read at some time between our two
    /// readings.
    pub(crate) fn offset_s(&self, sent: f64, received: f64) -> Option<f64> {
        self.time.map(|time| time - time.clamp(sent.min(received), received))
    }
}

impl Node {
    /// Asks a peer which node it runs; with `validate`, also whether it can call us back.
    pub(crate) async fn call_ping(
        self: &Arc<Self>,
        peer: PeerId,
        validate: bool,
        timeout: Duration,
    ) -> Result<Pong, CallError> {
        let request = PingRequest {
            auth: None,
            peer: Some(self.node_info()),
            validate,
        };
        let answer = self
            .network
            .call(peer, names::DHT_PING, request.encode_to_vec().into(), timeout);
        let response: PingResponse = self.outcome(peer, answer.await, "PingResponse")?;
        let node = self.note_answer(peer, response.peer.as_ref());
        Ok(Pong {
            node,
            time: (response.dht_time != 0.0).then_some(response.dht_time),
            available: response.available,
        })
    }

    /// The same, and how far the peer's clock is ahead of ours, in seconds.
    pub(crate) async fn ping_clock(
        self: &Arc<Self>,
        peer: PeerId,
        validate: bool,
        timeout: Duration,
    ) -> Result<(Pong, Option<f64>), CallError> {
        let sent = self.now();
        let pong = self.call_ping(peer, validate, timeout).await?;
        Ok((pong, pong.offset_s(sent, self.now())))
    }

    pub(super) async fn on_ping(self: Arc<Self>, peer: PeerId, request: PingRequest) -> PingResponse {
        let claimed = node_id(request.peer.as_ref());
        let mut available = false;
        if let Some(claimed) = claimed.filter(|_| request.validate) {
            let pong = self.call_ping(peer, false, PING_BACK_TIMEOUT).await;
            available = pong.is_ok_and(|pong| pong.node == Some(claimed));
        }
        if let Some(id) = claimed.filter(|_| available || !request.validate) {
            self.heard_from(Contact { id, peer });
        }
        PingResponse {
            auth: None,
            peer: Some(self.node_info()),
            dht_time: self.now(),
            available,
        }
    }
}
