//! A server's record as map monitors of other Rust nodes read it: one flat MessagePack map by field name, the state as a
//! word, every field there. Petals knows nothing of it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::ServerInfo;
use crate::error::WireError;

/// The map. Its reader is strict: a field that a record leaves open is empty or zero here, not nil.
#[derive(Serialize)]
struct MonitorInfo<'a> {
    state: &'static str,
    throughput: f64,
    start_block: u32,
    end_block: u32,
    public_name: &'a str,
    version: &'a str,
    network_rps: f64,
    forward_rps: f64,
    inference_rps: f64,
    adapters: &'a [String],
    torch_dtype: &'a str,
    quant_type: &'a str,
    using_relay: bool,
    cache_tokens_left: u64,
    next_pings: BTreeMap<&'a str, f64>,
}

impl ServerInfo {
    /// The answer to a map monitor on [`LEGACY_RPC`](crate::names::LEGACY_RPC).
    ///
    /// # Errors
    /// [`WireError::Inexpressible`]; a record has nothing that MessagePack cannot express, so this does not happen.
    pub fn encode_for_map_monitor(&self) -> Result<Vec<u8>, WireError> {
        fn text(field: &Option<String>) -> &str {
            field.as_deref().unwrap_or_default()
        }
        let pings = self
            .next_pings
            .iter()
            .flatten()
            .map(|(peer, rtt)| (peer.as_str(), *rtt));
        let info = MonitorInfo {
            state: self.state.name(),
            throughput: self.throughput,
            start_block: self.start_block.unwrap_or_default(),
            end_block: self.end_block.unwrap_or_default(),
            public_name: text(&self.public_name),
            version: text(&self.version),
            network_rps: self.network_rps.unwrap_or_default(),
            forward_rps: self.forward_rps.unwrap_or_default(),
            inference_rps: self.inference_rps.unwrap_or_default(),
            adapters: &self.adapters,
            torch_dtype: text(&self.torch_dtype),
            quant_type: text(&self.quant_type),
            using_relay: self.using_relay.unwrap_or_default(),
            cache_tokens_left: self.cache_tokens_left.unwrap_or_default(),
            next_pings: pings.collect(),
        };
        rmp_serde::to_vec_named(&info).map_err(|_| WireError::Inexpressible {
            what: "the record for a map monitor",
        })
    }
}
