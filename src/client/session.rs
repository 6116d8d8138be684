//! A chain of remote spans that looks like one model: steps go through it, and when a server is lost another one takes
//! over from the recorded history. It knows no tokens and no text.
//!
//! ```text
//! x ─▶ hop 0 ─▶ hop 1 ─▶ … ─▶ output        each hop: a Remote and the inputs it has seen, [batch, position, hidden];
//!                                           before and behind them, the blocks that the client holds itself
//!          │ fails
//!          ▼
//!      exclude the peer, route its blocks anew (perhaps over several servers), replay the inputs, go on
//! ```

mod cut;
mod exchange;
mod pipeline;
mod rescue;
mod verifying;
mod witness;

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use sepal_protocol::{metadata::NextServer, tensor::WireTensor};
use tracing::{Instrument, Span, debug, debug_span};

pub(super) use self::verifying::Verifier;
pub use self::verifying::WrongAnswer;
use self::{
    exchange::Exchange,
    rescue::{Passed, Step},
    witness::Witness,
};

use super::{
    Shared,
    activations::{Encoding, Outgoing, Passing},
    attempts::Attempts,
    error::{ClientError, RemoteError},
    history::{History, concat, pieces, split},
    local::{LocalSpan, OwnSpans},
    pace::{Pace, Size},
    remote::{ALLOC_TIMEOUT, HASTY_ALLOC_TIMEOUT, Remote, Target},
};
use crate::{
    model::{Hidden, PAGE_TOKENS},
    p2p::PeerId,
    swarm::route::{Hop, Measured},
    task::TRACE,
};

/// One of so many tokens of a prompt is sent ahead where nothing is known of the lines and something depends on it.
const TRIAL_SHARE: usize = 8;

/// An open session through the whole model.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    max_length: usize,
    verifier: Verifier,
    position: usize,
    /// Before the first hop and behind the last one.
    own: Option<OwnSpans>,
    hops: Vec<HopState>,
    /// Whether servers are to push to each other.
    pushes: bool,
    /// How often a server was left for being slow.
    n_switches: u32,
    /// It does not wait for room on servers before its first step is done.
    is_hasty: bool,
    /// A step is under way, or did not come to its end.
    broken: bool,
}

/// How long one hop took.
#[derive(Clone, Debug)]
pub struct HopReport {
    /// The server; the client's own id if the blocks are held by the client itself.
    pub peer: PeerId,
    /// Whether they are.
    pub is_here: bool,
    /// What it calls itself.
    pub name: Option<String>,
    /// The blocks it ran.
    pub blocks: Range<u32>,
    /// Mean time of a step there and back, over the steps after the first.
    pub per_step: Option<Duration>,
    /// Time of the last one of these.
    pub last_step: Option<Duration>,
    /// Steps that were computed once more on another server, with the same outcome.
    pub verified: u32,
}

impl HopReport {
    /// Who ran the blocks, for people: a peer id, or `here` for the client itself.
    pub fn place(&self) -> String {
        match self.is_here {
            true => "here".to_owned(),
            false => self.peer.to_string(),
        }
    }
}

