//! Petals' `rpc_check`, the asking side: can this node be dialed? It asks and counts; the keeper of the standing
//! draws the conclusions.

use std::{fmt, time::Duration};

use futures::{StreamExt, stream};
use rand::{Rng, seq::SliceRandom};
use sepal_protocol::names::REACHABILITY_CHECK;

use super::{is_yes, question};
use crate::p2p::{P2p, PeerId, short_id};

/// Answers that are enough, and peers that are asked at the same time (`petals/server/reachability.py`, `max_peers`).
const ENOUGH: usize = 5;

/// Peers that are asked at most. Those that do not answer are replaced by others, since they say nothing about us.
const MAX_ASKED: usize = 3 * ENOUGH;

/// How long one peer has to answer: twice as long as it gives itself for dialing us, as in `petals/server/reachability.py`.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Share of positive answers with which a node counts as dialable (`petals/server/reachability.py`, `threshold`).
const THRESHOLD: f64 = 0.5;

/// What peers said to the question whether they can dial this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// They can.
    pub yes: usize,
    /// They cannot.
    pub no: usize,
    /// They did not answer, which says nothing about us.
    pub silent: usize,
}

impl Answers {
    /// Whether this node can be dialed, by Petals' rule; `None` if nobody answered.
    pub fn dialable(self) -> Option<bool> {
        let all = self.yes + self.no;
        (all > 0).then(|| self.yes as f64 / all as f64 >= THRESHOLD)
    }

    fn count(&mut self, answer: Option<bool>) {
        match answer {
            Some(true) => self.yes += 1,
            Some(false) => self.no += 1,
            None => self.silent += 1,
        }
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answered = self.yes + self.no;
        write!(
            f,
            "{} of {answered} peers can dial this node, {} said nothing",
            self.yes, self.silent
        )
    }
}

/// Asks up to five of `peers`, chosen at random, whether they can dial this node, which must serve
/// [`handlers`](super::handlers): they put the question to it. Takes 10 s, 30 s if most do not answer.
///
/// # Cancel safety
/// Dropping the future takes the questions back.
pub async fn ask(p2p: &P2p, mut peers: Vec<PeerId>, rng: &mut impl Rng) -> Answers {
    peers.retain(|peer| *peer != p2p.peer_id());
    peers.shuffle(rng);
    peers.truncate(MAX_ASKED);
    let asked = stream::iter(peers).map(|peer| ask_one(p2p, peer));
    let mut asked = asked.buffer_unordered(ENOUGH);
    let mut answers = Answers::default();
    while answers.yes + answers.no < ENOUGH
        && let Some(answer) = asked.next().await
    {
        answers.count(answer);
    }
    answers
}

async fn ask_one(p2p: &P2p, peer: PeerId) -> Option<bool> {
    let question = question(p2p.peer_id());
    let answer = p2p
        .call_unary(peer, REACHABILITY_CHECK, question, ANSWER_TIMEOUT)
        .await
        .inspect_err(|error| tracing::debug!(peer = %short_id(&peer), %error, "does not say whether we can be dialed"))
        .ok()
        .and_then(is_yes);
    tracing::debug!(peer = %short_id(&peer), ?answer, "asked whether we can be dialed");
    answer
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rand::{SeedableRng, rngs::StdRng};
    use sepal_protocol::{Message, proto::PingResponse};

    use super::*;
    use crate::{
        p2p::{Handler, HandlerError, HandlerLimits, Router},
        swarm::{reachability::handlers, testing::host},
        task::Tasks,
    };

    fn rng() -> StdRng {
        StdRng::seed_from_u64(0)
    }

    /// A peer that answers every question with `answer`, or with an error.
    async fn parrot(tasks: &Tasks, answer: Option<bool>) -> P2p {
        let p2p = host(tasks, true).await;
        let say = move |_, _| async move {
            let available = answer.ok_or_else(|| HandlerError::new("RuntimeError()"))?;
            let answer = PingResponse {
                available,
                ..PingResponse::default()
            };
            Ok(Bytes::from(answer.encode_to_vec()))
        };
        let handler = Handler::unary(REACHABILITY_CHECK, HandlerLimits::default(), say);
        Router::new(p2p.clone()).serve(vec![handler]).spawn(tasks);
        p2p
    }

    #[test]
    fn half_of_the_answers_have_to_be_positive_and_no_answer_says_nothing() {
        let dialable = |yes, no| Answers { yes, no, silent: 9 }.dialable();
        assert_eq!(dialable(0, 0), None);
        assert_eq!(dialable(1, 0), Some(true));
        assert_eq!(dialable(1, 1), Some(true));
        assert_eq!(dialable(2, 3), Some(false));
        assert_eq!(dialable(0, 1), Some(false));
    }

    #[tokio::test]
    async fn only_given_answers_are_counted_and_five_are_enough() {
        let tasks = Tasks::new();
        let asker = host(&tasks, true).await;
        let mut peers = vec![asker.peer_id()];
        let silent = [None; 4];
        let talking = [Some(true), Some(false), Some(false)];
        for answer in silent.into_iter().chain(talking) {
            let peer = parrot(&tasks, answer).await;
            asker.connect(peer.addrs()[0].clone()).await.unwrap();
            peers.push(peer.peer_id());
        }
        let answers = ask(&asker, peers.clone(), &mut rng()).await;
        let counted = Answers {
            yes: 1,
            no: 2,
            silent: 4,
        };
        assert_eq!((answers, answers.dialable()), (counted, Some(false)));
        for _ in 0..7 {
            let peer = parrot(&tasks, Some(true)).await;
            asker.connect(peer.addrs()[0].clone()).await.unwrap();
            peers.push(peer.peer_id());
        }
        let answers = ask(&asker, peers, &mut rng()).await;
        assert_eq!(answers.yes + answers.no, 5);
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn a_node_learns_from_others_whether_it_can_be_dialed() {
        let tasks = Tasks::new();
        let mut others = Vec::new();
        for _ in 0..2 {
            let other = host(&tasks, true).await;
            let handlers = handlers(other.clone(), tasks.clone());
            Router::new(other.clone()).serve(handlers).spawn(&tasks);
            others.push(other);
        }
        for listens in [true, false] {
            let asker = host(&tasks, listens).await;
            let handlers = handlers(asker.clone(), tasks.clone());
            Router::new(asker.clone()).serve(handlers).spawn(&tasks);
            for other in &others {
                asker.connect(other.addrs()[0].clone()).await.unwrap();
            }
            let answers = ask(&asker, others.iter().map(P2p::peer_id).collect(), &mut rng()).await;
            assert_eq!(answers.dialable(), Some(listens), "{answers:?}");
        }
        tasks.shutdown().await;
    }
}
