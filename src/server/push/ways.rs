//! How long pushes take to get through the line, by what earlier ones took. Pure; it is told all times.
//!
//! ```text
//! seconds from the start of a push to its answer      there and back + bytes · seconds of a byte
//! ```
//!
//! A small push shows the first part, a prompt the second one.

use std::{collections::HashMap, time::Duration};

use crate::p2p::PeerId;

/// Bytes of a push that shows what a line carries.
const LARGE: usize = 64 << 10;
/// Most servers that are remembered.
const MAX_WAYS: usize = 256;

/// What pushes to one server took.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// Least seconds of any.
    least: f64,
    /// Bytes and seconds of the last large one.
    large: Option<(usize, f64)>,
}

/// What pushes took.
#[derive(Debug, Default)]
pub(super) struct Ways {
    ways: HashMap<PeerId, Way>,
}

impl Ways {
    /// A push of so many bytes was answered after so long.
    pub(super) fn took(&mut self, peer: PeerId, n_bytes: usize, time: Duration) {
        if self.ways.len() >= MAX_WAYS && !self.ways.contains_key(&peer) {
            // Any of them: what it takes is found out anew. A node that runs for long meets more than it remembers.
            self.ways.extract_if(|_, _| true).next();
        }
        let seconds = time.as_secs_f64();
        let way = self.ways.entry(peer).or_insert(Way {
            least: seconds,
            large: None,
        });
        way.least = way.least.min(seconds);
        if n_bytes >= LARGE {
            way.large = Some((n_bytes, seconds));
        }
    }

    /// How long the line is busy with so many bytes: nothing if that is not known, or too short for a clock.
    pub(super) fn busy(&self, peer: &PeerId, n_bytes: usize) -> Duration {
        let Some(Way {
            least,
            large: Some((bytes, seconds)),
        }) = self.ways.get(peer).copied()
        else {
            return Duration::ZERO;
        };
        let each = (seconds - least).max(0.0) / bytes as f64;
        let busy = Duration::from_secs_f64(each * n_bytes as f64);
        if busy < Duration::from_millis(1) {
            Duration::ZERO
        } else {
            busy
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::testing::peer;

    #[test]
    fn small_pushes_and_large_ones_together_tell_what_a_line_carries() {
        let mut ways = Ways::default();
        let token = 16 << 10;
        assert_eq!(ways.busy(&peer(1), token), Duration::ZERO, "nothing is known");
        // Ten megabits a second, fifty milliseconds.
        ways.took(peer(1), 1 << 20, Duration::from_millis(889));
        assert_eq!(ways.busy(&peer(1), token), Duration::ZERO, "it may be far away");
        ways.took(peer(1), token, Duration::from_millis(63));
        let busy = ways.busy(&peer(1), token).as_millis();
        assert!((12..=13).contains(&busy), "{busy}");
        assert!(ways.busy(&peer(1), 1 << 20).as_millis() > 800);
        assert_eq!(ways.busy(&peer(2), token), Duration::ZERO, "another server");
    }

    #[test]
    fn servers_that_are_met_late_are_remembered_too_and_not_more_than_some() {
        let mut ways = Ways::default();
        let late = PeerId::random();
        for peer in (0..2 * MAX_WAYS).map(|_| PeerId::random()).chain([late]) {
            ways.took(peer, 1 << 20, Duration::from_millis(889));
        }
        ways.took(late, 16 << 10, Duration::from_millis(63));
        assert!(ways.busy(&late, 1 << 20).as_millis() > 800);
        assert_eq!(ways.ways.len(), MAX_WAYS);
    }

    #[test]
    fn a_quick_line_is_not_waited_for() {
        let mut ways = Ways::default();
        ways.took(peer(1), 1 << 20, Duration::from_millis(12));
        ways.took(peer(1), 16 << 10, Duration::from_millis(2));
        assert_eq!(ways.busy(&peer(1), 16 << 10), Duration::ZERO);
    }
}