#[derive(Debug)]
struct HopState {
    hop: Hop,
    remote: Remote,
    /// Inputs seen so far, as they were sent: replayed when the server is lost.
    history: History,
    /// The last short step and its answer.
    last: Option<Exchange>,
    pace: Pace,
    /// The answer to the step under way, if it is to be looked at.
    drawn: Option<Hidden>,
    /// Who computes the blocks once more when an answer is looked at.
    witness: Option<Witness>,
    verified: u32,
    busy: Duration,
    steps: u32,
    last_step: Option<Duration>,
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, own: Option<OwnSpans>, max_length: usize, verifier: Verifier) -> Self {
        Self {
            pushes: shared.push,
            shared,
            max_length,
            verifier,
            position: 0,
            own,
            hops: Vec::new(),
            n_switches: 0,
            is_hasty: false,
            broken: false,
        }
    }

    /// The same, but its first step fails soon where servers have no room: for who can make some.
    pub(super) fn hasty(mut self) -> Self {
        self.is_hasty = true;
        self
    }

    /// Whether what servers have no room for is to be given up soon.
    fn hurries(&self) -> bool {
        self.is_hasty && self.position == 0
    }

    /// Tokens that one more session could reserve on each of its servers, by their last records. `None` if they do not say.
    pub(super) fn room_left(&self) -> Option<usize> {
        let peers = self.hops.iter().map(|state| state.hop.peer);
        peers.filter_map(|peer| self.shared.room_left(peer)).min()
    }

    /// Tokens that went through.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Most tokens that can go through.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Whether it can go on after an error or a dropped step: it cannot.
    pub fn is_over(&self) -> bool {
        self.broken
    }

    /// Whether all its servers take tokens back, so that [`Session::rewind`] works. Before the first step nobody knows.
    pub(super) fn can_rewind(&self) -> bool {
        let can = |state: &HopState| self.shared.can_rewind(state.hop.peer);
        !self.broken && !self.hops.is_empty() && self.hops.iter().all(can)
    }

    /// Goes back to `position`, so that the next step continues from there. `false` if that cannot be done, and nothing has
    /// changed: the session is over, it has not come so far, or a server does not know `start_from_position` (Petals
    /// before 2.3).
    pub fn rewind(&mut self, position: usize) -> bool {
        if position == self.position {
            return !self.broken;
        }
        // At 0 a server would take the next step for the first one.
        if position == 0 || position > self.position || !self.can_rewind() {
            return false;
        }
        for state in &mut self.hops {
            state.remote.rewind(position);
            state.history.truncate(position);
            state.last = None;
            let shared = &self.shared;
            let witness = state.witness.take();
            state.witness = witness.and_then(|witness| witness.taken_back(position, |peer| shared.can_rewind(peer)));
        }
        self.position = position;
        true
    }

    /// Servers in use, in order, with their times; the blocks that the client holds itself are there as well.
    pub fn report(&self) -> Vec<HopReport> {
        let here = |span: &LocalSpan| HopReport {
            peer: self.shared.p2p.peer_id(),
            is_here: true,
            name: None,
            blocks: span.blocks(),
            per_step: span.per_step(),
            last_step: None,
            verified: 0,
        };
        let report = |state: &HopState| HopReport {
            peer: state.hop.peer,
            is_here: false,
            name: self.shared.public_name(state.hop.peer),
            blocks: state.hop.blocks.clone(),
            per_step: (state.steps > 0).then(|| state.busy / state.steps),
            last_step: state.last_step,
            verified: state.verified,
        };
        let (first, last) = self.own.as_ref().map(|own| (&own.first, &own.last)).unzip();
        let first = first.into_iter().map(here);
        first
            .chain(self.hops.iter().map(report))
            .chain(last.into_iter().map(here))
            .collect()
    }

    /// Servers that were found to answer wrongly. What came of this session's steps before that, and was not looked at, may
    /// be wrong as well.
    pub fn wrong_answers(&self) -> &[WrongAnswer] {
        self.verifier.wrong()
    }

    /// Sends `x` (`[batch, tokens, hidden]`) through all blocks and returns the last block's output, same shape.
    ///
    /// # Errors
    /// When the session is full, which changes nothing. When blocks are served by nobody, or too many servers failed in
    /// a row: then the session is over.
    ///
    /// # Cancel safety
    /// None: after the future was dropped the session is over.
    pub async fn step(&mut self, x: Hidden) -> Result<Hidden, ClientError> {
        let wanted = self.position + x.tokens;
        if wanted > self.max_length {
            return Err(ClientError::SessionFull {
                max_length: self.max_length,
                wanted,
            });
        }
        if std::mem::replace(&mut self.broken, true) {
            return Err(ClientError::SessionEnded);
        }
        let output = self.step_pieces(x).await?;
        self.broken = false;
        Ok(output)
    }

    /// Ends the session on all servers at once. In the middle of a step nobody would hear a goodbye, and one that is frozen
    /// never answers it: then the ends of the streams have to say enough.
    pub async fn close(self) {
        if self.broken {
            return;
        }
        futures::future::join_all(self.hops.into_iter().map(|state| state.remote.close())).await;
    }

    async fn step_pieces(&mut self, x: Hidden) -> Result<Hidden, ClientError> {
        let is_first = self.position == 0;
        if self.hops.is_empty() {
            let blocks = self.shared.blocks.clone();
            self.hops = self.connect(blocks, &mut Attempts::default()).await?;
            self.open_ahead(x.batch, x.width).await;
        }
        let mut outputs = Vec::new();
        let rest = match self.trial(&x) {
            Some(tokens) => {
                let (first, rest) = split(&x, tokens);
                outputs.push(self.step_piece(first).await?);
                rest
            }
            None => x,
        };
        let (most, tokens) = (self.piece_tokens(&rest), rest.tokens);
        let parts = pieces(rest, self.position, most);
        if parts.len() > 1 && self.works_at_once() {
            let span = self.chain_span(tokens);
            outputs.extend(self.step_at_once(parts).instrument(span).await?);
        } else {
            for piece in parts {
                outputs.push(self.step_piece(piece).await?);
            }
        }
        if is_first && outputs.len() > 1 {
            self.hops.iter_mut().for_each(HopState::forget_times);
            if let Some(own) = &mut self.own {
                own.first.forget_times();
                own.last.forget_times();
            }
        }
        Ok(concat(outputs))
    }

    async fn step_piece(&mut self, mut x: Hidden) -> Result<Hidden, ClientError> {
        if let Some(own) = &mut self.own {
            x = own.first.step(x, self.position).await?;
        }
        let span = self.chain_span(x.tokens);
        x = self.step_servers(x).instrument(span).await?;
        if let Some(own) = &mut self.own {
            x = own.last.step(x, self.position).await?;
        }
        self.position += x.tokens;
        Ok(x)
    }

    /// What tells how long the next so many tokens take on all servers.
    fn chain_span(&self, tokens: usize) -> Span {
        debug_span!(target: TRACE, "chain", tokens, position = self.position)
    }

    async fn step_servers(&mut self, x: Hidden) -> Result<Hidden, ClientError> {
        let step_id = uuid::Uuid::new_v4().to_string();
        let (tokens, encoding) = (x.tokens, self.encoding(x.data.len()));
        let mut attempts = Attempts::default();
        let mut index = 0;
        // What a step of one token takes; the first of a session also reserves memory.
        let mut took = (self.position > 0 && x.batch == 1 && tokens == 1).then(Vec::new);
        let mut passing = Passing::from(x);
        let mut pushed = false;
        while index < self.hops.len() {
            let next = self.next_servers(index);
            let pushes = !next.is_empty();
            let step = Step {
                passing: &passing,
                encoding,
                id: &step_id,
                next,
            };
            let state = Box::new(self.hops.remove(index));
            let start = Instant::now();
            let blocks = &state.hop.blocks;
            let span = debug_span!(target: TRACE, "hop", peer = %state.hop.peer, ?blocks, pushed);
            match self.pass(state, step, &mut attempts).instrument(span).await? {
                Passed::Through(mut state, output) => {
                    if let Some(took) = &mut took {
                        took.push(state.measured(start.elapsed(), pushed));
                    }
                    pushed = pushes;
                    state.drawn = self.verifier.draws().then(|| output.x.clone());
                    self.answered(&state, tokens);
                    self.hops.insert(index, *state);
                    passing = output;
                    index += 1;
                    attempts = Attempts::default();
                }
                Passed::Instead(fresh) => {
                    took = None;
                    self.hops.splice(index..index, fresh);
                }
            }
        }
        if let Some(took) = took {
            self.shared.took(&took);
        }
        self.verify(passing.x).await
    }

    /// A hop has answered a step of so many tokens.
    fn answered(&self, state: &HopState, tokens: usize) {
        if state.history.tokens() == tokens {
            self.shared.works(state.hop.peer);
        }
        self.shared.carried(state.hop.peer, state.remote.transfers());
    }

    /// The tokens of a prompt that go ahead of the others, so that these can travel as the lines turn out to be; to the end
    /// of a page where that is not most of them.
    fn trial(&self, x: &Hidden) -> Option<usize> {
        let peers = self.hops.iter().map(|state| state.hop.peer);
        if x.tokens <= 1 || !self.shared.needs_trial(peers, x.data.len()) {
            return None;
        }
        let share = x.tokens.div_ceil(TRIAL_SHARE);
        let page_end = (self.position + share).next_multiple_of(PAGE_TOKENS) - self.position;
        Some(if page_end <= x.tokens / 2 { page_end } else { share })
    }

    /// Takes in what receipts showed while a step tried to get through: who lies, or that a server and the one before it
    /// say different things, of which one is so. Who is asked without pushes cannot put it on another.
    fn note_receipts(&mut self, attempts: &mut Attempts) {
        self.verifier.gave_false_receipts(attempts.take_liars(), self.position);
        self.pushes &= !attempts.doubt_pushes();
    }

    /// How activations of so many numbers are to travel through the chain.
    fn encoding(&self, numbers: usize) -> Encoding {
        let chain: Vec<_> = self
            .hops
            .iter()
            .map(|state| (state.hop.peer, state.remote.dtype()))
            .collect();
        self.shared.encoding(numbers, &chain)
    }

    /// Tells servers of their sessions before there is anything to compute for them, all at once and without waiting for
    /// answers: then already the prompt goes from server to server instead of coming back to the client after each. Only
    /// those are told whose predecessor would push it.
    async fn open_ahead(&mut self, batch: usize, width: usize) {
        if !self.pushes {
            return;
        }
        let pushes: Vec<bool> = self
            .hops
            .iter()
            .map(|state| self.shared.pushes_at_once(state.hop.peer))
            .collect();
        let told = self.hops.iter_mut().skip(1).zip(pushes).filter(|(_, pushed)| *pushed);
        futures::future::join_all(told.map(|(state, _)| state.remote.open_ahead(batch, width))).await;
    }

    /// The hops that the output of hop number `index` may be pushed on to, as far as they know of their sessions: a server
    /// drops pushes for others.
    fn next_servers(&mut self, index: usize) -> Vec<NextServer> {
        let from = &self.hops[index];
        let first = !from.remote.is_known();
        if !self.pushes || first && !self.shared.pushes_at_once(from.hop.peer) {
            return Vec::new();
        }
        let rest = self.hops[index + 1..].iter_mut();
        let known = rest.take_while(|state| state.remote.is_known());
        known.map(|state| state.remote.as_next_server()).collect()
    }

    /// Chooses servers for `blocks` and opens a stream to each, all at once.
    async fn connect(&self, blocks: Range<u32>, attempts: &mut Attempts) -> Result<Vec<HopState>, ClientError> {
        loop {
            let hops = self.route(blocks.clone(), attempts).await?;
            let opened = futures::future::join_all(hops.iter().map(|hop| self.open(hop))).await;
            let mut states = Vec::with_capacity(hops.len());
            let mut all_open = true;
            for (hop, remote) in hops.into_iter().zip(opened) {
                match remote {
                    Ok(remote) => {
                        let pace = self.shared.pace(&hop);
                        states.push(HopState::new(hop, remote, pace));
                    }
                    Err(error) => {
                        attempts.failed(&self.shared, &hop, error)?;
                        all_open = false;
                    }
                }
            }
            if all_open {
                return Ok(states);
            }
            futures::future::join_all(states.into_iter().map(|state| state.remote.close())).await;
        }
    }

    async fn open(&self, hop: &Hop) -> Result<Remote, RemoteError> {
        let target = Target {
            peer: hop.peer,
            blocks: hop.blocks.clone(),
            prefix: self.shared.prefix.clone(),
            max_length: self.max_length,
            connect_timeout: self.shared.connect_timeout,
            alloc_timeout: match self.hurries() {
                true => HASTY_ALLOC_TIMEOUT,
                false => ALLOC_TIMEOUT,
            },
            timeout: self.shared.request_timeout,
            dtype: self.shared.wire_dtype(hop.peer),
            adapter: self.shared.adapter.clone(),
            receipts: self.shared.receipts.clone(),
        };
        Remote::open(&self.shared.p2p, target).await
    }

    /// The best chain over `blocks` without the servers that failed. While blocks are missing it looks again, with
    /// growing pauses; then those that failed get another chance, because a ban may be all that is in the way.
    async fn route(&self, blocks: Range<u32>, attempts: &mut Attempts) -> Result<Vec<Hop>, ClientError> {
        loop {
            match self
                .shared
                .route(blocks.clone(), self.max_length, &attempts.excluded)
                .await
            {
                Ok(hops) => {
                    debug!(?hops, "route");
                    return Ok(hops);
                }
                Err(missing) if self.hurries() && attempts.lack_room() => return Err(attempts.give_up(Some(missing))),
                Err(missing) => {
                    tokio::time::sleep(attempts.pause(&self.shared.backoff, missing)?).await;
                    self.shared.refresh().await;
                }
            }
        }
    }
}

