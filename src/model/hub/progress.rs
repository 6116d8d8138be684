//! How a download tells whoever waits for it how far it is. Nothing is printed here.

use std::fmt::Debug;

/// Is told of every download that is worth waiting for. Called from the threads that download.
pub trait Progress: Debug + Send + Sync {
    /// A download begins; what is returned is told of its bytes and dropped at its end, successful or not.
    fn begin(&self, download: &Download) -> Box<dyn Transfer>;
}

/// What is about to be downloaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Download {
    /// The repository and what of it, for people.
    pub what: String,
    /// All bytes of it.
    pub total: u64,
    /// Bytes that an earlier download left here.
    pub present: u64,
}

/// One download while it runs.
pub trait Transfer: Send + Sync {
    /// `bytes` more have come, of this file of the repository.
    fn received(&self, file: &str, bytes: u64);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Silent;

impl Progress for Silent {
    fn begin(&self, _download: &Download) -> Box<dyn Transfer> {
        Box::new(Self)
    }
}

impl Transfer for Silent {
    fn received(&self, _file: &str, _bytes: u64) {}
}
