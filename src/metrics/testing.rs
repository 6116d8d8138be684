//! Reads an exposition by the rules of OpenMetrics, and of what this program promises of its names.

use std::collections::{BTreeMap, BTreeSet};

/// Most combinations of labels that one name may have in a test: more would be labels that strangers choose.
const MAX_SERIES: usize = 64;

/// The names of all samples of `text`, each with its labels' names.
///
/// # Panics
/// If it is none that Prometheus takes, or a name is not as names are to be.
pub(crate) fn check(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let body = text.strip_suffix("# EOF\n").expect("ends with # EOF");
    let (mut kinds, mut family) = (BTreeMap::new(), String::new());
    let (mut series, mut samples) = (BTreeSet::new(), BTreeMap::<String, BTreeSet<String>>::new());
    for line in body.lines() {
        if let Some(meta) = line.strip_prefix("# ") {
            header(meta, &mut kinds, &mut family);
            continue;
        }
        let (sample, number) = line.rsplit_once(' ').expect(line);
        let number: f64 = number.replace("+Inf", "inf").parse().expect(line);
        let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
        let labels = labels_of(labels.strip_suffix('}').expect(line), line);
        let (allowed, least): (&[&str], f64) = match kinds.get(&family).map(String::as_str) {
            Some("counter") => (&["_total"], 0.0),
            Some("histogram") => (&["_bucket", "_sum", "_count"], 0.0),
            Some("gauge") => (&[""], f64::NEG_INFINITY),
            kind => panic!("{line} is a {kind:?}"),
        };
        let suffix = name.strip_prefix(family.as_str()).expect(line);
        assert!(allowed.contains(&suffix) && number >= least, "{line}");
        let has_bound = labels.iter().any(|(name, _)| name == "le");
        assert_eq!(suffix == "_bucket", has_bound, "{line}");
        assert!(
            series.insert((name.to_owned(), labels.clone())),
            "{line} is there twice"
        );
        let names = labels.into_iter().map(|(name, _)| name);
        samples.entry(name.to_owned()).or_default().extend(names);
    }
    for name in samples.keys() {
        let n = series.iter().filter(|(other, _)| other == name).count();
        assert!(n <= MAX_SERIES, "{name} has {n} series");
    }
    samples
}

/// A line about the family that follows, the first of which begins it.
fn header(meta: &str, kinds: &mut BTreeMap<String, String>, family: &mut String) {
    let (word, rest) = meta.split_once(' ').expect(meta);
    let (name, said) = rest.split_once(' ').expect(meta);
    let is_ours = name.starts_with("sepal_") || name.starts_with("process_");
    assert!(is_name(name) && is_ours && !name.ends_with("_total"), "{meta}");
    match word {
        "HELP" => {
            assert!(!kinds.contains_key(name), "{name} is there twice");
            assert!(!said.ends_with('.') && !said.trim().is_empty(), "{meta}");
            name.clone_into(family);
        }
        "TYPE" => assert_eq!(kinds.insert(name.to_owned(), said.to_owned()), None, "{meta}"),
        "UNIT" => assert!(name.ends_with(&format!("_{said}")), "{meta}"),
        _ => panic!("{meta}"),
    }
    assert_eq!(family, name, "{meta} stands elsewhere");
}

fn is_name(name: &str) -> bool {
    let is_fit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.chars().all(is_fit) && name.starts_with(|c: char| c.is_ascii_lowercase()) && !name.contains("__")
}

fn labels_of(mut text: &str, line: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"").expect(line);
        assert!(is_name(name), "{line}");
        let (mut value, mut escaped, mut end) = (String::new(), false, None);
        for (at, c) in rest.char_indices() {
            match c {
                '"' if !escaped => {
                    end = Some(at);
                    break;
                }
                '\\' if !escaped => escaped = true,
                c => {
                    assert!(!escaped || ['\\', '"', 'n'].contains(&c), "{line}");
                    value.push(c);
                    escaped = false;
                }
            }
        }
        labels.push((name.to_owned(), value));
        text = &rest[end.expect(line) + 1..];
        text = text.strip_prefix(',').unwrap_or(text);
    }
    labels
}
