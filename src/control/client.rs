//! The other end of the socket: asks a running node and reads what it answers.

use std::{io, path::Path, time::Duration};

use tokio::{io::BufReader, net::UnixStream};

use super::{
    error::ControlError,
    lines, place,
    protocol::{Answer, Answered, Request},
};

/// Longest answer that is read, bytes: a picture with all sessions and all peers that a node may have.
const MAX_ANSWER: u64 = 16 << 20;

/// How long a node may take for an answer: it may look into the DHT, or tell the swarm something.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// A line to a running node.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// Connects to the node whose socket is at `path`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn open(path: &Path) -> Result<Self, ControlError> {
        Ok(Self::on(place::connect(path).await?))
    }

    pub(super) fn on(stream: UnixStream) -> Self {
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// Asks, and returns the answer.
    ///
    /// # Errors
    /// The node is gone or silent, or refuses.
    pub async fn ask(&mut self, request: &Request) -> Result<Answer, ControlError> {
        let written = lines::write(self.stream.get_mut(), &request.line(), ANSWER_PATIENCE).await;
        // Who is refused at the door may still be told why.
        match (self.next().await, written) {
            (Err(ControlError::Broken(_)), Err(error)) => Err(ControlError::Broken(error)),
            (answer, _) => answer,
        }
    }

    /// The next answer to a request that has several.
    ///
    /// # Errors
    /// As [`Connection::ask`].
    pub async fn next(&mut self) -> Result<Answer, ControlError> {
        let line = tokio::time::timeout(ANSWER_PATIENCE, lines::read(&mut self.stream, MAX_ANSWER)).await;
        let line = line.map_err(io::Error::from).and_then(|line| line);
        let line = line.and_then(|line| line.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()));
        let answered: Answered =
            serde_json::from_slice(&line.map_err(ControlError::Broken)?).map_err(ControlError::Protocol)?;
        match answered.answer {
            Answer::Failed { code, message } => Err(ControlError::Refused { code, message }),
            answer => Ok(answer),
        }
    }

    /// Returns when the node has hung up, which is the last thing that it does.
    pub async fn closed(mut self) {
        while let Ok(Some(_)) = lines::read(&mut self.stream, MAX_ANSWER).await {}
    }
}
