//! The control socket of a command that runs for long: its flags, and where it is.

use std::{path::PathBuf, sync::Arc};

use clap::Args as ClapArgs;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    environment, logging,
    node::Node,
    swarm::Swarm,
    swarms::{self, Swarms},
};
use crate::control::{self, Called, Control, ControlError, Subject};

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct ControlArgs {
    /// Socket on which `sepal status`, `top`, `pause` and the others talk to this process [default: one that they find,
    /// in a folder of your own].
    #[arg(long, value_name = "PATH", conflicts_with = "no_control")]
    control: Option<PathBuf>,
    /// Let nobody talk to this process.
    #[arg(long)]
    no_control: bool,
}

impl ControlArgs {
    /// Opens the socket. Where no place was named and none can be used, the process does without.
    ///
    /// # Errors
    /// The place that was named cannot be used.
    pub(super) async fn open(&self, subject: Option<Subject>) -> anyhow::Result<Option<Control>> {
        let Some(subject) = subject.filter(|_| !self.no_control) else {
            return Ok(None);
        };
        if let Some(path) = &self.control {
            return Ok(Some(Control::open(path, subject).await?));
        }
        match open_in(&environment::control_folders(), subject).await {
            Ok(control) => {
                debug!(path = %control.path().display(), "control socket");
                Ok(Some(control))
            }
            Err(error) => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "sepal status and the like cannot talk to this process: give --control another path"
                );
                Ok(None)
            }
        }
    }
}

/// Opens a socket in the first of `folders`, which is the one for this machine's users.
async fn open_in(folders: &[PathBuf], subject: Subject) -> Result<Control, ControlError> {
    let folder = folders.first().cloned().unwrap_or_default();
    control::prepare_folder(&folder).await?;
    let path = control::socket_in(&folder, &control::name_of(&subject.p2p));
    Control::open(&path, subject).await
}

/// What a process on `node` lets itself be asked, once it logs: nothing served, nobody called. `stop` ends it.
pub(super) fn subject(
    command: &'static str,
    (node, swarm): (&Node, &Swarm),
    stop: &CancellationToken,
) -> Option<Subject> {
    let swarms = Swarms::new(command, (node, swarm), None, None);
    Some(Subject {
        command,
        p2p: node.p2p.clone(),
        access: None,
        servers: Vec::new(),
        calls: Vec::<Called>::new(),
        api: None,
        jobs: None,
        swarms: Arc::new(swarms::Handle(swarms)),
        log: logging::running()?,
        stop: stop.clone(),
    })
}

/// Closes the socket, as the last thing that the process does.
pub(super) async fn close(control: Option<Control>) {
    if let Some(control) = control {
        control.close().await;
    }
}
