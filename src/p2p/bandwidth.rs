//! How many bytes a second all connections of a host may carry together, each way: pure arithmetic, time is an argument.
//! Who waits for it is in `paced.rs`.
//!
//! Bytes go first and are paid for with time afterwards: each connection moves a small piece and then pauses until the
//! moment at which all pieces before it, and its own, have had their time on the line. So those that want to go on take
//! turns, whatever their number, nothing is kept in a buffer, and a connection that goes away has booked nothing.

use std::{
    fmt,
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

/// The line of a host. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Bandwidth {
    up: Option<Arc<Line>>,
    down: Option<Arc<Line>>,
    moved: Arc<[AtomicU64; 2]>,
}

/// One way of the line.
#[derive(Debug)]
pub(crate) struct Line {
    /// Bytes a second.
    rate: f64,
    /// Bytes that may be moved at a time.
    piece: usize,
    /// When what was moved so far has had its time. `None` before anything was.
    paid: Mutex<Option<Instant>>,
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

    /// The smaller of both rates, in bits a second.
    pub fn bits_per_second(&self) -> Option<f64> {
        let rates = [&self.up, &self.down].into_iter().flatten().map(|line| line.rate);
        rates.reduce(f64::min).map(|rate| rate * 8.0)
    }

    pub(crate) fn line(&self, way: Way) -> Option<Arc<Line>> {
        match way {
            Way::Up => self.up.clone(),
            Way::Down => self.down.clone(),
        }
    }

    /// Bytes that a QUIC connection may receive before anybody reads them, where it matters.
    pub(crate) fn window(&self) -> Option<u32> {
        let down = self.down.as_ref()?;
        Some((down.rate * AHEAD.as_secs_f64()).clamp(16.0 * 1024.0, f64::from(u32::MAX)) as u32)
    }
}

impl fmt::Display for Bandwidth {
    /// Such as `2.5 MB/s up, 10.0 MB/s down`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ways = [(&self.up, "up"), (&self.down, "down")];
        let texts = ways
            .iter()
            .filter_map(|(line, way)| Some(format!("{:.1} MB/s {way}", line.as_ref()?.rate / 1e6)));
        f.write_str(&texts.collect::<Vec<_>>().join(", "))
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

    /// Bytes to move at most before the next look at the line.
    pub(crate) fn piece(&self) -> usize {
        self.piece
    }

    /// So many bytes were moved. Returns how long whoever moved them waits before it moves more.
    pub(crate) fn moved(&self, bytes: usize, now: Instant) -> Option<Duration> {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let begin = paid.map_or(earliest, |paid| paid.max(earliest));
        let end = begin + Duration::from_secs_f64(bytes as f64 / self.rate);
        *paid = Some(end);
        let wait = end.saturating_duration_since(now);
        (!wait.is_zero()).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections that always have something to move, each pausing as long as it is told. Returns what each moved.
    fn busy(line: &Line, n: usize, piece: impl Fn(usize) -> usize, time: Duration) -> Vec<usize> {
        let start = Instant::now();
        let (mut next, mut moved) = (vec![start; n], vec![0; n]);
        loop {
            let (turn, now) = next.iter().copied().enumerate().min_by_key(|(_, at)| *at).unwrap();
            if now > start + time {
                return moved;
            }
            let bytes = piece(turn).min(line.piece());
            moved[turn] += bytes;
            // A step of a clock, so that time passes also where nothing is waited for.
            next[turn] = now + line.moved(bytes, now).unwrap_or(Duration::from_micros(1));
        }
    }

    #[test]
    fn all_together_keep_to_the_rate_and_each_gets_the_same() {
        for rate in [8192.0, 250e3, 2.5e6, 1e9] {
            for n in [1, 2, 30] {
                let (line, time) = (Line::new(rate), Duration::from_secs(20));
                let moved = busy(&line, n, |_| usize::MAX, time);
                let total = moved.iter().sum::<usize>() as f64;
                let allowed = rate * (time + CREDIT).as_secs_f64() + (n * line.piece()) as f64;
                assert!(
                    total <= allowed && total > 0.9 * rate * time.as_secs_f64(),
                    "{total} of {allowed}"
                );
                let (least, most) = (moved.iter().min().unwrap(), moved.iter().max().unwrap());
                assert!(most - least <= 2 * line.piece(), "{moved:?}");
            }
        }
    }

    #[test]
    fn small_messages_beside_a_bulk_transfer_wait_for_a_few_pieces_only() {
        let line = Line::new(1e6);
        let moved = busy(
            &line,
            2,
            |turn| if turn == 0 { usize::MAX } else { 100 },
            Duration::from_secs(10),
        );
        assert!(moved[1] / 100 > 400, "{} messages in 10 s", moved[1] / 100);
    }

    #[test]
    fn a_line_that_was_idle_makes_up_for_a_moment_only() {
        let (line, start) = (Line::new(1e6), Instant::now());
        assert_eq!(line.moved(50_000, start), None);
        assert_eq!(line.moved(60_000, start), Some(Duration::from_millis(10)));
        let later = start + Duration::from_secs(3600);
        assert_eq!(line.moved(100_000, later), None);
        assert_eq!(line.moved(1000, later), Some(Duration::from_millis(1)));
    }

    #[test]
    fn the_smaller_way_is_what_a_line_is_worth() {
        assert_eq!(Bandwidth::default().bits_per_second(), None);
        assert!(Bandwidth::default().line(Way::Up).is_none() && Bandwidth::default().window().is_none());
        let line = Bandwidth::new(Some(2_500_000), Some(10_000_000));
        assert_eq!(line.bits_per_second(), Some(20e6));
        assert_eq!(line.to_string(), "2.5 MB/s up, 10.0 MB/s down");
        assert_eq!(line.window(), Some(5_000_000));
        assert_eq!(Bandwidth::new(None, Some(1)).bits_per_second(), Some(8.0 * 8192.0));
    }
}
