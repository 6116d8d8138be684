//! The interop tests: one program, because linking one is quicker than linking nine.

#[cfg(test)]
mod api;
#[cfg(test)]
mod chat;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod clients;
#[cfg(test)]
mod control;
#[cfg(test)]
mod dht;
#[cfg(test)]
mod doctor;
#[cfg(test)]
mod errors;
#[cfg(test)]
mod failover;
#[cfg(test)]
mod families;
#[cfg(test)]
mod formats;
#[cfg(test)]
mod health;
#[cfg(test)]
mod identity;
#[cfg(test)]
mod malformed;
#[cfg(test)]
mod push;
#[cfg(test)]
mod records;
#[cfg(test)]
mod servers;
#[cfg(test)]
mod standing;
#[cfg(test)]
mod training;
