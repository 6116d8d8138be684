//! Why a node cannot be talked to, or does not let itself be.

use std::{io, path::PathBuf};

use thiserror::Error;

use super::protocol::FailureCode;

/// What keeps a control socket from being opened or used.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The folder of the sockets cannot be made, or is not only ours.
    #[error("cannot use the folder {} for control sockets", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A running process has the socket.
    #[error("a running node has the control socket {}: give --control another path, or --no-control", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket is in its place.
    #[error("{} is there and is no socket: give --control another path", path.display())]
    NoSocket {
        /// What is there.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot listen on the control socket {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody listens there.
    #[error("no node listens on {}", path.display())]
    NobodyThere {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The node hung up, or was silent.
    #[error("the node broke off")]
    Broken(#[source] io::Error),
    /// What the node said is not of this protocol.
    #[error("the node answers something else")]
    Protocol(#[source] serde_json::Error),
    /// The node says why it does not answer.
    #[error("{message}")]
    Refused {
        /// For programs.
        code: FailureCode,
        /// For people.
        message: String,
    },
}
