//! DHT time: Unix seconds, as every expiration on the wire. Not a timer: waiting is done with tokio.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

/// Where a node reads the time from. Clones of a manual clock show the same time.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The clock of the machine.
    #[default]
    System,
    /// A clock that moves when it is told to: lets tests expire records without waiting.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// A clock that stands at `seconds` until it is moved.
    pub fn manual(seconds: f64) -> Self {
        Self::Manual(Arc::new(AtomicU64::new(seconds.to_bits())))
    }

    /// Moves a manual clock forward; a system clock cannot be moved and stays as it is.
    pub fn advance(&self, seconds: f64) {
        if let Self::Manual(bits) = self {
            let moved = f64::from_bits(bits.load(Ordering::SeqCst)) + seconds;
            bits.store(moved.to_bits(), Ordering::SeqCst);
        }
    }

    /// Seconds since 1970. A machine clock set before that reads as 0.
    pub fn now(&self) -> f64 {
        match self {
            Self::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0.0, |since| since.as_secs_f64()),
            Self::Manual(bits) => f64::from_bits(bits.load(Ordering::SeqCst)),
        }
    }
}
