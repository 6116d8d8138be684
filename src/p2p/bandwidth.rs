//! How many bytes a second all connections of a host may carry together, each way: pure arithmetic, time is an argument.
//! Who waits for it is in `paced.rs`.
//!
//! Bytes go first and are paid for with time afterwards: each connection moves a small piece and then pauses until the
//! moment at which all pieces before it, and its own, have had their time on the line. So those that want to go on take
//! turns, whatever their number, nothing is kept in a buffer, and a connection that goes away has booked nothing. Turns are
//! those of connections, however many streams one has.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Time on the line that a piece takes.
const PIECE: Duration = Duration::from_millis(20);
/// Smallest and largest piece, bytes.
const PIECES: (usize, usize) = (1024, 64 * 1024);
/// Time on the line that nobody used and that may be made up for: so much the rate may be passed for a moment.
const CREDIT: Duration = Duration::from_millis(100);
/// Time on the line that QUIC may receive ahead of who reads.
const AHEAD: Duration = Duration::from_millis(500);
/// How much longer the stream that ended a turn pauses than the others of its connection: the next turn is for these. Timers
/// tell milliseconds apart.
pub(crate) const YIELD: Duration = Duration::from_millis(2);

/// The line of a host. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Bandwidth {
    up: Option<Arc<Line>>,
    down: Option<Arc<Line>>,
    moved: Arc<[AtomicU64; 2]>,
}

/// One way of the line.
#[derive(Debug)]
struct Line {
    /// Bytes a second.
    rate: f64,
    /// Bytes that may be moved at a time.
    piece: usize,
    /// When what was moved so far has had its time. `None` before anything was.
    paid: Mutex<Option<Instant>>,
}

/// The turns of one connection on one way of the line: a piece, then a pause. Its streams have them in common.
#[derive(Debug)]
pub(crate) struct Turns {
    line: Arc<Line>,
    /// Bytes of this turn that are left.
    left: usize,
    /// When this turn begins, if there is a pause before it.
    begin: Option<Instant>,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

impl Bandwidth {
    /// Smallest rate, in bytes a second: with less, connections would break before they are made.
    pub const LEAST: u64 = 8 * 1024;

    /// At most so many bytes a second up and down, not less than [`Bandwidth::LEAST`]; `None` is as many as there are.
    pub fn new(up: Option<u64>, down: Option<u64>) -> Self {
        let line = |rate: Option<u64>| rate.map(|rate| Arc::new(Line::new(rate.max(Self::LEAST) as f64)));
        Self {
            up: line(up),
            down: line(down),
            moved: Arc::default(),
        }
    }

    /// Bytes that all connections have carried so far, up and down.
    pub fn moved(&self) -> [u64; 2] {
        [Way::Up, Way::Down].map(|way| self.moved[way as usize].load(Ordering::Relaxed))
    }

    pub(crate) fn count(&self, way: Way, bytes: usize) {
        self.moved[way as usize].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// What it is up and down, as far as that is limited.
    pub fn bytes_per_second(&self) -> [Option<f64>; 2] {
        [&self.up, &self.down].map(|line| line.as_ref().map(|line| line.rate))
    }

    /// The smaller of both rates, in bits a second.
    pub fn bits_per_second(&self) -> Option<f64> {
        let rates = self.bytes_per_second().into_iter().flatten();
        rates.reduce(f64::min).map(|rate| rate * 8.0)
    }

    /// The turns of a new connection; `None` where nothing is limited.
    pub(crate) fn turns(&self, way: Way) -> Option<Turns> {
        let line = match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        };
        line.clone().map(Turns::new)
    }

    /// Bytes that a QUIC connection may receive before anybody reads them, where it matters.
    pub(crate) fn window(&self) -> Option<u32> {
        let down = self.down.as_ref()?;
        Some((down.rate * AHEAD.as_secs_f64()).clamp(16.0 * 1024.0, f64::from(u32::MAX)) as u32)
    }
}

impl Line {
    fn new(rate: f64) -> Self {
        let piece = (rate * PIECE.as_secs_f64()) as usize;
        Self {
            rate,
            piece: piece.clamp(PIECES.0, PIECES.1),
            paid: Mutex::default(),
        }
    }

    /// So many bytes were moved. Returns how long it takes until they, and all before them, have had their time.
    fn moved(&self, bytes: usize, now: Instant) -> Option<Duration> {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let begin = paid.map_or(earliest, |paid| paid.max(earliest));
        let end = begin + Duration::from_secs_f64(bytes as f64 / self.rate);
        *paid = Some(end);
        let wait = end.saturating_duration_since(now);
        (!wait.is_zero()).then_some(wait)
    }
}

impl Turns {
    fn new(line: Arc<Line>) -> Self {
        Self {
            left: line.piece,
            line,
            begin: None,
        }
    }

    /// Bytes to move at most before the next look.
    ///
    /// # Errors
    /// When to look again, if nothing may be moved before.
    pub(crate) fn room(&self, now: Instant) -> Result<usize, Instant> {
        match self.begin.filter(|begin| *begin > now) {
            Some(begin) => Err(begin),
            None => Ok(self.left),
        }
    }

