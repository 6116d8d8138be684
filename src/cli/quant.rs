//! The flag that says how weights are quantised, the same for every command that loads blocks.

use clap::{Args as ClapArgs, ValueEnum};

use super::models::{ForModel, of, stray};
use crate::model::{WeightDType, WeightFormat};

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct QuantArgs {
    /// Keep weights in 8 or 4 bits, quantised as they are loaded: int8 or q8_0 (8.5 bits a weight in blocks of 32), q4_0 (4.5 bits in
    /// blocks of 32), q4_k (4.6 bits in blocks of 32, each with a scale and a minimum), nf4 (4.25 bits in blocks of 64,
    /// quantiles of a normal distribution). none keeps them as precise as other numbers; auto does too, but leaves in blocks
    /// what the model's files have so, such as GGUF files [default: auto].
    #[arg(
        long,
        value_name = "[MODEL=]auto|none|int8|q4_0|q4_k|nf4",
        value_parser = parse,
        aliases = ["quant_type", "quant-type"]
    )]
    quant: Vec<ForModel<Quant>>,
}

/// What weights are kept as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Quant {
    Auto,
    None,
    #[value(name = "int8", alias = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
    #[value(name = "q4_k")]
    Q4K,
    Nf4,
}

impl QuantArgs {
    /// What is said about `model`, whose other numbers are `dtype`; `None` leaves weights as they are stored.
    pub(super) fn chosen(&self, model: &str, dtype: WeightDType) -> Option<WeightFormat> {
        of(&self.quant, model)?.format(dtype)
    }

    /// The first name that is none of `models`.
    pub(super) fn stray(&self, models: &[String]) -> Option<&str> {
        stray(&self.quant, models)
    }
}

impl Quant {
    /// The format, where other numbers are `dtype`; `None` leaves weights as they are stored.
    pub(super) fn format(self, dtype: WeightDType) -> Option<WeightFormat> {
        match self {
            Self::Auto => None,
            Self::None => Some(dtype.into()),
            Self::Q8_0 => Some(WeightFormat::Q8_0),
            Self::Q4_0 => Some(WeightFormat::Q4_0),
            Self::Q4K => Some(WeightFormat::Q4K),
            Self::Nf4 => Some(WeightFormat::Nf4),
        }
    }
}

fn parse(text: &str) -> Result<ForModel<Quant>, String> {
    ForModel::parse_with(text, |value| {
        Quant::from_str(value, true)
            .map_err(|_| format!("expected auto, none, int8 (or q8_0), q4_0, q4_k or nf4, got {value:?}"))
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        quant: QuantArgs,
    }

    fn chosen(flags: &[&str], model: &str) -> Option<WeightFormat> {
        let command = Command::try_parse_from([&["sepal"], flags].concat()).unwrap();
        command.quant.chosen(model, WeightDType::F16)
    }

    #[test]
    fn every_quantised_format_is_chosen_by_its_name_and_by_petals_flag() {
        for format in WeightFormat::ALL.into_iter().filter(|format| format.dtype().is_none()) {
            assert_eq!(chosen(&["--quant", format.as_str()], "a"), Some(format));
            assert_eq!(chosen(&["--quant_type", format.quant_type()], "a"), Some(format));
        }
        assert_eq!(chosen(&["--quant-type", "none"], "a"), Some(WeightFormat::F16));
        assert_eq!(chosen(&["--quant", "auto"], "a"), None);
        assert_eq!(chosen(&[], "a"), None);
        assert!(Command::try_parse_from(["sepal", "--quant", "int4"]).is_err());
    }

    #[test]
    fn models_of_one_node_have_formats_of_their_own() {
        let flags = ["--quant", "nf4", "--quant", "org/b=int8"];
        assert_eq!(chosen(&flags, "org/a"), Some(WeightFormat::Nf4));
        assert_eq!(chosen(&flags, "org/b"), Some(WeightFormat::Q8_0));
    }
}
