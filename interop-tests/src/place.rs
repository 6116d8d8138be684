//! Where a process of a test runs: on this machine's loopback, or in a network namespace of the test.

use std::{ffi::OsStr, process::Command, sync::Arc};

use crate::network::Namespace;

/// The port of the nodes that have a machine for themselves. Others must know it, to try a hole in a router.
const PORT: &str = "4001";

/// A machine, real or not.
#[derive(Clone, Debug)]
pub struct Place {
    namespace: Option<Arc<Namespace>>,
    /// Its address.
    pub ip: String,
    /// The line to the internet that its packets take, for [`crate::network::Network`]; empty on loopback.
    pub line: String,
}

impl Place {
    /// This machine, with nobody but itself.
    pub fn loopback() -> Self {
        Self {
            namespace: None,
            ip: "127.0.0.1".to_owned(),
            line: String::new(),
        }
    }

    /// A machine of its own.
    pub(crate) fn new(namespace: Arc<Namespace>, ip: String, line: String) -> Self {
        Self {
            namespace: Some(namespace),
            ip,
            line,
        }
    }

    /// A program that is to run there.
    pub(crate) fn command(&self, program: &OsStr) -> Command {
        match &self.namespace {
            Some(namespace) => namespace.command(program),
            None => Command::new(program),
        }
    }

    /// The flags of `sepal` for a node that others can dial. Nodes of one machine share its loopback, so each takes any
    /// free port there.
    pub(crate) fn listen_flags(&self) -> [&str; 2] {
        match &self.namespace {
            Some(_) => ["--port", PORT],
            None => ["--listen", "/ip4/127.0.0.1/tcp/0"],
        }
    }

    /// The same for programs of Petals, which know TCP only.
    pub(crate) fn host_maddr(&self) -> String {
        match &self.namespace {
            Some(_) => format!("/ip4/0.0.0.0/tcp/{PORT}"),
            None => "/ip4/127.0.0.1/tcp/0".to_owned(),
        }
    }
}
