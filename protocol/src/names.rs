//! The names of the calls, as they are negotiated on a libp2p stream. They have no leading slash.
//!
//! A name is `<class>.<method>` of the Python object that serves it (hivemind, `p2p/servicer.py`); a namespace, which
//! Petals does not use, would come first with `::`. Whether a call is unary or a stream follows from its name, on both
//! sides: the wrong framing is answered with an empty end of stream.

/// Is a node there, and (with `validate`) can it call us back? Unary, `PingRequest` to `PingResponse`.
pub const DHT_PING: &str = "DHTProtocol.rpc_ping";
/// Keep these records. Unary, `StoreRequest` to `StoreResponse`.
pub const DHT_STORE: &str = "DHTProtocol.rpc_store";
/// Records and nearest nodes for these keys. Unary, `FindRequest` to `FindResponse`.
pub const DHT_FIND: &str = "DHTProtocol.rpc_find";

/// What a server is and which tensors it expects. Unary, `ExpertUID` to `ExpertInfo`.
pub const INFO: &str = "TransformerConnectionHandler.rpc_info";
/// Steps of one session with a cache. Stream of `ExpertRequest` to stream of `ExpertResponse`.
pub const INFERENCE: &str = "TransformerConnectionHandler.rpc_inference";
/// A step handed over by the server before this one. Unary, `ExpertRequest` to an empty `ExpertResponse`.
pub const PUSH: &str = "TransformerConnectionHandler.rpc_push";
/// Blocks without a cache. Unary, `ExpertRequest` to `ExpertResponse`.
pub const FORWARD: &str = "TransformerConnectionHandler.rpc_forward";
/// Gradients of the inputs. Unary, `ExpertRequest` to `ExpertResponse`.
pub const BACKWARD: &str = "TransformerConnectionHandler.rpc_backward";
/// [`FORWARD`] for tensors over 1 MiB, in parts. Stream to stream.
pub const FORWARD_STREAM: &str = "TransformerConnectionHandler.rpc_forward_stream";
/// [`BACKWARD`] for tensors over 1 MiB, in parts. Stream to stream.
pub const BACKWARD_STREAM: &str = "TransformerConnectionHandler.rpc_backward_stream";

/// Can you open a connection to this peer? Unary, `PingRequest` (node id = raw peer id) to `PingResponse`.
pub const REACHABILITY_CHECK: &str = "ReachabilityProtocol.rpc_check";

/// Send back what I send. Stream to stream; between Sepal nodes only, to measure how fast a line is.
pub const SPEED_ECHO: &str = "SepalSpeed.rpc_echo";

/// A name with a slash that map monitors ask: `ExpertUID` to `ExpertInfo` in the framing of
/// [`frame::legacy`](crate::frame::legacy).
pub const LEGACY_RPC: &str = "/hivemind/0.0.0/rpc";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::testing;

    #[test]
    fn every_call_seen_in_recordings_has_a_name_here() {
        let ours = BTreeSet::from([
            DHT_PING,
            DHT_STORE,
            DHT_FIND,
            INFO,
            INFERENCE,
            PUSH,
            FORWARD,
            BACKWARD,
            FORWARD_STREAM,
            BACKWARD_STREAM,
            REACHABILITY_CHECK,
        ]);
        let mut seen = BTreeSet::new();
        for (_, event) in testing::recorded_events() {
            if let Some(name) = event["rpc"].as_str() {
                assert!(ours.contains(name), "{name} is unknown");
                seen.insert(name.to_string());
            }
        }
        assert!(seen.len() >= 9, "the recordings name only {seen:?}");
    }
}
