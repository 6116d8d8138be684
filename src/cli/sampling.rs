//! How tokens are chosen: the flags that all commands share which generate.

use anyhow::bail;
use clap::Args as ClapArgs;

use super::parsers::{number, whole};
use crate::model::SamplingParams;

/// How tokens are chosen. Everything not given comes from the model's generation_config.json.
#[derive(Debug, Default, ClapArgs)]
pub(super) struct SamplingArgs {
    /// 0 always takes the most likely token.
    #[arg(long, value_name = "T", value_parser = number::<f32>)]
    temperature: Option<f32>,
    /// Only the K most likely tokens; 0 for all.
    #[arg(long, value_name = "K", alias = "top_k", value_parser = whole::<usize>)]
    top_k: Option<usize>,
    /// Only the most likely tokens that together have this probability.
    #[arg(long, value_name = "P", alias = "top_p", value_parser = number::<f32>)]
    top_p: Option<f32>,
    /// More than 1 makes tokens that were there before less likely.
    #[arg(long, value_name = "R", alias = "repetition_penalty", value_parser = number::<f32>)]
    repetition_penalty: Option<f32>,
    /// Only tokens that are at least P times as probable as the most probable one.
    #[arg(long, value_name = "P", alias = "min_p", value_parser = number::<f32>)]
    min_p: Option<f32>,
    /// More than 0 makes tokens that were generated before less likely.
    #[arg(long, value_name = "R", alias = "presence_penalty", value_parser = number::<f32>)]
    presence_penalty: Option<f32>,
    /// More than 0 makes tokens less likely the more often they were generated before.
    #[arg(long, value_name = "R", alias = "frequency_penalty", value_parser = number::<f32>)]
    frequency_penalty: Option<f32>,
    /// Add to the logit of a token, such as 50256=-100; may be given several times.
    #[arg(long, value_name = "ID=BIAS", value_parser = parse_bias, alias = "logit_bias", allow_hyphen_values = true)]
    logit_bias: Vec<(u32, f32)>,
    /// Makes sampling repeatable [default: a new one each time].
    #[arg(long, value_name = "N", value_parser = whole::<u64>)]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// # Errors
    /// Names the flag that is out of range.
    pub(super) fn chosen(&self, mut params: SamplingParams) -> anyhow::Result<SamplingParams> {
        if let Some(temperature) = self.temperature {
            if !temperature.is_finite() || temperature < 0.0 {
                bail!("--temperature {temperature} must be 0 or more");
            }
            params.temperature = temperature;
        }
        if let Some(top_p) = self.top_p {
            if !(top_p > 0.0 && top_p <= 1.0) {
                bail!("--top-p {top_p} must be more than 0 and at most 1");
            }
            params.top_p = top_p;
        }
        if let Some(penalty) = self.repetition_penalty {
            if !penalty.is_finite() || penalty <= 0.0 {
                bail!("--repetition-penalty {penalty} must be more than 0");
            }
            params.repetition_penalty = penalty;
        }
        if let Some(min_p) = self.min_p {
            if !(0.0..=1.0).contains(&min_p) {
                bail!("--min-p {min_p} must be at least 0 and at most 1");
            }
            params.min_p = min_p;
        }
        params.presence_penalty = penalty("--presence-penalty", self.presence_penalty)?;
        params.frequency_penalty = penalty("--frequency-penalty", self.frequency_penalty)?;
        params.logit_bias.clone_from(&self.logit_bias);
        if let Some(top_k) = self.top_k {
            params.top_k = top_k;
        }
        params.seed = self.seed.unwrap_or_else(rand::random);
        Ok(params)
    }
}

fn penalty(flag: &str, given: Option<f32>) -> anyhow::Result<f32> {
    match given {
        Some(penalty) if !(-2.0..=2.0).contains(&penalty) => bail!("{flag} {penalty} must be from -2 to 2"),
        given => Ok(given.unwrap_or(0.0)),
    }
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let wrong = || format!("expected the id of a token and a number, such as 50256=-100, got {text:?}");
    let (id, bias) = text.split_once(['=', ':']).ok_or_else(wrong)?;
    let bias: f32 = bias.trim().parse().map_err(|_| wrong())?;
    let id = id.trim().parse().map_err(|_| wrong())?;
    if bias.is_finite() { Ok((id, bias)) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_are_an_id_and_a_number() {
        assert_eq!(parse_bias("5=-100"), Ok((5, -100.0)));
        assert_eq!(parse_bias("5: 1.5"), Ok((5, 1.5)));
        for wrong in ["", "5", "=1", "a=1", "5=x", "5=nan", "-5=1"] {
            assert!(parse_bias(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn flags_out_of_range_are_named() {
        let args = SamplingArgs {
            frequency_penalty: Some(3.0),
            ..SamplingArgs::default()
        };
        let error = args.chosen(SamplingParams::default()).unwrap_err();
        assert_eq!(error.to_string(), "--frequency-penalty 3 must be from -2 to 2");
    }
}
