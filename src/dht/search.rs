//! Drives a search over the network: asks whom the state machine names, and feeds it the answers.

use std::sync::Arc;

use futures::{StreamExt, stream::FuturesUnordered};
use sepal_protocol::dht_id::DhtId;

use super::{
    inquiry::{Guide, Inquiry, Knowledge, Question},
    node::Node,
    rpc::MAX_FIND_KEYS,
    traverse::Shape,
};

impl Node {
    /// Searches the nodes nearest to `keys`, with up to `keys_per_call` keys in one question.
    ///
    /// # Cancel safety
    /// Dropping the future ends the search.
    pub(crate) async fn search(self: &Arc<Self>, keys: &[DhtId], keys_per_call: usize, guide: &mut dyn Guide) {
        let shape = Shape {
            beam: self.config.bucket_size,
            workers: self.config.workers.max(1),
            queries_per_call: keys_per_call.clamp(1, MAX_FIND_KEYS),
        };
        let mut inquiry = Inquiry::new(shape, self.id, &self.state(), keys);
        let mut calls = FuturesUnordered::new();
        loop {
            loop {
                let next = inquiry.next(&self.blacklist(), self.now());
                let Some(question) = next else { break };
                calls.push(self.clone().ask(question));
            }
            inquiry.tell_ends(guide);
            if inquiry.is_over() {
                return;
            }
            // A search that is not over has questions under way; if it had none, it would be over by now.
            let Some((question, answer)) = calls.next().await else {
                return;
            };
            match answer {
                Some(answer) => inquiry.answered(&question, answer, guide),
                None => inquiry.failed(&question),
            }
        }
    }

    /// One question.
    async fn ask(self: Arc<Self>, question: Question) -> (Question, Option<Vec<Knowledge>>) {
        let peer = question.to.peer;
        let answer = self.call_find(peer, &question.call.queries).await.ok();
        match &answer {
            Some(_) => self.blacklist().answered(&peer),
            None => self.blacklist().failed(peer, self.now()),
        }
        (question, answer)
    }
}
