//! Gossip in and out: what is worth nothing is not passed on, and nobody may say too much.

use std::collections::HashMap;

use bytes::Bytes;
use libp2p::{
    PeerId,
    gossipsub::{self, IdentTopic, MessageAcceptance},
};
use tracing::debug;

use super::{
    super::{
        gossip::{Heard, PublishError},
        short_id,
    },
    Actor,
};

/// Messages that a neighbour may hand on between two reviews (one second).
const MOST_PER_REVIEW: u32 = 256;

/// How many messages each neighbour handed on since the last review.
#[derive(Debug, Default)]
pub(super) struct Counted {
    by_peer: HashMap<PeerId, u32>,
}

impl Counted {
    /// Whether another message of this neighbour is looked at.
    pub(super) fn take(&mut self, peer: PeerId) -> bool {
        let count = self.by_peer.entry(peer).or_default();
        *count = count.saturating_add(1);
        *count <= MOST_PER_REVIEW
    }

    pub(super) fn review(&mut self) {
        self.by_peer.clear();
    }
}

impl Actor {
    pub(super) fn publish(&mut self, topic: &str, message: Bytes) -> Result<(), PublishError> {
        let gossip = self.swarm.behaviour_mut().gossip.as_mut().ok_or(PublishError::Off)?;
        match gossip.publish(IdentTopic::new(topic), message) {
            Ok(_) | Err(gossipsub::PublishError::Duplicate) => Ok(()),
            Err(gossipsub::PublishError::NoPeersSubscribedToTopic) => Err(PublishError::NobodyListens),
            Err(error) => Err(PublishError::NotSent(error.to_string())),
        }
    }

    pub(super) fn on_gossip(&mut self, event: gossipsub::Event) {
        let gossipsub::Event::Message {
            propagation_source: from,
            message_id,
            message,
        } = event
        else {
            return;
        };
        let Some(config) = &self.config.gossip else { return };
        let acceptance = if !self.gossiped.take(from) {
            MessageAcceptance::Ignore
        } else if (config.admits)(&message.data) {
            let heard = Heard {
                topic: message.topic.into_string(),
                message: message.data.into(),
            };
            // Nobody may be listening any more.
            drop(self.outputs.heard.send(heard));
            MessageAcceptance::Accept
        } else {
            debug!(from = %short_id(&from), "a message that is worth nothing");
            MessageAcceptance::Reject
        };
        if let Some(gossip) = self.swarm.behaviour_mut().gossip.as_mut() {
            gossip.report_message_validation_result(&message_id, &from, acceptance);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_may_not_say_too_much_and_others_still_may() {
        let (loud, quiet) = (PeerId::random(), PeerId::random());
        let mut counted = Counted::default();
        assert!((0..MOST_PER_REVIEW).all(|_| counted.take(loud)));
        assert!(!counted.take(loud));
        assert!(counted.take(quiet));
        counted.review();
        assert!(counted.take(loud));
    }
}
