//! Why nothing is served over HTTP.

use std::{io, net::SocketAddr};

use thiserror::Error;

/// The site cannot be served.
#[derive(Debug, Error)]
pub enum HttpError {
    /// The address is taken, or not ours.
    #[error("cannot listen on --http {addr}: give it a free port of an address of this machine")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}
