//! Addresses and numbers that flags of many commands are given: whoever gives something else is told what is expected.

use std::{
    net::{Ipv4Addr, SocketAddr},
    str::FromStr,
};

use crate::p2p::Multiaddr;

/// # Errors
/// What is expected, and what is wrong.
pub(super) fn multiaddr(text: &str) -> Result<Multiaddr, String> {
    text.parse::<Multiaddr>().map_err(|error| {
        let wanted = "an address such as /ip4/192.0.2.1/tcp/31330, that of a peer with /p2p/PEER_ID behind it";
        format!("{}: {error}", unexpected(text, wanted))
    })
}

/// # Errors
/// What is expected.
pub(super) fn socket_addr(text: &str) -> Result<SocketAddr, String> {
    parsed(text, "an IP address and a port such as 127.0.0.1:8080")
}

/// # Errors
/// What is expected.
pub(super) fn ipv4(text: &str) -> Result<Ipv4Addr, String> {
    parsed(text, "an IPv4 address such as 192.0.2.1")
}

/// # Errors
/// What is expected.
pub(super) fn port(text: &str) -> Result<u16, String> {
    parsed(text, "a port from 0 to 65535")
}

/// For types without a sign.
///
/// # Errors
/// What is expected.
pub(super) fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    parsed(text, "a whole number from 0 on")
}

/// # Errors
/// What is expected.
pub(super) fn at_least_one(text: &str) -> Result<u32, String> {
    let wanted = "a whole number from 1 on";
    match parsed::<u32>(text, wanted)? {
        0 => Err(unexpected(text, wanted)),
        n => Ok(n),
    }
}

/// For types with fractions.
///
/// # Errors
/// What is expected.
pub(super) fn number<T: FromStr>(text: &str) -> Result<T, String> {
    parsed(text, "a number such as 0.7")
}

fn parsed<T: FromStr>(text: &str, wanted: &str) -> Result<T, String> {
    text.parse().map_err(|_| unexpected(text, wanted))
}

fn unexpected(text: &str, wanted: &str) -> String {
    format!("expected {wanted}, got {text:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_none_is_answered_with_what_is_expected() {
        let wrong = [
            multiaddr("foo").unwrap_err(),
            multiaddr("/ip4/127.0.0.1/tcp/1/p2p/x").unwrap_err(),
            socket_addr("localhost:8080").unwrap_err(),
            ipv4("::1").unwrap_err(),
            port("70000").unwrap_err(),
            whole::<u64>("-1").unwrap_err(),
            at_least_one("0").unwrap_err(),
            at_least_one("1k").unwrap_err(),
            number::<f32>("abc").unwrap_err(),
        ];
        let expected = [
            "an address such as /ip4/192.0.2.1/tcp/31330, that of a peer with /p2p/PEER_ID behind it, got \"foo\": ",
            "an address such as /ip4/192.0.2.1/tcp/31330, that of a peer with /p2p/PEER_ID behind it, got ",
            "an IP address and a port such as 127.0.0.1:8080, got \"localhost:8080\"",
            "an IPv4 address such as 192.0.2.1, got \"::1\"",
            "a port from 0 to 65535, got \"70000\"",
            "a whole number from 0 on, got \"-1\"",
            "a whole number from 1 on, got \"0\"",
            "a whole number from 1 on, got \"1k\"",
            "a number such as 0.7, got \"abc\"",
        ];
        for (said, expected) in wrong.iter().zip(expected) {
            assert!(said.starts_with(&format!("expected {expected}")), "{said}");
        }
    }

    #[test]
    fn what_is_one_is_taken() {
        assert_eq!(port("0"), Ok(0));
        assert_eq!(whole::<usize>("0"), Ok(0));
        assert_eq!(at_least_one("1"), Ok(1));
        assert_eq!(number::<f32>("-0.5"), Ok(-0.5));
        assert!(multiaddr("/ip4/127.0.0.1/udp/1/quic-v1").is_ok());
        assert!(socket_addr("[::1]:0").is_ok());
        assert!(ipv4("127.0.0.1").is_ok());
    }
}
