//! Messages to everyone who listens to a topic (gossipsub). On nodes that are made with topics only; others neither speak it
//! nor are spoken to, and go on as before.
//!
//! Its protocol has a name of its own, so that Sepal nodes exchange nothing with the rest of the libp2p world, where others
//! gossip about other things. Messages carry no author: whoever needs one signs what is inside.

use bytes::Bytes;
use libp2p::gossipsub::{
    self, ConfigBuilder, IdentTopic, IdentityTransform, MessageAuthenticity, MessageId, ValidationMode,
    WhitelistSubscriptionFilter,
};
use sha2::{Digest as _, Sha256};

use super::error::BindError;

/// Names the protocol; versions come after it.
const PROTOCOL: &str = "/sepal/meshsub";

/// Longest message, bytes. Those of jobs have about one thousand.
pub const MAX_GOSSIP: usize = 16 * 1024;

/// Messages that wait to be read here; whoever is slower misses the oldest.
pub(crate) const HEARD_QUEUE: usize = 256;

/// The behaviour, which knows no other topics than those it was made with.
pub(crate) type Behaviour = gossipsub::Behaviour<IdentityTransform, WhitelistSubscriptionFilter>;

/// What a node listens to.
#[derive(Clone, Debug)]
pub struct GossipConfig {
    /// The topics; there are no others for this node.
    pub topics: Vec<String>,
    /// Whether a message is worth reading and passing on. It is asked in the event loop: up to some 100 µs are fine.
    pub admits: fn(&[u8]) -> bool,
}

/// A message of somebody else.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Where it was said.
    pub topic: String,
    /// What was said.
    pub message: Bytes,
}

/// Why a message was not sent to anybody.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// This node was made without gossip.
    #[error("this node does not gossip")]
    Off,
    /// Nobody who is connected listens to the topic.
    #[error("nobody listens")]
    NobodyListens,
    /// Too long, or all queues are full.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
}

/// # Errors
/// If the protocol cannot be set up, which no configuration of ours leads to.
pub(crate) fn behaviour(config: &GossipConfig) -> Result<Behaviour, BindError> {
    let setup = |reason: String| BindError::Setup { source: reason.into() };
    let settings = ConfigBuilder::default()
        .protocol_id_prefix(PROTOCOL)
        .validation_mode(ValidationMode::Anonymous)
        .validate_messages()
        .max_transmit_size(MAX_GOSSIP)
        .message_id_fn(|message| MessageId::from(Sha256::digest(&message.data).to_vec()))
        .build()
        .map_err(|error| setup(error.to_string()))?;
    let topics: Vec<IdentTopic> = config.topics.iter().map(IdentTopic::new).collect();
    let known = WhitelistSubscriptionFilter(topics.iter().map(IdentTopic::hash).collect());
    let mut behaviour = Behaviour::new_with_subscription_filter(MessageAuthenticity::Anonymous, settings, known)
        .map_err(|error| setup(error.to_owned()))?;
    for topic in &topics {
        behaviour.subscribe(topic).map_err(|error| setup(error.to_string()))?;
    }
    Ok(behaviour)
}
