//! What the values of polite flags mean: parts, rates, peers and networks. Pure but for `@FILE`.

use std::{fs, net::IpAddr};

use crate::{
    p2p::{Bandwidth, PeerId},
    server::{Network, Who},
};

/// `50%` or `50`: a part of the whole, from above 0 to 1.
pub(super) fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse::<f64>().ok();
    let percent = number.filter(|percent| *percent > 0.0 && *percent <= 100.0);
    let percent =
        percent.ok_or_else(|| format!("a percentage from above 0 to 100 is wanted, such as 50%, not {text:?}"))?;
    Ok(percent / 100.0)
}

/// `20mbit`, `2MB`, or one for each way: `up=5mbit,down=20mbit`.
pub(in crate::cli) fn bandwidth(text: &str) -> Result<Bandwidth, String> {
    if !text.contains('=') {
        let rate = rate(text)?;
        return Ok(Bandwidth::new(Some(rate), Some(rate)));
    }
    let (mut up, mut down) = (None, None);
    for part in text.split(',') {
        match part.trim().split_once('=') {
            Some(("up", value)) if up.is_none() => up = Some(rate(value)?),
            Some(("down", value)) if down.is_none() => down = Some(rate(value)?),
            _ => return Err(format!("up=RATE, down=RATE or both are wanted, not {part:?}")),
        }
    }
    Ok(Bandwidth::new(up, down))
}

/// Bytes a second.
fn rate(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    let unit = unit.strip_suffix("/s").unwrap_or(unit);
    // B is a byte and b a bit, whatever the case of the rest.
    let bytes = match unit.to_ascii_lowercase().as_str() {
        "kbit" => 1e3 / 8.0,
        "mbit" => 1e6 / 8.0,
        "gbit" => 1e9 / 8.0,
        "kb" if unit.ends_with('B') => 1e3,
        "mb" if unit.ends_with('B') => 1e6,
        "gb" if unit.ends_with('B') => 1e9,
        "kib" if unit.ends_with('B') => 1024.0,
        "mib" if unit.ends_with('B') => 1024.0 * 1024.0,
        _ => {
            return Err(format!(
                "a rate a second such as 20mbit or 2MB is wanted (kbit, mbit, gbit, kB, MB, GB), not {text:?}"
            ));
        }
    };
    let wrong = || format!("{number:?} is no number: a rate such as 20mbit or 2MB is wanted");
    let rate = number.parse::<f64>().map_err(|_| wrong())? * bytes;
    let least = Bandwidth::LEAST;
    if rate < least as f64 {
        return Err(format!(
            "{text} is too little to stay connected with: give {} kB or more, or pause the node instead",
            least.div_ceil(1000)
        ));
    }
    Ok(rate as u64)
}

/// What one value stands for: one thing, or all that a file lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed<T>(pub(super) Vec<T>);

/// A peer, an address, a network, or all of a file that has one of these a line.
pub(super) fn who(text: &str) -> Result<Listed<Who>, String> {
    listed(text, one_of_all)
}

/// The same, but somebody in any case: rules that allow nobody by name are those that let everybody in.
pub(super) fn allowed(text: &str) -> Result<Listed<Who>, String> {
    let listed = who(text)?;
    match listed.0.is_empty() {
        true => Err(format!(
            "{text} lists nobody, and without --allow everybody is let in: list somebody, or leave it out"
        )),
        false => Ok(listed),
    }
}

/// Peers, or a file of them.
pub(super) fn peers(text: &str) -> Result<Listed<PeerId>, String> {
    listed(text, |text| {
        text.parse().map_err(|_| {
            format!("{text:?} is no peer id: such as 12D3KooW…, as sepal status --json and join lines show it")
        })
    })
}

fn listed<T>(text: &str, one: impl Fn(&str) -> Result<T, String>) -> Result<Listed<T>, String> {
    let Some(path) = text.strip_prefix('@') else {
        return Ok(Listed(vec![one(text)?]));
    };
    let file = fs::read_to_string(path).map_err(|error| format!("{path} cannot be read: {error}"))?;
    let lines = file.lines().enumerate().map(|(i, line)| {
        let entry = line.split('#').next().unwrap_or_default().trim();
        let number = i + 1;
        let parsed = one(entry).map_err(|error| format!("line {number} of {path}: {error}"));
        (!entry.is_empty()).then_some(parsed)
    });
    lines.flatten().collect::<Result<_, _>>().map(Listed)
}

