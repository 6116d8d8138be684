//! How activations travel: what each encoding does to them, what the lines to servers were seen to carry, and the choice
//! between encodings by that. It sends nothing.
//!
//! The encoding of a step is one for the whole chain, because what one server is asked for is pushed to the next. Lossy
//! ones round what is sent, and a server is asked to round what it answers; what a server that computes in 16 bits is sent
//! in bfloat16 loses nothing on the way.

use std::collections::HashMap;

use sepal_protocol::{
    WireError,
    compress::Compression,
    metadata::{BFLOAT16, INT8},
    proto,
    tensor::{DType, WireTensor},
};

use crate::{
    model::Hidden,
    p2p::{PeerId, Transfer},
    receipt::TensorDigest,
};

/// What a user wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// What each server computes in: nothing is lost.
    #[default]
    Exact,
    /// Rounded where that makes steps quicker on the lines as they were measured.
    Auto,
    /// bfloat16, also to and from servers that compute in float32.
    Bfloat16,
    /// Eight bits with a scale for each 4096 numbers (BLOCKWISE_8BIT).
    Int8,
}

/// How the activations of one step travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Encoding {
    Exact,
    Bfloat16,
    Int8,
}

/// Activations and, if something was lost, the message that they came in: it is passed on as it is, so that a server that
/// gets it twice, from here and pushed, gets the same.
#[derive(Clone, Debug)]
pub(crate) struct Passing {
    pub(crate) x: Hidden,
    pub(crate) message: Option<proto::Tensor>,
    /// Names the message that they came in, if receipts are wanted: the server may have pushed it on as it is.
    pub(crate) digest: Option<TensorDigest>,
}

impl From<Hidden> for Passing {
    fn from(x: Hidden) -> Self {
        Self {
            x,
            message: None,
            digest: None,
        }
    }
}

/// What a server is sent, and what it sees of it: in the dtype that it computes in.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) message: proto::Tensor,
    pub(crate) seen: WireTensor,
    pub(crate) encoding: Encoding,
    /// Names what the server before may have pushed in its place.
    pub(crate) pushed: Option<TensorDigest>,
}

impl Encoding {
    /// The wish in the metadata of a step.
    pub(crate) fn wish(self) -> Option<&'static str> {
        match self {
            Self::Exact => None,
            Self::Bfloat16 => Some(BFLOAT16),
            Self::Int8 => Some(INT8),
        }
    }

    /// Encodes activations for a server that computes in `dtype`.
    ///
    /// # Errors
    /// When their shape is not one.
    pub(crate) fn outgoing(self, passing: &Passing, dtype: DType) -> Result<Outgoing, WireError> {
        let own = || passing.x.to_wire(dtype);
        let message = match (&passing.message, self) {
            (Some(message), Self::Bfloat16 | Self::Int8) => message.clone(),
            (None, Self::Bfloat16) if dtype == DType::F32 => {
                passing.x.to_wire(DType::Bf16)?.encode(Compression::None)?
            }
            (None, Self::Int8) => own()?.encode(Compression::Blockwise8)?,
            _ => {
                let seen = own()?;
                return Ok(Outgoing {
                    message: seen.encode(Compression::None)?,
                    seen,
                    encoding: self,
                    pushed: passing.digest.clone(),
                });
            }
        };
        let decoded = WireTensor::decode(&message)?;
        let seen = if decoded.dtype == dtype {
            decoded
        } else {
            WireTensor::from_f32(&decoded.to_f32_vec(), decoded.shape.clone(), dtype)?
        };
        Ok(Outgoing {
            message,
            seen,
            encoding: self,
            pushed: passing.digest.clone(),
        })
    }

    /// Bytes of so many numbers, to or from a server that computes in `dtype`.
    fn bytes(self, numbers: usize, dtype: DType) -> f64 {
        /// The table and the scales of BLOCKWISE_8BIT.
        const TABLE: f64 = 1040.0;
        let numbers = numbers as f64;
        match self {
            Self::Int8 => numbers * (1.0 + 4.0 / 4096.0) + TABLE,
            Self::Bfloat16 => numbers * dtype.size().min(2) as f64,
            Self::Exact => numbers * dtype.size() as f64,
        }
    }
}

/// A server of a chain, as far as its line is concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    pub(crate) peer: PeerId,
    /// What it computes in.
    pub(crate) dtype: DType,
    /// Whether it does what it is asked for: one of Petals' answers in its own dtype, whatever is asked.
    pub(crate) obliges: bool,
    /// Round trip in seconds, if known.
    pub(crate) rtt: Option<f64>,
}

/// What one line carries, bytes per second.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    up: Option<f64>,
    down: Option<f64>,
}

