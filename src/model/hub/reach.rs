//! Asking a hub again, and for how long: what one does without is asked for once, what a command needs for two minutes, and
//! what a server needs until it comes.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tracing::{debug, info, warn};

use super::{HubOptions, http::Fault};

/// Failures in a row, without a byte between them, until a download is given up: with waits of 1, 2, 4 … 30 s two minutes.
const MAX_FAILURES: u32 = 8;

/// How often something is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tries {
    Once,
    Several,
    /// Until it comes, as far as it is the hub or the line that fails.
    Endless,
}

impl Tries {
    /// Those for what is needed.
    pub(super) fn of(options: &HubOptions) -> Self {
        match options.keep_trying {
            true => Self::Endless,
            false => Self::Several,
        }
    }

    fn are_over(self, failures: u32, fault: &Fault) -> bool {
        match self {
            Self::Once => true,
            Self::Several => failures >= MAX_FAILURES,
            Self::Endless => failures >= MAX_FAILURES && !fault.is_outage(),
        }
    }
}

/// What a process knows of a hub; clones of options share it.
#[derive(Debug, Default)]
pub(crate) struct Reach(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    standing: Standing,
    /// When it was last said that the hub is waited for.
    told: Option<Instant>,
}

/// Whether a hub answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Standing {
    #[default]
    Unknown,
    Answers,
    /// It was given up.
    Silent,
}

impl Reach {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn standing(&self) -> Standing {
        self.known().standing
    }

    fn answered(&self) {
        *self.known() = Known {
            standing: Standing::Answers,
            told: None,
        };
    }

    fn ended(&self, fault: &Fault) {
        if fault.is_passing() {
            self.known().standing = Standing::Silent;
        } else if let Fault::Status { .. } = fault {
            self.answered();
        }
    }

    /// Of the threads that wait for the hub one says so at each try: whether it is this one, and whether it is the first
    /// time.
    fn tells(&self, wait: Duration) -> Option<bool> {
        let mut known = self.known();
        let is_first = known.told.is_none();
        let is_due = known.told.is_none_or(|told| told.elapsed() >= wait / 2);
        is_due.then(|| {
            known.told = Some(Instant::now());
            is_first
        })
    }
}

/// Does something with `url` until it succeeds, waiting longer after each failure in a row. `attempt` also says whether it got
/// anywhere: then failures are counted anew.
///
/// # Errors
/// A failure that trying again does not mend, or one too many.
pub(super) fn retrying<T>(
    url: &str,
    options: &HubOptions,
    tries: Tries,
    stopped: impl Fn() -> bool,
    mut attempt: impl FnMut() -> (Result<T, Fault>, bool),
) -> Result<T, Fault> {
    let (tuning, mut failures) = (&options.tuning, 0_u32);
    loop {
        let fault = match attempt() {
            (Ok(done), _) => {
                options.reach.answered();
                return Ok(done);
            }
            (Err(fault), advanced) => {
                failures = if advanced { 1 } else { failures.saturating_add(1) };
                fault
            }
        };
        if stopped() {
            return Err(fault);
        }
        if !fault.is_passing() || tries.are_over(failures, &fault) {
            options.reach.ended(&fault);
            return Err(fault);
        }
        let doubled = 1 << (failures.min(MAX_FAILURES) - 1);
        let wait = tuning.first_wait.saturating_mul(doubled).min(tuning.last_wait);
        let wait = fault.retry_after().map_or(wait, |asked| asked.max(wait));
        if failures < MAX_FAILURES {
            tell(url, &fault, wait, failures);
        } else {
            tell_of_outage(url, &fault, wait, &options.reach);
        }
        thread::sleep(wait);
    }
}

fn tell(url: &str, fault: &Fault, wait: Duration, failures: u32) {
    let (error, wait_s) = (fault as &dyn std::error::Error, wait.as_secs_f32());
    if let Some(silence) = fault.silence() {
        // Already the first was a long time without a word.
        warn!(url, wait_s, "nothing came for {} s; asking again", silence.as_secs());
    } else if failures > 1 {
        warn!(url, error, wait_s, "trying again to download");
    } else {
        debug!(url, error, "trying again to download");
    }
}

fn tell_of_outage(url: &str, fault: &Fault, wait: Duration, reach: &Reach) {
    let (error, wait_s) = (fault as &dyn std::error::Error, wait.as_secs_f32());
    match reach.tells(wait) {
        Some(true) => warn!(
            url,
            error, wait_s, "the hub cannot be reached; what has come is kept, and the rest is asked for until it comes"
        ),
        Some(false) => info!(url, error, wait_s, "still waiting for the hub"),
        None => debug!(url, error, wait_s, "still waiting for the hub"),
    }
}
