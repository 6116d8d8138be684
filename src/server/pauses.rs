//! Why a node takes no new sessions: because of the hours that it keeps, or because a person said so. Pure bookkeeping; who
//! tells the swarm is elsewhere.
//!
//! What a person says counts more than the hours, and no longer than these: when they begin or end the next time, they
//! hold again. Only a node that drains stays as it is, because it is about to stop.

use std::time::SystemTime;

/// What was said, and what hours it is.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    hours: Option<Hours>,
    /// What a person wants, and how long.
    order: Option<(bool, Hold)>,
}

#[derive(Clone, Copy, Debug)]
struct Hours {
    within: bool,
    /// When that changes.
    until: Option<SystemTime>,
}

/// How long what a person says holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Until the hours begin or end the next time; for ever, if none are kept.
    WhileHours,
    /// Until the person says something else.
    ForGood,
}

/// Why no new sessions are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// Whether it is for the hours; for a person otherwise.
    pub by_hours: bool,
    /// When it ends or the hours hold again, if that is known.
    pub until: Option<SystemTime>,
}

impl Pauses {
    /// A person wants new sessions or none.
    pub(crate) fn ordered(&mut self, paused: bool, hold: Hold) {
        self.order = Some((paused, hold));
    }

    /// What hours it is.
    pub(crate) fn hours(&mut self, within: bool, until: Option<SystemTime>) {
        let before = self.hours.replace(Hours { within, until });
        // A machine that slept sees neither the end nor the next beginning, only that the one after is further off.
        let passed = |before: Hours| before.until.is_some_and(|was| until.is_none_or(|until| until > was));
        let changed = before.is_some_and(|before| before.within != within || passed(before));
        if changed && self.order.is_some_and(|(_, hold)| hold == Hold::WhileHours) {
            self.order = None;
        }
    }

    pub(crate) fn is_paused(&self) -> bool {
        let outside = self.hours.is_some_and(|hours| !hours.within);
        self.order.map_or(outside, |(paused, _)| paused)
    }

    /// Why, while it is so.
    pub(crate) fn why(&self) -> Option<Pause> {
        let until = self.hours.and_then(|hours| hours.until);
        let until = until.filter(|_| self.order.is_none_or(|(_, hold)| hold == Hold::WhileHours));
        self.is_paused().then_some(Pause {
            by_hours: self.order.is_none(),
            until,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn hours_pause_and_resume_and_a_person_overrules_them_until_they_change() {
        let at = |hour: u64| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(3600 * hour));
        let mut pauses = Pauses::default();
        assert!(!pauses.is_paused() && pauses.why().is_none());
        pauses.hours(false, at(18));
        let outside = Pause {
            by_hours: true,
            until: at(18),
        };
        assert_eq!(pauses.why(), Some(outside));
        pauses.ordered(false, Hold::WhileHours);
        pauses.hours(false, at(18));
        assert!(!pauses.is_paused(), "looking at the clock again is no change");
        pauses.hours(true, at(32));
        pauses.ordered(true, Hold::WhileHours);
        let by_person = Pause {
            by_hours: false,
            until: at(32),
        };
        assert_eq!(pauses.why(), Some(by_person));
        pauses.hours(false, at(42));
        assert!(pauses.why().unwrap().by_hours);
        pauses.hours(true, at(56));
        assert!(!pauses.is_paused());
        pauses.ordered(true, Hold::WhileHours);
        pauses.hours(true, at(55));
        assert!(pauses.is_paused(), "a clock that is put right is no change");
        pauses.hours(true, at(80));
        assert!(!pauses.is_paused(), "an end that nobody saw is one");
    }

    #[test]
    fn without_hours_and_in_a_drain_a_person_has_the_last_word() {
        let mut pauses = Pauses::default();
        pauses.ordered(true, Hold::WhileHours);
        assert_eq!(pauses.why().and_then(|pause| pause.until), None);
        assert!(pauses.is_paused());
        pauses.hours(false, Some(SystemTime::UNIX_EPOCH));
        pauses.ordered(true, Hold::ForGood);
        pauses.hours(true, Some(SystemTime::UNIX_EPOCH));
        assert!(pauses.is_paused() && pauses.why().unwrap().until.is_none());
        pauses.ordered(false, Hold::WhileHours);
        assert!(!pauses.is_paused());
    }
}