impl HopState {
    fn new(hop: Hop, remote: Remote, pace: Pace) -> Self {
        let history = History::new(remote.dtype());
        Self {
            hop,
            remote,
            history,
            last: None,
            pace,
            drawn: None,
            witness: None,
            verified: 0,
            busy: Duration::ZERO,
            steps: 0,
            last_step: None,
        }
    }

    /// What this server is sent, and how large a step that is.
    fn prepare(&self, passing: &Passing, encoding: Encoding) -> Result<(Outgoing, Size), RemoteError> {
        let outgoing = self.remote.outgoing(passing, encoding)?;
        let size = Size {
            tokens: passing.x.batch * passing.x.tokens,
            bytes: outgoing.message.buffer.len(),
            first: self.remote.position() == 0,
        };
        Ok((outgoing, size))
    }

    /// Takes in the answer to what was sent.
    ///
    /// # Errors
    /// When it is that to the step before: then a server is a step behind, and all that follows would be wrong.
    fn take(&mut self, sent: &WireTensor, size: Size, output: Passing, time: Duration) -> Result<Passing, RemoteError> {
        if self
            .last
            .as_ref()
            .is_some_and(|last| last.is_repeated_by(sent, &output.x))
        {
            return Err(RemoteError::Repeated);
        }
        self.last = Exchange::of(sent, &output.x);
        self.history.push(sent);
        self.pace.took(size, time);
        // The first step of a session also reserves memory and reads the whole prompt: not what a step usually takes.
        if !size.first {
            self.busy += time;
            self.steps += 1;
            self.last_step = Some(time);
        }
        Ok(output)
    }

    fn measured(&self, time: Duration, pushed: bool) -> Measured {
        Measured {
            peer: self.hop.peer,
            blocks: self.hop.blocks.clone(),
            seconds: time.as_secs_f64(),
            pushed,
        }
    }

    /// A replay says nothing about how long steps take, and neither do the pieces of the prompt that a session begins with.
    fn forget_times(&mut self) {
        self.busy = Duration::ZERO;
        self.steps = 0;
        self.last_step = None;
    }
}
