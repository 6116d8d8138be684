//! The interop tests: one program, because linking one is quicker than linking eight.

#[cfg(test)]
mod clients;
#[cfg(test)]
mod dht;
#[cfg(test)]
mod errors;
#[cfg(test)]
mod failover;
#[cfg(test)]
mod identity;
#[cfg(test)]
mod malformed;
#[cfg(test)]
mod push;
#[cfg(test)]
mod servers;
