//! What nodes of tests are asked for that are in no swarm that matters.

use std::time::Duration;

use futures::future::BoxFuture;

use super::{
    Refusal, Swarms,
    protocol::{Connect, FailureCode, SwarmRow},
};
use crate::p2p::P2p;

/// Is in no swarm, agrees to all, and leaves none.
#[derive(Debug)]
pub(crate) struct Nowhere;

impl Swarms for Nowhere {
    fn list(&self) -> Vec<SwarmRow> {
        Vec::new()
    }

    fn guests(&self) -> Vec<(u32, P2p)> {
        Vec::new()
    }

    fn connect(&self, asked: Connect) -> BoxFuture<'_, Result<SwarmRow, Refusal>> {
        Box::pin(async move {
            Ok(SwarmRow {
                addresses: asked.addresses,
                ..SwarmRow::default()
            })
        })
    }

    fn disconnect(&self, swarm: &str, _: Option<Duration>) -> Result<SwarmRow, Refusal> {
        let message = format!("no {swarm}");
        let code = FailureCode::BadRequest;
        Err(Refusal { code, message })
    }
}
