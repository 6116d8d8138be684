//! How the person who runs a node asks it how it is and tells it what to do, while it runs: a Unix socket of its own that
//! only this person can open.
//!
//! ```text
//!   sepal status ── client.rs ──▶ $XDG_RUNTIME_DIR/sepal/NAME.sock ──▶ socket.rs    one task a connection, bounded
//!        │                               ▲ place.rs: one file a process,     ▼
//!        │                               │ mode 0600, dead ones removed   answers.rs  snapshots of the layers below
//!        └── protocol.rs: typed lines ───┘                                orders.rs   pause, resume, drain, stop, connect
//! ```
//!
//! It only looks and forwards: what a server does is decided in `server`, what is logged by who made the [`Log`], and which
//! swarms there are by who made the [`Swarms`]. Nobody else waits for it: a client that does not read is hung up on. Requests
//! are few and small; there is no other way in.

mod answers;
mod client;
mod error;
mod lines;
mod orders;
mod place;
pub mod protocol;
mod socket;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::{
    answers::reachable,
    client::Connection,
    error::ControlError,
    place::{Found, find, prepare_folder, socket_in},
};
use self::{
    orders::Orders,
    place::Listening,
    protocol::{ApiRow, Connect, FailureCode, JobsRow, LogRow, SwarmRow},
};
use crate::{
    p2p::P2p,
    server::Server,
    swarm::{directory::Directory, standing::Access},
    task::Tasks,
};

/// Characters of a peer id, from its end, that a node is called by: ids of one kind all begin alike.
const NAME_CHARS: usize = 8;

/// What a process lets itself be asked and told.
#[derive(Debug)]
pub struct Subject {
    /// What it runs as.
    pub command: &'static str,
    /// Its host; of several, the one that it is known by.
    pub p2p: P2p,
    /// How others get to it, where that is asked.
    pub access: Option<watch::Receiver<Access>>,
    /// The models that it serves.
    pub servers: Vec<Arc<Server>>,
    /// Models that it calls others for.
    pub calls: Vec<Called>,
    /// What it answers as an API, if it is one.
    pub api: Option<Reading<ApiRow>>,
    /// The jobs that it works on, if it does.
    pub jobs: Option<Reading<Vec<JobsRow>>>,
    /// The swarms that it is in.
    pub swarms: Arc<dyn Swarms>,
    /// What is logged.
    pub log: Arc<dyn Log>,
    /// Tells it to stop, as Ctrl-C does.
    pub stop: CancellationToken,
}

/// A model that others serve.
#[derive(Clone, Debug)]
pub struct Called {
    /// Its name.
    pub model: String,
    /// Who serves it.
    pub directory: Directory,
}

/// What a part of the process did so far and does now, for whoever asks.
#[derive(Clone)]
pub struct Reading<T>(Arc<dyn Fn() -> T + Send + Sync>);

impl<T> Reading<T> {
    /// As `read` says at the moment.
    pub fn new(read: impl Fn() -> T + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }
}

impl<T> fmt::Debug for Reading<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reading")
    }
}

/// The swarms that a process is in.
pub trait Swarms: fmt::Debug + Send + Sync {
    /// The one that it was started in first.
    fn list(&self) -> Vec<SwarmRow>;

    /// The hosts in all others, by the numbers of these swarms.
    fn guests(&self) -> Vec<(u32, P2p)>;

    /// Is in another one as well. Returns how far it is with that, once it is joined or while that takes long.
    ///
    /// # Errors
    /// It cannot be in several, has been told nonsense, or did not get in.
    fn connect(&self, asked: Connect) -> BoxFuture<'_, Result<SwarmRow, Refusal>>;

    /// Leaves one when the sessions from there are over, or after `limit`. Returns at once.
    ///
    /// # Errors
    /// It is in no such swarm, or cannot do without it.
    fn disconnect(&self, swarm: &str, limit: Option<Duration>) -> Result<SwarmRow, Refusal>;
}

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: FailureCode,
    /// For people.
    pub message: String,
}

/// What a process logs.
pub trait Log: fmt::Debug + Send + Sync {
    /// The directives that hold.
    fn level(&self) -> String;

    /// Sets directives.
    ///
    /// # Errors
    /// What is wrong with them; nothing has changed then.
    fn set_level(&self, directives: &str) -> Result<(), String>;

    /// The last warnings and errors, the latest last.
    fn recent(&self) -> Vec<LogRow>;
}

/// A subject and what was ordered.
#[derive(Debug)]
struct Node {
    subject: Subject,
    began: Instant,
    orders: Orders,
    looked: answers::Looked,
    tasks: Tasks,
}

/// An open socket. It answers until it is closed.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    tasks: Tasks,
}

impl Control {
    /// Opens a socket at `path` for `subject`.
    ///
    /// # Errors
    /// Another process listens there, or nobody can.
    pub async fn open(path: &Path, subject: Subject) -> Result<Self, ControlError> {
        let listening = Listening::at(path).await?;
        let tasks = Tasks::new();
        let node = Arc::new(Node {
            subject,
            began: Instant::now(),
            orders: Orders::default(),
            looked: answers::Looked::default(),
            tasks: tasks.clone(),
        });
        tasks.spawn_until_stopped("control", socket::run(listening, node, tasks.clone()));
        Ok(Self {
            path: path.to_owned(),
            tasks,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hangs up on everybody and removes the socket. The last thing that a process does: whoever waits for its end waits
    /// for this.
    pub async fn close(self) {
        self.tasks.shutdown().await;
    }
}

/// The name that the node of `p2p` has on this machine.
pub fn name_of(p2p: &P2p) -> String {
    let id = p2p.peer_id().to_base58();
    id[id.len().saturating_sub(NAME_CHARS)..].to_owned()
}
