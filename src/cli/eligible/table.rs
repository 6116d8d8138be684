//! Models as lines for people.

use std::time::Duration;

use super::row::{Place, Row};
use crate::{cli::info::Measured, model::ByteSize};

/// What is known of the machine: where blocks would be, and how fast.
pub(super) fn place(place: &Place, is_card: bool, measured: Option<Measured>) -> Vec<String> {
    let room: Vec<String> = place.room.iter().map(|bytes| ByteSize(*bytes).to_string()).collect();
    let whose = match is_card {
        true => "of the cards' memory, where blocks would be",
        false => "of memory; limits of control groups and a reserve are taken off",
    };
    let speed = match (measured, is_card) {
        (_, true) => "not known of cards".to_owned(),
        (Some(measured), false) => format!(
            "reads {:.1} GB/s, measured {} ago",
            measured.limits.read_bytes_per_second / 1e9,
            ago(measured.age)
        ),
        (None, false) => "not measured: sepal info --save does it".to_owned(),
    };
    vec![
        format!("room   {} {whose}", room.join(" + ")),
        format!("speed  {speed}"),
    ]
}

/// The table; its first line is the head.
pub(super) fn rows(rows: &[Row]) -> Vec<String> {
    let width = rows.iter().map(|row| row.model.len()).max().unwrap_or(0).max(5);
    let Some(first) = rows.first() else {
        return Vec::new();
    };
    // As published may be bfloat16 in one model and float16 in another.
    let names: Vec<&str> = first
        .formats
        .iter()
        .map(|held| held.flag.as_ref().map_or("16 bit", |_| held.format))
        .collect();
    let columns = |cells: &mut dyn Iterator<Item = String>, width: usize| -> String {
        cells.map(|cell| format!("{cell:>width$}")).collect()
    };
    let n = names.len();
    let heads = |width| columns(&mut names.iter().map(ToString::to_string), width);
    let title = format!(
        "{:<width$} {:>6} {:>6} {:^sizes$} {:^fits$}",
        "",
        "",
        "",
        "GiB a block",
        "blocks that fit",
        sizes = 8 * n,
        fits = 8 * n
    );
    let head = format!(
        "{:<width$} {:>6} {:>6} {} {} {:>8}  adds to a swarm",
        "model",
        "blocks",
        "width",
        heads(8),
        heads(8),
        "tokens/s"
    );
    let line = |row: &Row| {
        let sizes = row
            .formats
            .iter()
            .map(|held| format!("{:.3}", held.block_bytes as f64 / (1_u64 << 30) as f64));
        let fits = row.formats.iter().map(|held| held.fit.to_string());
        let speed = row
            .best()
            .tokens_per_second
            .map_or(String::new(), |speed| format!("{speed:.1}"));
        format!(
            "{:<width$} {:>6} {:>6} {} {} {speed:>8}  {}",
            row.model,
            row.blocks,
            row.hidden_size,
            columns(&mut { sizes }, 8),
            columns(&mut { fits }, 8),
            row.adds()
        )
    };
    let title = title.trim_end().to_owned();
    [title, head].into_iter().chain(rows.iter().map(line)).collect()
}

fn ago(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::known_models;

    #[test]
    fn every_model_has_a_line_and_columns_stand_below_each_other() {
        let place = Place {
            room: vec![16 << 30],
            read_rate: None,
        };
        let known = known_models().unwrap();
        let rows: Vec<Row> = known
            .iter()
            .map(|m| Row::new(&m.name, &m.config, &place, None))
            .collect();
        let lines = super::rows(&rows);
        assert_eq!(lines.len(), known.len() + 2);
        let at = lines[1].find("adds to a swarm").unwrap();
        for line in &lines[2..] {
            assert!(line.len() > at && line.as_bytes()[at - 1] == b' ', "{line}");
        }
    }

    #[test]
    fn ages_are_told_in_the_unit_that_fits() {
        let told = |seconds| ago(Duration::from_secs(seconds));
        assert_eq!(
            [told(5), told(180), told(7200), told(864_000)],
            ["5 s", "3 min", "2 h", "10 days"]
        );
    }
}