    /// So many bytes were moved. Returns when the next turn begins, if they ended this one and there is a pause between.
    pub(crate) fn moved(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        let wait = self.line.moved(bytes, now);
        // Streams that look at the same moment may move more than there is: the last one's bytes are of the next turn.
        self.left = self.left.saturating_sub(bytes);
        if self.left > 0 {
            return None;
        }
        self.left = self.line.piece;
        self.begin = wait.map(|wait| now + wait);
        self.begin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Streams that always have something to move, each of the connection of that number, and pausing as long as it is told.
    /// Returns what each moved.
    fn busy(line: &Arc<Line>, streams: &[usize], piece: impl Fn(usize) -> usize, time: Duration) -> Vec<usize> {
        let start = Instant::now();
        let mut turns: Vec<Turns> = streams.iter().map(|_| Turns::new(line.clone())).collect();
        let is_shared = |connection: &usize| streams.iter().filter(|other| *other == connection).count() > 1;
        let yields: Vec<Duration> = streams
            .iter()
            .map(|connection| YIELD * u32::from(is_shared(connection)))
            .collect();
        // When each looks, and how many looks there were when it began to wait: timers go off in that order.
        let (mut next, mut looks) = (vec![(start, 0_u64); streams.len()], 0);
        let mut moved = vec![0; streams.len()];
        loop {
            let (stream, (now, _)) = next.iter().copied().enumerate().min_by_key(|(_, at)| *at).unwrap();
            if now > start + time {
                return moved;
            }
            let turns = &mut turns[streams[stream]];
            let pause = match turns.room(now) {
                Ok(room) => {
                    let bytes = piece(stream).min(room);
                    moved[stream] += bytes;
                    turns.moved(bytes, now).map(|begin| begin + yields[stream])
                }
                Err(begin) => Some(begin),
            };
            looks += 1;
            // A step of a clock, so that time passes also where nothing is waited for.
            next[stream] = (pause.unwrap_or(now + Duration::from_micros(1)), looks);
        }
    }

    fn line(rate: f64) -> Arc<Line> {
        Arc::new(Line::new(rate))
    }

    #[test]
    fn all_together_keep_to_the_rate_and_each_gets_the_same() {
        for rate in [8192.0, 250e3, 2.5e6, 1e9] {
            for n in [1, 2, 30] {
                let (line, time) = (line(rate), Duration::from_secs(20));
                let moved = busy(&line, &Vec::from_iter(0..n), |_| usize::MAX, time);
                let total = moved.iter().sum::<usize>() as f64;
                let allowed = rate * (time + CREDIT).as_secs_f64() + (n * line.piece) as f64;
                assert!(
                    total <= allowed && total > 0.9 * rate * time.as_secs_f64(),
                    "{total} of {allowed}"
                );
                let (least, most) = (moved.iter().min().unwrap(), moved.iter().max().unwrap());
                assert!(most - least <= 2 * line.piece, "{moved:?}");
            }
        }
    }

    #[test]
    fn streams_of_one_connection_take_its_turns_together_one_after_the_other() {
        const STREAMS: usize = 64;
        let line = line(1e6);
        let streams: Vec<usize> = std::iter::once(0).chain([1; STREAMS]).collect();
        let moved = busy(&line, &streams, |_| usize::MAX, Duration::from_secs(20));
        let (alone, many) = (moved[0], &moved[1..]);
        let together: usize = many.iter().sum();
        // What an idle line makes up for is for whoever comes first.
        let first = (1e6 * CREDIT.as_secs_f64()) as usize + 2 * line.piece;
        assert!(alone.abs_diff(together) <= first, "{alone} beside {together}");
        assert!(many.iter().all(|moved| 2 * STREAMS * moved > together), "{many:?}");
    }

    #[test]
    fn small_messages_of_many_streams_are_one_turn_until_they_are_a_piece() {
        let (line, now) = (line(1e6), Instant::now());
        let mut turns = Turns::new(line.clone());
        // Others have kept the line busy.
        assert_eq!(line.moved(200_000, now), Some(Duration::from_millis(100)));
        for left in (1..=line.piece).rev() {
            assert_eq!(turns.room(now), Ok(left));
            let next = turns.moved(1, now);
            assert_eq!(next.is_some(), left == 1);
        }
        let begin = turns.room(now).unwrap_err();
        assert!(begin > now + Duration::from_millis(100));
        assert_eq!(turns.room(begin), Ok(line.piece));
    }

    #[test]
    fn small_messages_beside_a_bulk_transfer_wait_for_a_few_pieces_only() {
        let moved = busy(
            &line(1e6),
            &[0, 1],
            |stream| if stream == 0 { usize::MAX } else { 100 },
            Duration::from_secs(10),
        );
        assert!(moved[1] / 100 > 400, "{} messages in 10 s", moved[1] / 100);
    }

    #[test]
    fn a_line_that_was_idle_makes_up_for_a_moment_only() {
        let (line, start) = (line(1e6), Instant::now());
        assert_eq!(line.moved(50_000, start), None);
        assert_eq!(line.moved(60_000, start), Some(Duration::from_millis(10)));
        let later = start + Duration::from_secs(3600);
        assert_eq!(line.moved(100_000, later), None);
        assert_eq!(line.moved(1000, later), Some(Duration::from_millis(1)));
    }

    #[test]
    fn the_smaller_way_is_what_a_line_is_worth() {
        assert_eq!(Bandwidth::default().bits_per_second(), None);
        assert!(Bandwidth::default().turns(Way::Up).is_none() && Bandwidth::default().window().is_none());
        let line = Bandwidth::new(Some(2_500_000), Some(10_000_000));
        assert_eq!(line.bits_per_second(), Some(20e6));
        assert_eq!(line.window(), Some(5_000_000));
        assert_eq!(Bandwidth::new(None, Some(1)).bits_per_second(), Some(8.0 * 8192.0));
    }
}
