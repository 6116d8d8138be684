//! Whether servers answer, asked the way health.petals.dev asks: `rpc_info` without a block, within five seconds; the
//! answer, good or bad, is believed for five minutes. What is believed is pure; [`ask`] talks to peers.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use sepal_protocol::{
    Message,
    message::decode,
    msgpack::{self, Value},
    names::INFO,
    proto::{ExpertInfo, ExpertUid},
};

use super::text;
use crate::{
    p2p::{CallError, P2p, PeerId},
    swarm::ping::RttMap,
};

/// Limit for one question, dialing included (health.petals.dev, `p2p_utils.py`, `connect_timeout`).
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Seconds for which an answer is believed (the same, `expiration`), unless a ping says otherwise.
const BELIEVED_S: f64 = 300.0;

/// Most answers remembered; the oldest are forgotten.
const MAX_REMEMBERED: usize = 4096;

/// What came of asking a server.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Probe {
    /// When, DHT time.
    pub(crate) checked: f64,
    /// Why it does not count as reachable; none if it does.
    pub(crate) error: Option<String>,
    /// Whether the answer is to be asked for again at the next look.
    pub(crate) fleeting: bool,
}

/// What is believed of who answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Probes {
    answers: HashMap<PeerId, Probe>,
}

impl Probes {
    /// Those of `peers` that have to be asked, the longest unasked first: no answer is known, or it is old, or the ping
    /// of this look (infinite if there was no answer) contradicts it. The last is more than health.petals.dev does: it
    /// shows a server that died as online, and one that came back as unreachable, for up to five minutes.
    pub(crate) fn due(&self, peers: impl IntoIterator<Item = PeerId>, pings: &RttMap, now: f64) -> Vec<PeerId> {
        let asked = |peer: &PeerId| self.answers.get(peer).map_or(f64::NEG_INFINITY, |probe| probe.checked);
        let mut due: Vec<PeerId> = peers.into_iter().filter(|peer| self.is_due(peer, pings, now)).collect();
        due.sort_by(|a, b| asked(a).total_cmp(&asked(b)).then_with(|| a.cmp(b)));
        due.dedup();
        due
    }

    fn is_due(&self, peer: &PeerId, pings: &RttMap, now: f64) -> bool {
        let Some(probe) = self.answers.get(peer) else {
            return true;
        };
        let contradicted = pings
            .get(peer)
            .is_some_and(|rtt| rtt.is_finite() != probe.error.is_none());
        probe.fleeting || contradicted || now - probe.checked >= BELIEVED_S
    }

    /// Takes in answers, and forgets the oldest if there are too many.
    pub(crate) fn extend(&mut self, answers: impl IntoIterator<Item = (PeerId, Probe)>) {
        self.answers.extend(answers);
        if self.answers.len() > MAX_REMEMBERED {
            let mut times: Vec<f64> = self.answers.values().map(|probe| probe.checked).collect();
            times.sort_by(f64::total_cmp);
            let oldest_kept = times[times.len() - MAX_REMEMBERED];
            self.answers.retain(|_, probe| probe.checked >= oldest_kept);
        }
    }

    /// All answers, by peer.
    pub(crate) fn answers(&self) -> &HashMap<PeerId, Probe> {
        &self.answers
    }
}

/// Asks a server what it is.
pub(crate) async fn ask(p2p: &P2p, peer: PeerId, now: f64) -> Probe {
    let question = Bytes::from(ExpertUid::default().encode_to_vec());
    let answer = p2p.call_unary(peer, INFO, question, PROBE_TIMEOUT).await;
    judge(answer, now)
}

/// What an answer to the question means. A peer that does not know the question is there: servers that are joining do
/// not answer it yet, and health.petals.dev counts that as reachable without remembering it.
fn judge(answer: Result<Bytes, CallError>, now: f64) -> Probe {
    let fleeting = matches!(&answer, Err(error) if error.is_unknown_name());
    let error = match answer {
        Ok(answer) => (!is_info(answer)).then(|| "the answer of rpc_info is malformed".to_string()),
        Err(_) if fleeting => None,
        Err(error) => Some(describe(&error)),
    };
    Probe {
        checked: now,
        error,
        fleeting,
    }
}

