//! What this machine could hold of one model, and what that is worth. Pure: sizes come from the code that loads, counts and
//! plans for servers (`model/layout.rs`, `server/holding.rs`).

use serde::Serialize;

use super::swarm::InSwarm;
use crate::{
    model::{KvDType, ModelConfig, Precision, WeightFormat},
    server,
};

/// Formats to look at by default, besides the one that the model is published in, the most precise first.
const SMALLER: [WeightFormat; 2] = [WeightFormat::Q8_0, WeightFormat::Q4_0];

/// What blocks would be held in.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Bytes that can be planned with: of the memory, or of each card.
    pub(super) room: Vec<u64>,
    /// Bytes of weights that are read in a second, if that was measured.
    pub(super) read_rate: Option<f64>,
}

/// One model.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) model: String,
    pub(super) blocks: u32,
    pub(super) hidden_size: usize,
    pub(super) parameters: u64,
    /// In each format that was looked at, the most precise first.
    pub(super) formats: Vec<Held>,
    /// Which of them serves the swarm best: the most precise one that holds the whole model, or else the one that holds most.
    pub(super) best: usize,
    /// What a swarm lacks of it, if one was asked.
    pub(super) swarm: Option<InSwarm>,
}

/// A model in one format. Sizes are bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Held {
    pub(super) format: &'static str,
    /// What `sepal serve` is told; nothing for what it does anyway.
    pub(super) flag: Option<String>,
    pub(super) block_bytes: u64,
    pub(super) cache_bytes: u64,
    /// Blocks that fit here.
    pub(super) fit: u32,
    /// Of the whole model.
    pub(super) share: f64,
    /// Tokens of one session that go through these blocks at most, since each reads all weights that it needs.
    pub(super) tokens_per_second: Option<f64>,
}

impl Row {
    /// Looks at `config` in the format of the checkpoint and in smaller ones; or with `chosen` as the best.
    pub(super) fn new(model: &str, config: &ModelConfig, place: &Place, chosen: Option<WeightFormat>) -> Self {
        let published = config.auto_dtype().into();
        let mut formats = vec![published];
        formats.extend(SMALLER);
        if let Some(chosen) = chosen.filter(|chosen| !formats.contains(chosen)) {
            formats.push(chosen);
        }
        // In the order of precision.
        formats.sort_by_key(|format| WeightFormat::ALL.iter().position(|other| other == format));
        let held: Vec<Held> = formats.iter().map(|format| hold(config, *format, place)).collect();
        let whole = held.iter().position(|held| held.fit == config.n_blocks);
        let most = (0..held.len()).max_by_key(|i| (held[*i].fit, std::cmp::Reverse(*i)));
        let given = formats.iter().position(|format| Some(*format) == chosen);
        Self {
            model: model.to_owned(),
            blocks: config.n_blocks,
            hidden_size: config.hidden_size,
            parameters: config.n_parameters(),
            best: given.or(whole).or(most).unwrap_or(0),
            formats: held,
            swarm: None,
        }
    }

    /// In the best format.
    pub(super) fn best(&self) -> &Held {
        &self.formats[self.best]
    }

    /// What a swarm gains by this machine, and how it is told to.
    pub(super) fn adds(&self) -> String {
        let best = self.best();
        let with = best.flag.as_ref().map_or(String::new(), |flag| format!(", {flag}"));
        if best.fit == 0 {
            return "nothing: not one block fits".to_owned();
        }
        if let Some(swarm) = &self.swarm {
            return format!("{}{with}", swarm.adds());
        }
        if best.fit == self.blocks {
            return format!("a whole copy{with}");
        }
        let machines = self.blocks.div_ceil(best.fit);
        format!("{} of {} blocks, 1/{machines}{with}", best.fit, self.blocks)
    }
}

fn hold(config: &ModelConfig, weights: WeightFormat, place: &Place) -> Held {
    let dtype = config.auto_dtype();
    let fit = server::fit(
        config,
        (Precision { weights, dtype }, KvDType::from(dtype)),
        &place.room,
    );
    let read = config.bytes_read_per_token(weights) as f64 * f64::from(fit.n_blocks);
    let is_published = weights == WeightFormat::from(dtype);
    Held {
        format: weights.as_str(),
        flag: (!is_published).then(|| match weights.dtype() {
            Some(dtype) => format!("--dtype {}", dtype.as_torch_str()),
            None => format!("--quant {}", weights.as_str()),
        }),
        block_bytes: fit.block_bytes,
        cache_bytes: fit.cache_bytes,
        fit: fit.n_blocks,
        share: f64::from(fit.n_blocks) / f64::from(config.n_blocks),
        tokens_per_second: place.read_rate.filter(|_| fit.n_blocks > 0).map(|rate| rate / read),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::KnownModel;

    const GIB: u64 = 1 << 30;

    fn row(name: &str, gib: u64, chosen: Option<WeightFormat>) -> Row {
        let known = KnownModel::find(name).unwrap().unwrap();
        let place = Place {
            room: vec![gib * GIB],
            read_rate: Some(20e9),
        };
        Row::new(&known.name, &known.config, &place, chosen)
    }

    #[test]
    fn the_most_precise_format_that_holds_the_whole_model_is_best() {
        assert_eq!(row("Llama-3.1-8B", 64, None).adds(), "a whole copy");
        assert_eq!(row("Llama-3.1-8B", 12, None).adds(), "a whole copy, --quant q8_0");
        assert_eq!(row("Llama-3.1-8B", 8, None).adds(), "a whole copy, --quant q4_0");
    }

    #[test]
    fn of_a_model_that_does_not_fit_the_format_with_most_blocks_is_best() {
        let row = row("Llama-3.1-70B", 16, None);
        let fits: Vec<u32> = row.formats.iter().map(|held| held.fit).collect();
        assert!(fits.is_sorted() && fits[2] < 80, "{fits:?}");
        assert_eq!(row.best().fit, fits[2]);
        let machines = 80_u32.div_ceil(fits[2]);
        assert_eq!(
            row.adds(),
            format!("{} of 80 blocks, 1/{machines}, --quant q4_0", fits[2])
        );
        assert_eq!(
            super::tests::row("Llama-3.1-405B", 1, None).adds(),
            "nothing: not one block fits"
        );
    }

    #[test]
    fn a_chosen_format_is_best_whatever_fits() {
        let row = row("Llama-3.1-8B", 64, Some(WeightFormat::Q4K));
        assert_eq!(row.adds(), "a whole copy, --quant q4_k");
        assert_eq!(row.formats.len(), 4);
    }

    #[test]
    fn tokens_per_second_are_what_the_memory_reads_through_the_span() {
        let row = row("Llama-3.1-8B", 64, None);
        // 6.98 thousand million weights in blocks, 2 bytes each.
        let expected = 20e9 / (32.0 * row.formats[0].block_bytes as f64);
        let found = row.best().tokens_per_second.unwrap();
        assert!(
            (found / expected - 1.0).abs() < 1e-9 && (1.4..1.5).contains(&found),
            "{found}"
        );
    }
}
