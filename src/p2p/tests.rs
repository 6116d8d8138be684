//! In-process tests: hosts that talk to each other over real TCP on loopback.

mod calls;
