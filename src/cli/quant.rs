//! The flag that says how weights are quantised, the same for every command that loads blocks.

use clap::{Args as ClapArgs, ValueEnum};

use crate::model::WeightFormat;

#[derive(Clone, Copy, Debug, ClapArgs)]
pub(super) struct QuantArgs {
    /// Keep weights in 8 or 4 bits, quantised as they are loaded.
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Quant::None, aliases = ["quant_type", "quant-type"])]
    quant: Quant,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Quant {
    /// As --dtype says.
    None,
    /// 8.5 bits a weight: 8 bits in blocks of 32.
    #[value(name = "int8", alias = "q8_0")]
    Q8_0,
    /// 4.5 bits: 4 bits in blocks of 32.
    #[value(name = "q4_0")]
    Q4_0,
    /// 4.6 bits: 4 bits in blocks of 32, each with a scale and a minimum.
    #[value(name = "q4_k")]
    Q4K,
    /// 4.25 bits: quantiles of a normal distribution, in blocks of 64.
    Nf4,
}

impl QuantArgs {
    /// `None` leaves weights in the type of everything else.
    pub(super) fn chosen(self) -> Option<WeightFormat> {
        match self.quant {
            Quant::None => None,
            Quant::Q8_0 => Some(WeightFormat::Q8_0),
            Quant::Q4_0 => Some(WeightFormat::Q4_0),
            Quant::Q4K => Some(WeightFormat::Q4K),
            Quant::Nf4 => Some(WeightFormat::Nf4),
        }
    }
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

    #[test]
    fn every_quantised_format_is_chosen_by_its_name_and_by_petals_flag() {
        let chosen = |flag: &str, name: &str| Command::try_parse_from(["sepal", flag, name]).unwrap().quant.chosen();
        for format in WeightFormat::ALL.into_iter().filter(|format| format.dtype().is_none()) {
            assert_eq!(chosen("--quant", format.as_str()), Some(format));
            assert_eq!(chosen("--quant_type", format.quant_type()), Some(format));
        }
        assert_eq!(chosen("--quant-type", "none"), None);
        assert!(Command::try_parse_from(["sepal", "--quant", "int4"]).is_err());
    }
}
