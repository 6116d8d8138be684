//! Texts that strangers wrote, and numbers, as a line of a terminal takes them. Pure.

/// A stranger's text without what a terminal would act on: control characters, and those that reorder a line.
pub(super) fn plain(text: &str) -> String {
    let acts = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if acts(c) { '\u{fffd}' } else { c }).collect()
}

/// A text of several lines in one.
pub(super) fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("; ")
}

/// The first `width` characters of that.
pub(super) fn cut(text: &str, width: usize) -> String {
    plain(text).chars().take(width).collect()
}

/// The last characters of a peer id: ids of one kind all begin alike.
pub(super) fn short_peer(peer_id: &str) -> String {
    let skipped = peer_id.chars().count().saturating_sub(8);
    plain(peer_id).chars().skip(skipped).collect()
}

/// A time in its two largest units.
pub(super) fn duration(seconds: f64) -> String {
    // Times of this program are not negative, and fit.
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86400, whole % 86400 / 3600),
    }
}

/// A round trip.
pub(super) fn milliseconds(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{:.0} ms", seconds * 1000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_taken_out() {
        assert_eq!(
            plain("a\u{1b}[2Jb\r\n\u{202e}c"),
            "a\u{fffd}[2Jb\u{fffd}\u{fffd}\u{fffd}c"
        );
        assert_eq!(cut("häuser", 3), "häu");
        assert_eq!(one_line("several:\n  a\r\n\n  b"), "several:; a; b");
        assert_eq!(one_line("one"), "one");
        assert_eq!(short_peer("12D3KooWQnwEGNqcM2"), "wEGNqcM2");
        assert_eq!(short_peer("x"), "x");
    }

    #[test]
    fn times_are_told_in_two_units() {
        for (seconds, text) in [
            (-1.0, "0 s"),
            (59.9, "59 s"),
            (61.0, "1 min 1 s"),
            (7325.0, "2 h 2 min"),
            (180_000.0, "2 d 2 h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(milliseconds(Some(0.0124)), "12 ms");
        assert_eq!(milliseconds(None), "-");
    }
}
