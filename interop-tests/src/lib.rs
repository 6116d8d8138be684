//! Starts the built `sepal` program and real Python peers for the tests and talks to them; nothing of the product lives here.
//!
//! Everything runs on loopback or in network namespaces (`network.rs`), in process groups that end with the test, with
//! deadlines on every wait. Nothing is skipped: a peer that cannot be started fails the test.

pub mod hub;
pub mod network;
pub mod node;
pub mod place;
pub mod process;
pub mod python;
pub mod raw;

use std::time::Duration;

/// Limit for a process to become ready: a Petals server takes 20 s on two free cores, and tests share them.
pub const STARTUP: Duration = Duration::from_secs(180);

/// Limit for one piece of work: a whole Petals client with its scenarios takes 30 s on two free cores.
pub const WORK: Duration = Duration::from_secs(400);

/// Limit for one answer of a running peer.
pub const ANSWER: Duration = Duration::from_secs(90);
