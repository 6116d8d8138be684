//! What a command computes with: processor or cards, and how much of the processor. Which instructions are used is up to it.

use std::{error::Error, num::NonZeroUsize};

use anyhow::{Context, bail};
use clap::Args;
use tracing::{debug, error, info, warn};

use super::environment;
use crate::model::{Cards, CudaError, Engine, KvDType, Machine, Precision};

/// How much of the machine to compute with.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct ComputeArgs {
    /// Threads that compute [default: one per physical core].
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    threads: Option<NonZeroUsize>,
}

/// Where blocks are.
#[derive(Clone, Debug, Args)]
pub(super) struct DeviceArgs {
    /// What blocks are computed with. auto and cuda take all NVIDIA cards that can be used; cuda:0,2 takes these or none.
    /// Where no cards can be used, it says why, and the processor does it.
    #[arg(long, value_name = "auto|cpu|cuda[:N,…]", default_value = "auto", value_parser = parse_device)]
    device: Device,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Device {
    Auto,
    Cpu,
    Cuda(Cards),
}

fn parse_threads(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "expected how many, from 1".to_owned())
}

impl ComputeArgs {
    /// # Errors
    /// When the system gives no threads.
    pub(super) fn start(self) -> anyhow::Result<Engine> {
        let engine = Engine::new(self.threads).context("cannot start the threads that compute")?;
        info!(
            threads = engine.threads(),
            instructions = engine.instructions(),
            "what blocks are computed with"
        );
        Ok(engine)
    }
}

impl DeviceArgs {
    /// The machine with its cards, if they are wanted and compute what the processor does in all of these formats; without
    /// them otherwise, and it is said why. Where all cards are wanted, those that can be used are enough.
    ///
    /// # Errors
    /// A card that there is not.
    pub(super) fn machine(&self, engine: &Engine, formats: &[(Precision, KvDType)]) -> anyhow::Result<Machine> {
        let wanted = match &self.device {
            Device::Cpu => return Ok(engine.into()),
            Device::Auto => &Cards::All,
            Device::Cuda(cards) => cards,
        };
        let machine = match Machine::with_cards(engine.clone(), wanted, &environment::toolkit()) {
            Ok(machine) => machine,
            Err(error @ CudaError::NoSuchCard { .. }) => bail!(error),
            Err(error @ CudaError::NoDriver) if self.device == Device::Auto => {
                debug!(%error, "no cards");
                return Ok(engine.into());
            }
            Err(error) => return Ok(self.without_cards(engine, &error)),
        };
        Ok(machine
            .proven(wanted, formats)
            .unwrap_or_else(|error| self.without_cards(engine, &error)))
    }

    /// Says why the processor computes: loudly to whoever asked for cards.
    fn without_cards(&self, engine: &Engine, error: &(dyn Error + 'static)) -> Machine {
        match &self.device {
            Device::Cuda(_) => error!(error, "the processor computes, because cards cannot be used"),
            Device::Auto | Device::Cpu => warn!(error, "the processor computes, because cards cannot be used"),
        }
        engine.into()
    }
}

fn parse_device(text: &str) -> Result<Device, String> {
    let (kind, numbers) = text
        .split_once(':')
        .map_or((text, None), |(kind, numbers)| (kind, Some(numbers)));
    let wrong = || format!("expected auto, cpu, cuda or cuda with numbers of cards such as cuda:0,1, got {text:?}");
    match (kind, numbers) {
        ("auto", None) => Ok(Device::Auto),
        ("cpu", None) => Ok(Device::Cpu),
        ("cuda", None) => Ok(Device::Cuda(Cards::All)),
        ("cuda", Some(numbers)) => {
            let mut cards = Vec::new();
            for number in numbers.split(',') {
                let card = number.trim().parse().map_err(|_| wrong())?;
                if cards.contains(&card) {
                    return Err(format!("card {card} is there twice"));
                }
                cards.push(card);
            }
            Ok(Device::Cuda(Cards::These(cards)))
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_the_processor_all_cards_or_some() {
        assert_eq!(parse_device("auto"), Ok(Device::Auto));
        assert_eq!(parse_device("cpu"), Ok(Device::Cpu));
        assert_eq!(parse_device("cuda"), Ok(Device::Cuda(Cards::All)));
        assert_eq!(parse_device("cuda:1, 0"), Ok(Device::Cuda(Cards::These(vec![1, 0]))));
        assert!(parse_device("cuda:1,1").unwrap_err().contains("twice"));
        for wrong in ["cuda:", "cuda:x", "gpu", "cpu:0", ""] {
            assert!(parse_device(wrong).unwrap_err().contains("cuda:0,1"), "{wrong}");
        }
    }
}