/// Whether this is a map, which is all that health.petals.dev asks of it.
fn is_info(answer: Bytes) -> bool {
    let info: Result<ExpertInfo, _> = decode("ExpertInfo", answer);
    let value = info.ok().and_then(|info| msgpack::decode(&info.serialized_info).ok());
    matches!(value, Some(Value::Map(_)))
}

/// An error with its causes in one line of bounded length.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        told += &format!(": {error}");
        cause = error.source();
    }
    text::long(&told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{p2p::OpenError, swarm::testing::peer};

    fn probe(checked: f64, ok: bool) -> Probe {
        Probe {
            checked,
            error: (!ok).then(|| "no".to_string()),
            fleeting: false,
        }
    }

    #[test]
    fn an_answer_is_believed_for_five_minutes_unless_a_ping_contradicts_it() {
        let mut probes = Probes::default();
        probes.extend([(peer(1), probe(100.0, true)), (peer(2), probe(90.0, false))]);
        let all = [peer(1), peer(2), peer(3)];
        let quiet = RttMap::new();
        assert_eq!(probes.due(all, &quiet, 110.0), [peer(3)]);
        assert_eq!(probes.due(all, &quiet, 395.0), [peer(3), peer(2)]);
        assert_eq!(probes.due(all, &quiet, 400.0), [peer(3), peer(2), peer(1)]);
        let silent = RttMap::from([(peer(1), f64::INFINITY), (peer(2), f64::INFINITY)]);
        assert_eq!(probes.due(all, &silent, 110.0), [peer(3), peer(1)]);
        let loud = RttMap::from([(peer(1), 0.1), (peer(2), 0.1)]);
        assert_eq!(probes.due(all, &loud, 110.0), [peer(3), peer(2)]);
    }

    #[test]
    fn a_server_that_does_not_know_the_question_yet_is_reachable_and_asked_again() {
        let joining = judge(Err(CallError::Open(OpenError::UnknownName)), 5.0);
        assert_eq!(joining.error, None);
        let mut probes = Probes::default();
        probes.extend([(peer(1), joining)]);
        assert_eq!(probes.due([peer(1)], &RttMap::new(), 6.0), [peer(1)]);
    }

    #[test]
    fn an_answer_that_is_no_map_is_none() {
        let answer = |value: &Value| {
            let info = ExpertInfo {
                serialized_info: msgpack::encode(value),
            };
            judge(Ok(info.encode_to_vec().into()), 0.0).error
        };
        assert_eq!(answer(&Value::Map(Vec::new())), None);
        assert!(answer(&Value::from("hello")).unwrap().contains("malformed"));
        assert!(judge(Ok(Bytes::from_static(&[0xff; 9])), 0.0).error.is_some());
        let late = judge(Err(CallError::Timeout { after: PROBE_TIMEOUT }), 0.0);
        assert_eq!(late.error.unwrap(), "no answer within 5000 ms");
    }

    #[test]
    fn no_more_answers_are_remembered_than_fit() {
        let mut probes = Probes::default();
        let peers = (0..MAX_REMEMBERED + 10).map(|i| {
            let mut bytes = vec![0x12, 0x20];
            bytes.extend(u64::try_from(i).unwrap().to_be_bytes());
            bytes.extend([7; 24]);
            PeerId::from_bytes(&bytes).unwrap()
        });
        let answers: Vec<_> = peers
            .zip(0_u32..)
            .map(|(peer, i)| (peer, probe(f64::from(i), true)))
            .collect();
        probes.extend(answers);
        assert_eq!(probes.answers().len(), MAX_REMEMBERED);
        assert!(probes.answers().values().all(|probe| probe.checked >= 10.0));
    }
}
