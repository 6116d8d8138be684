//! What the flags of a server may be given, and what that means to the layers below.

use std::{ops::Range, time::Duration};

use clap::ValueEnum;

use crate::{
    cli::models::ForModel,
    model::{KvDType, WeightDType},
    server::Throughput,
    swarm::hygiene::MAX_TOKENS_PER_SECOND,
};

/// What `--throughput` says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Speed {
    Announce(Throughput),
    DryRun,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Dtype {
    Auto,
    Float32,
    Bfloat16,
    Float16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum CacheDtype {
    Auto,
    Float32,
    Bfloat16,
    Float16,
    Int8,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Compression {
    None,
    #[value(name = "meanstd_16bit", alias = "meanstd-16bit")]
    MeanStd16Bit,
    Float16,
    #[value(name = "quantile_8bit", alias = "quantile-8bit")]
    Quantile8Bit,
    #[value(name = "uniform_8bit", alias = "uniform-8bit")]
    Uniform8Bit,
    #[value(name = "blockwise_8bit", alias = "blockwise-8bit")]
    Blockwise8Bit,
}

impl Dtype {
    pub(super) fn chosen(self) -> Option<WeightDType> {
        match self {
            Self::Auto => None,
            Self::Float32 => Some(WeightDType::F32),
            Self::Bfloat16 => Some(WeightDType::Bf16),
            Self::Float16 => Some(WeightDType::F16),
        }
    }
}

impl CacheDtype {
    pub(super) fn chosen(self) -> Option<KvDType> {
        match self {
            Self::Auto => None,
            Self::Float32 => Some(KvDType::F32),
            Self::Bfloat16 => Some(KvDType::Bf16),
            Self::Float16 => Some(KvDType::F16),
            Self::Int8 => Some(KvDType::Int8),
        }
    }
}

impl Compression {
    pub(super) fn chosen(self) -> sepal_protocol::compress::Compression {
        use sepal_protocol::compress::Compression as Wire;
        match self {
            Self::None => Wire::None,
            Self::MeanStd16Bit => Wire::MeanStd16,
            Self::Float16 => Wire::Float16,
            Self::Quantile8Bit => Wire::Quantile8,
            Self::Uniform8Bit => Wire::Uniform8,
            Self::Blockwise8Bit => Wire::Blockwise8,
        }
    }
}

fn parse_range(text: &str) -> Result<Range<u32>, String> {
    let wrong = || format!("expected FIRST:END such as 0:16, got {text:?}");
    let (start, end) = text.split_once(':').ok_or_else(wrong)?;
    let range = start.trim().parse().map_err(|_| wrong())?..end.trim().parse().map_err(|_| wrong())?;
    if range.is_empty() {
        Err(format!("{text:?} contains no blocks"))
    } else {
        Ok(range)
    }
}

fn parse_speed(text: &str) -> Result<Speed, String> {
    match text {
        "auto" => return Ok(Speed::Announce(Throughput::Auto)),
        "eval" => return Ok(Speed::Announce(Throughput::Eval)),
        "dry_run" | "dry-run" => return Ok(Speed::DryRun),
        _ => {}
    }
    match text.parse::<f64>() {
        Ok(value) if value > MAX_TOKENS_PER_SECOND && value.is_finite() => Err(format!(
            "nobody believes more than {MAX_TOKENS_PER_SECOND:e} tokens per second, got {text:?}"
        )),
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(Speed::Announce(Throughput::Fixed(value))),
        _ => Err(format!(
            "expected auto, eval, dry_run or a number of tokens per second, got {text:?}"
        )),
    }
}

fn parse_count(text: &str) -> Result<u32, String> {
    let count = text.parse().ok().filter(|count| *count > 0);
    count.ok_or_else(|| format!("expected a positive number of blocks, got {text:?}"))
}

pub(super) fn blocks_of(text: &str) -> Result<ForModel<Range<u32>>, String> {
    ForModel::parse_with(text, parse_range)
}

pub(super) fn count_of(text: &str) -> Result<ForModel<u32>, String> {
    ForModel::parse_with(text, parse_count)
}

pub(super) fn throughput_of(text: &str) -> Result<ForModel<Speed>, String> {
    ForModel::parse_with(text, parse_speed)
}

pub(super) fn dtype_of(text: &str) -> Result<ForModel<Dtype>, String> {
    ForModel::parse_with(text, parse_variant)
}

pub(super) fn kv_dtype_of(text: &str) -> Result<ForModel<CacheDtype>, String> {
    ForModel::parse_with(text, parse_variant)
}

pub(super) fn tokens_of(text: &str) -> Result<ForModel<usize>, String> {
    ForModel::parse_with(text, parse_positive)
}

fn parse_variant<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, true).map_err(|_| {
        let variants = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let names: Vec<String> = variants.map(|value| value.get_name().to_owned()).collect();
        format!("expected one of {}, got {text:?}", names.join(", "))
    })
}

pub(in crate::cli) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("expected a positive number of seconds, got {text:?}");
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    if seconds <= 0.0 {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

pub(super) fn parse_positive(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|value| *value > 0)
        .ok_or_else(|| format!("expected a positive number, got {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_seconds_say_what_was_expected() {
        assert_eq!(parse_range("0:16"), Ok(0..16));
        assert_eq!(
            parse_range("16").unwrap_err(),
            "expected FIRST:END such as 0:16, got \"16\""
        );
        assert_eq!(parse_range("3:3").unwrap_err(), "\"3:3\" contains no blocks");
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "-1", "inf", "nan", "soon"] {
            assert!(parse_seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_throughput_that_clients_do_not_believe_is_refused() {
        let most = Speed::Announce(Throughput::Fixed(MAX_TOKENS_PER_SECOND));
        assert_eq!(parse_speed("1e9"), Ok(most));
        assert_eq!(
            parse_speed("1e300").unwrap_err(),
            "nobody believes more than 1e9 tokens per second, got \"1e300\""
        );
        for wrong in ["-1", "inf", "nan", "fast"] {
            let error = parse_speed(wrong).unwrap_err();
            assert!(
                error.starts_with("expected auto, eval, dry_run or a number "),
                "{error}"
            );
        }
    }
}