/// What the lines to servers were seen to carry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lines {
    lines: HashMap<PeerId, Line>,
}

/// Weight of a new measurement against those before it.
const SMOOTHING: f64 = 0.3;

/// Bytes that buffers and windows take before a sender has to wait for the line; what is sent beyond measures it.
const BUFFERED: usize = 256 << 10;

/// Seconds to encode or decode a number as INT8: a search in a table of 256, at both ends.
const INT8_S: f64 = 2.0 * 20e-9;

/// An encoding that loses something is used only if a step is expected to be quicker by this share of its time.
const LEAST_GAIN: f64 = 0.05;

/// Numbers of which an eighth is enough to measure a line with.
const TRIAL_NUMBERS: usize = 64 << 10;

/// Most lines that are remembered.
const MAX_LINES: usize = 1024;

impl Lines {
    /// Takes in what the last messages to and from a server took.
    pub(crate) fn record(&mut self, peer: PeerId, sent: Option<Transfer>, received: Option<Transfer>) {
        let rate = |bytes: usize, transfer: Transfer| bytes as f64 / transfer.time.as_secs_f64().max(1e-6);
        let up = sent
            .filter(|sent| sent.bytes > 2 * BUFFERED)
            .map(|sent| rate(sent.bytes - BUFFERED, sent));
        let down = received.map(|received| rate(received.bytes, received));
        if up.is_none() && down.is_none() || self.lines.len() >= MAX_LINES && !self.lines.contains_key(&peer) {
            return;
        }
        let line = self.lines.entry(peer).or_default();
        let smooth = |old: Option<f64>, new: Option<f64>| match (old, new) {
            (Some(old), Some(new)) => Some(SMOOTHING * new + (1.0 - SMOOTHING) * old),
            (old, new) => new.or(old),
        };
        line.up = smooth(line.up, up);
        line.down = smooth(line.down, down);
    }

    /// Whether nothing is known of some line, and a share of so many numbers would measure it.
    pub(crate) fn need_trial(&self, mut peers: impl Iterator<Item = PeerId>, numbers: usize) -> bool {
        numbers >= TRIAL_NUMBERS && peers.any(|peer| self.lines.get(&peer).is_none_or(|line| line.down.is_none()))
    }

    /// The encoding for a step of so many numbers through a chain.
    pub(crate) fn choose(&self, wish: Activations, numbers: usize, chain: &[Stop]) -> Encoding {
        let encoding = match wish {
            Activations::Exact => Encoding::Exact,
            Activations::Bfloat16 => Encoding::Bfloat16,
            Activations::Int8 => Encoding::Int8,
            Activations::Auto => self.quickest(numbers, chain),
        };
        // Petals decodes eight bits with bitsandbytes, which not every machine has.
        match encoding {
            Encoding::Int8 if chain.iter().any(|stop| !stop.obliges) => Encoding::Bfloat16,
            other => other,
        }
    }

    fn quickest(&self, numbers: usize, chain: &[Stop]) -> Encoding {
        let network: f64 = chain
            .iter()
            .filter_map(|stop| stop.rtt)
            .filter(|rtt| rtt.is_finite())
            .sum();
        let seconds = |encoding| network + self.transfers(encoding, numbers, chain);
        let mut best = Encoding::Exact;
        for lossy in [Encoding::Bfloat16, Encoding::Int8] {
            if seconds(lossy) < (1.0 - LEAST_GAIN) * seconds(best) {
                best = lossy;
            }
        }
        best
    }

    /// Seconds that lines and codecs take, over all servers. A line of which nothing is known costs nothing.
    fn transfers(&self, encoding: Encoding, numbers: usize, chain: &[Stop]) -> f64 {
        let mut seconds = 0.0;
        for stop in chain {
            let line = self.lines.get(&stop.peer).copied().unwrap_or_default();
            let over = |encoding: Encoding, rate: Option<f64>| {
                rate.map_or(0.0, |rate| encoding.bytes(numbers, stop.dtype) / rate.max(1.0))
            };
            let answer = if stop.obliges { encoding } else { Encoding::Exact };
            seconds += over(encoding, line.up.or(line.down)) + over(answer, line.down);
            if encoding == Encoding::Int8 {
                seconds += numbers as f64 * INT8_S;
            }
        }
        seconds
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::swarm::testing::peer;

    fn x() -> Passing {
        let data = (0..2 * 3 * 64).map(|i| (i as f32).sin() * 3.0).collect();
        Hidden::new(data, 2, 3, 64).unwrap().into()
    }

    #[test]
    fn what_a_server_sees_is_what_the_message_says_in_the_dtype_it_computes_in() {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            for encoding in [Encoding::Exact, Encoding::Bfloat16, Encoding::Int8] {
                let sent = encoding.outgoing(&x(), dtype).unwrap();
                assert_eq!(sent.seen.dtype, dtype);
                let decoded = WireTensor::decode(&sent.message).unwrap();
                let there = WireTensor::from_f32(&decoded.to_f32_vec(), decoded.shape.clone(), dtype).unwrap();
                assert_eq!(sent.seen, there, "{dtype:?} {encoding:?}");
                let error = sent
                    .seen
                    .to_f32_vec()
                    .iter()
                    .zip(&x().x.data)
                    .map(|(a, b)| (a - b).abs())
                    .fold(0.0, f32::max);
                let most = match (encoding, dtype) {
                    (Encoding::Exact, DType::F32) => 0.0,
                    (Encoding::Int8, _) => 0.1,
                    _ => 0.01,
                };
                assert!(error <= most, "{dtype:?} {encoding:?}: {error}");
            }
        }
    }

