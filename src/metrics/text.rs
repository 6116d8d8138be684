//! Families as text: the exposition format of OpenMetrics 1.0, which Prometheus reads.

use std::fmt::Write;

use super::{Distribution, Family, Kind, Point, Value};

/// What Prometheus calls the format.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Units that names may end in.
const UNITS: [&str; 2] = ["seconds", "bytes"];

/// The text of `families`, those without points left out. Families of one name are one, whoever they come from.
pub(crate) fn exposition(families: &[Family]) -> String {
    let mut text = String::new();
    for (i, family) in families.iter().enumerate() {
        let is_same = |other: &&Family| other.name == family.name;
        let is_first = !families[..i].iter().any(|other| is_same(&other));
        let points = || families[i..].iter().filter(is_same).flat_map(|same| &same.points);
        if is_first && points().next().is_some() {
            header(&mut text, family);
            points().for_each(|point| samples(&mut text, family, point));
        }
    }
    text.push_str("# EOF\n");
    text
}

fn header(text: &mut String, Family { name, help, kind, .. }: &Family) {
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    line(text, format_args!("# HELP {name} {}", escaped(help)));
    line(text, format_args!("# TYPE {name} {kind}"));
    let unit = name.rsplit('_').next().filter(|unit| UNITS.contains(unit));
    if let Some(unit) = unit {
        line(text, format_args!("# UNIT {name} {unit}"));
    }
}

fn samples(text: &mut String, Family { name, kind, .. }: &Family, Point { labels, value }: &Point) {
    match value {
        Value::Number(number) => {
            let suffix = if *kind == Kind::Counter { "_total" } else { "" };
            let labels = set(labels, None);
            line(text, format_args!("{name}{suffix}{labels} {}", shown(*number)));
        }
        Value::Distribution(Distribution { bounds, counts, sum }) => {
            let bounds = bounds.iter().copied().chain([f64::INFINITY]);
            let mut below = 0;
            for (bound, count) in bounds.zip(counts) {
                below += count;
                let labels = set(labels, Some(&shown(bound)));
                line(text, format_args!("{name}_bucket{labels} {below}"));
            }
            let labels = set(labels, None);
            line(text, format_args!("{name}_sum{labels} {}", shown(*sum)));
            line(text, format_args!("{name}_count{labels} {below}"));
        }
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{line}");
}

fn set(labels: &[(&'static str, String)], le: Option<&str>) -> String {
    let pair = |(name, value): (&str, &str)| format!("{name}=\"{}\"", escaped(value));
    let labels = labels.iter().map(|(name, value)| pair((name, value)));
    let labels: Vec<String> = labels.chain(le.map(|bound| pair(("le", bound)))).collect();
    if labels.is_empty() {
        String::new()
    } else {
        format!("{{{}}}", labels.join(","))
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn shown(number: f64) -> String {
    match number {
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        number => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn families_are_written_once_with_their_units_suffixes_and_escapes() {
        let times = Family {
            name: "sepal_wait_seconds",
            help: "Waits",
            kind: Kind::Histogram,
            points: vec![Point {
                labels: vec![("model", "a\"b\\c\nd".to_owned())],
                value: Value::Distribution(Distribution {
                    bounds: vec![0.5, 1.0],
                    counts: vec![2, 0, 1],
                    sum: 9.25,
                }),
            }],
        };
        let steps = || Family::counter("sepal_steps", "Steps \\ of\nall");
        let families = [
            steps().of(&[("model", "a")], 3_u64).of(&[("model", "a")], 4_u64),
            Family::gauge("sepal_nothing", "Not there"),
            times,
            Family::gauge("sepal_share", "A share").is(f64::INFINITY),
            steps().of(&[("model", "b")], 1e9),
        ];
        let text = exposition(&families);
        let expected = r#"# HELP sepal_steps Steps \\ of\nall
# TYPE sepal_steps counter
sepal_steps_total{model="a"} 7
sepal_steps_total{model="b"} 1000000000
# HELP sepal_wait_seconds Waits
# TYPE sepal_wait_seconds histogram
# UNIT sepal_wait_seconds seconds
sepal_wait_seconds_bucket{model="a\"b\\c\nd",le="0.5"} 2
sepal_wait_seconds_bucket{model="a\"b\\c\nd",le="1"} 2
sepal_wait_seconds_bucket{model="a\"b\\c\nd",le="+Inf"} 3
sepal_wait_seconds_sum{model="a\"b\\c\nd"} 9.25
sepal_wait_seconds_count{model="a\"b\\c\nd"} 3
# HELP sepal_share A share
# TYPE sepal_share gauge
sepal_share +Inf
# EOF
"#;
        assert_eq!(text, expected);
        testing::check(&text);
    }
}
