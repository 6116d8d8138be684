//! Generates text through a chain of servers.