fn one_of_all(text: &str) -> Result<Who, String> {
    let wrong = || format!("{text:?} is no peer id, address or network: such as 12D3KooW…, 192.0.2.7 or 10.0.0.0/8");
    if let Ok(peer) = text.parse() {
        return Ok(Who::Peer(peer));
    }
    let Some((addr, bits)) = text.split_once('/') else {
        return text
            .parse()
            .map(|addr| Who::At(Network::host(addr)))
            .map_err(|_| wrong());
    };
    let (addr, bits): (IpAddr, u8) = (addr.parse().map_err(|_| wrong())?, bits.parse().map_err(|_| wrong())?);
    let network = Network::new(addr, bits);
    network.map(Who::At).ok_or_else(|| {
        format!(
            "{text:?} is no network: behind its first {bits} bits an address of a network has zeros, such as 10.0.0.0/8"
        )
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[track_caller]
    fn says<T: std::fmt::Debug>(outcome: Result<T, String>, part: &str) {
        let error = outcome.unwrap_err();
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn parts_are_percentages() {
        assert_eq!(percent("50%"), Ok(0.5));
        assert_eq!(percent("12.5"), Ok(0.125));
        assert_eq!(percent("100"), Ok(1.0));
        for wrong in ["0", "-1", "101%", "half", "", "%", "nan"] {
            says(
                percent(wrong),
                "a percentage from above 0 to 100 is wanted, such as 50%",
            );
        }
    }

    #[test]
    fn rates_are_bits_or_bytes_a_second_for_both_ways_or_each() {
        for (text, [up, down]) in [
            ("20mbit", [Some(2.5e6), Some(2.5e6)]),
            ("2MB/s", [Some(2e6), Some(2e6)]),
            ("1.5 Gbit", [Some(187.5e6), Some(187.5e6)]),
            ("up=800kbit,down=4MB", [Some(1e5), Some(4e6)]),
            ("up=1MB", [Some(1e6), None]),
            ("down=100KiB", [None, Some(102_400.0)]),
        ] {
            assert_eq!(bandwidth(text).unwrap().bytes_per_second(), [up, down], "{text}");
        }
        says(bandwidth("20"), "a rate a second such as 20mbit or 2MB is wanted");
        says(bandwidth("2mb"), "(kbit, mbit, gbit, kB, MB, GB), not \"2mb\"");
        says(bandwidth("mbit"), "\"\" is no number");
        says(
            bandwidth("1kB"),
            "1kB is too little to stay connected with: give 9 kB or more, or pause the node instead",
        );
        says(
            bandwidth("up=1MB,up=2MB"),
            "up=RATE, down=RATE or both are wanted, not \"up=2MB\"",
        );
        says(bandwidth("left=1MB"), "not \"left=1MB\"");
    }

    #[test]
    fn somebody_is_a_peer_an_address_a_network_or_a_file_of_them() {
        let peer = PeerId::random();
        assert_eq!(who(&peer.to_string()), Ok(Listed(vec![Who::Peer(peer)])));
        let host = Network::host("192.0.2.7".parse().unwrap());
        assert_eq!(who("192.0.2.7"), Ok(Listed(vec![Who::At(host)])));
        let network = Network::new("2001:db8::".parse().unwrap(), 32).unwrap();
        assert_eq!(who("2001:db8::/32"), Ok(Listed(vec![Who::At(network)])));
        says(
            who("10.0.0.1/8"),
            "behind its first 8 bits an address of a network has zeros",
        );
        says(who("example.org"), "is no peer id, address or network");
        says(peers("192.0.2.7"), "is no peer id");

        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "# friends\n{peer}  # Ann\n\n192.0.2.7").unwrap();
        let named = format!("@{}", file.path().display());
        assert_eq!(who(&named), Ok(Listed(vec![Who::Peer(peer), Who::At(host)])));
        says(peers(&named), "line 4 of ");
        says(who("@/no/such/file"), "/no/such/file cannot be read");
    }

    #[test]
    fn a_file_that_lists_nobody_denies_nobody_and_cannot_say_who_is_allowed() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "# nobody yet\n").unwrap();
        let named = format!("@{}", file.path().display());
        assert_eq!(who(&named), Ok(Listed(Vec::new())));
        says(
            allowed(&named),
            "lists nobody, and without --allow everybody is let in: list somebody, or leave it out",
        );
        let peer = PeerId::random();
        writeln!(file, "{peer}").unwrap();
        assert_eq!(allowed(&named), Ok(Listed(vec![Who::Peer(peer)])));
        assert_eq!(allowed(&peer.to_string()), Ok(Listed(vec![Who::Peer(peer)])));
    }
}