    #[test]
    fn a_message_that_lost_something_is_passed_on_as_it_came() {
        let message = Encoding::Int8.outgoing(&x(), DType::F32).unwrap().message;
        let decoded = Hidden::from_wire(&WireTensor::decode(&message).unwrap()).unwrap();
        let passing = Passing {
            x: decoded.clone(),
            message: Some(message.clone()),
            digest: None,
        };
        let sent = Encoding::Int8.outgoing(&passing, DType::F32).unwrap();
        assert_eq!((sent.message, sent.seen.to_f32_vec()), (message, decoded.data.clone()));
        // What is replayed is sent as it was seen.
        let replayed = Encoding::Exact.outgoing(&passing, DType::F32).unwrap();
        assert_eq!(replayed.seen.to_f32_vec(), decoded.data);
    }

    fn stop(id: u64, obliges: bool) -> Stop {
        Stop {
            peer: peer(id),
            dtype: DType::F32,
            obliges,
            rtt: Some(0.05),
        }
    }

    fn transfer(bytes: usize, milliseconds: u64) -> Option<Transfer> {
        let time = Duration::from_millis(milliseconds);
        Some(Transfer { bytes, time })
    }

    #[test]
    fn activations_are_rounded_only_on_lines_that_were_measured_to_be_slow() {
        let chain = [stop(1, true), stop(2, true)];
        let choose = |lines: &Lines, numbers| lines.choose(Activations::Auto, numbers, &chain);
        let (token, prompt) = (4096, 1024 * 4096);
        let mut lines = Lines::default();
        assert_eq!(choose(&lines, prompt), Encoding::Exact, "nothing is known");
        let unknown = |lines: &Lines, numbers| lines.need_trial([peer(1), peer(2)].into_iter(), numbers);
        assert!(unknown(&lines, prompt) && !unknown(&lines, token));
        for id in [1, 2] {
            lines.record(peer(id), None, transfer(16 << 20, 1));
        }
        assert!(!unknown(&lines, prompt));
        assert_eq!(choose(&lines, prompt), Encoding::Exact, "a machine beside this one");
        let slow_down = |lines: &mut Lines, milliseconds| {
            for _ in 0..50 {
                lines.record(peer(1), None, transfer(1 << 20, milliseconds));
                lines.record(peer(2), None, transfer(1 << 20, milliseconds));
            }
        };
        slow_down(&mut lines, 270);
        assert_eq!(choose(&lines, prompt), Encoding::Int8, "thirty megabits");
        assert_eq!(choose(&lines, token), Encoding::Bfloat16, "a token is not worth more");
        slow_down(&mut lines, 800);
        assert_eq!(choose(&lines, token), Encoding::Int8, "ten megabits");
        assert_eq!(choose(&lines, 64), Encoding::Exact);
        assert_eq!(lines.choose(Activations::Exact, prompt, &chain), Encoding::Exact);
        assert_eq!(lines.choose(Activations::Int8, 64, &chain), Encoding::Int8);
    }

    #[test]
    fn what_buffers_take_says_nothing_about_a_line() {
        let mut lines = Lines::default();
        lines.record(peer(1), transfer(BUFFERED, 1), None);
        assert!(lines.lines.is_empty());
        // A slow way up makes the difference, although the way down is quick.
        lines.record(peer(1), transfer(2 << 20, 4000), transfer(1 << 20, 1));
        assert_eq!(
            lines.choose(Activations::Auto, 1 << 20, &[stop(1, true)]),
            Encoding::Int8
        );
        assert_eq!(
            lines.choose(Activations::Auto, 1 << 20, &[stop(1, false)]),
            Encoding::Bfloat16,
            "Petals"
        );
    }
}
