//! What blocks would be computed with where nothing is said about it: each card is tried as a server tries it.

use anyhow::Context;

use super::{
    finding::{Finding, causes},
    machine::gib,
};
use crate::{
    cli::{environment, gpus},
    model::{Cards, CudaError, Engine, KvDType, Machine, WeightDType},
};

const TOPIC: &str = "gpu";

const PROCESSOR: &str = "blocks are computed on the processor";

/// A card that computes what the processor does.
#[derive(Debug)]
struct Card {
    name: String,
    /// Bytes of its memory.
    memory: usize,
    has_blas: bool,
}

/// The driver as a program that manages cards sees it.
#[derive(Debug)]
enum Driver {
    Missing,
    Broken(String),
    Works { version: String, cards: Vec<String> },
}

/// How each card did, of which there is one at least, or why there is none.
type Tried = Result<Vec<anyhow::Result<Card>>, CudaError>;

/// Which cards a server would compute with. Kernels are compiled if they were not before.
pub(super) async fn look() -> Finding {
    let looking = tokio::task::spawn_blocking(|| {
        let engine = Engine::new(None).context("cannot start the threads that compute")?;
        let tried: Tried =
            Machine::count_cards().map(|n_cards| (0..n_cards).map(|card| attempt(&engine, card)).collect());
        Ok(judge(&driver(), &tried))
    });
    let found: anyhow::Result<Finding> = looking.await.context("interrupted").flatten();
    found.unwrap_or_else(|error| Finding::note(TOPIC, format!("the cards were not tried: {}", causes(&error))))
}

fn driver() -> Driver {
    match gpus::nvidia() {
        Ok(Some((version, gpus))) => Driver::Works {
            version,
            cards: gpus.into_iter().map(|gpu| gpu.name).collect(),
        },
        Ok(None) => Driver::Missing,
        Err(error) => Driver::Broken(error.to_string()),
    }
}

/// Opens a card and lets it compute in the format that most models are served in.
fn attempt(engine: &Engine, card: usize) -> anyhow::Result<Card> {
    let wanted = Cards::These(vec![card]);
    let machine = Machine::with_cards(engine.clone(), &wanted, &environment::toolkit())?;
    let format = (WeightDType::Bf16.into(), KvDType::Bf16);
    let machine = machine.proven(&wanted, &[format])?;
    let card = machine.cards.first().context("no card was opened")?;
    Ok(Card {
        name: card.name().to_owned(),
        memory: card.memory()?.1,
        has_blas: card.has_blas(),
    })
}

fn judge(driver: &Driver, tried: &Tried) -> Finding {
    match tried {
        Ok(tried) => judge_cards(tried),
        Err(error) => judge_none(driver, error),
    }
}

/// There are cards, each of which did something.
fn judge_cards(tried: &[anyhow::Result<Card>]) -> Finding {
    let good: Vec<&Card> = tried.iter().flatten().collect();
    let with = |card: &&Card| format!("{} with {}", card.name, gib(card.memory as u64));
    let names: Vec<String> = good.iter().map(with).collect();
    let outcome = match names.is_empty() {
        true => PROCESSOR.to_owned(),
        false => format!("blocks are computed on {}", names.join(", ")),
    };
    let bad = tried.iter().enumerate();
    let bad: Vec<_> = bad
        .filter_map(|(card, tried)| Some((card, tried.as_ref().err()?)))
        .collect();
    if let Some((_, first)) = bad.first() {
        let why: Vec<String> = bad
            .iter()
            .map(|(card, error)| format!("card {card} cannot be used: {}", reason(error)))
            .collect();
        return Finding::problem(TOPIC, format!("{outcome}; {}", why.join("; ")), remedy(first));
    }
    match good.iter().all(|card| card.has_blas) {
        true => Finding::fine(TOPIC, format!("{outcome}; NVRTC and cuBLAS were found")),
        false => Finding::note(
            TOPIC,
            format!(
                "{outcome}; NVRTC was found, cuBLAS was not or does not work, so prompts take longer: \
                 `pip install nvidia-cublas-cu12` has it"
            ),
        ),
    }
}

/// There is no card to try; the driver may all the same have one.
fn judge_none(driver: &Driver, error: &CudaError) -> Finding {
    let error = anyhow::Error::new(error.clone());
    match driver {
        Driver::Works { version, cards } if !cards.is_empty() => Finding::problem(
            TOPIC,
            format!(
                "{PROCESSOR}; {} cannot be used with driver {version}: {}",
                cards.join(", "),
                reason(&error)
            ),
            remedy(&error),
        ),
        Driver::Works { version, .. } => Finding::note(TOPIC, format!("{PROCESSOR}; driver {version} has no card")),
        Driver::Broken(complaint) => Finding::note(
            TOPIC,
            format!("{PROCESSOR}; the NVIDIA driver does not work: {complaint}"),
        ),
        Driver::Missing => Finding::note(TOPIC, format!("{PROCESSOR}; {}", reason(&error))),
    }
}

/// What is wrong, without what to do about it.
fn reason(error: &anyhow::Error) -> String {
    match cause(error) {
        Some(CudaError::NoDriver) => "no NVIDIA driver (libcuda.so.1)".into(),
        Some(CudaError::NoCards { reason }) => format!("the NVIDIA driver finds no card ({reason})"),
        Some(CudaError::TooOld { capability, .. }) => format!(
            "its compute capability is {}.{}, and kernels are made for 7.0 and newer",
            capability / 10,
            capability % 10
        ),
        Some(CudaError::NoCompiler { names, .. }) => format!("NVRTC, which compiles kernels, was not found ({names})"),
        _ => causes(error),
    }
}

fn remedy(error: &anyhow::Error) -> String {
    let what = match cause(error) {
        Some(CudaError::NoDriver) => "install the part of the driver that computes (libcuda.so.1)".into(),
        Some(CudaError::NoCompiler { package, .. }) => {
            format!("install the CUDA toolkit, or `pip install {package} nvidia-cublas-cu12`")
        }
        Some(CudaError::TooOld { .. }) => "use a newer card".into(),
        Some(CudaError::OutOfMemory { .. }) => "end what else uses the card (nvidia-smi lists it)".into(),
        Some(CudaError::Library { library, .. }) => format!("install another version of {library}"),
        _ => "update the driver and see what nvidia-smi says".into(),
    };
    format!("{what}, or serve with --device cpu")
}

fn cause(error: &anyhow::Error) -> Option<&CudaError> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

#[cfg(test)]
mod tests {
    use super::{super::finding::Outcome, *};
    use crate::model::{LoadError, ProofError};

    fn card(has_blas: bool) -> anyhow::Result<Card> {
        Ok(Card {
            name: "Card X".into(),
            memory: 24 << 30,
            has_blas,
        })
    }

    fn no_compiler() -> CudaError {
        CudaError::NoCompiler {
            names: "libnvrtc.so.12".into(),
            package: "nvidia-cuda-nvrtc-cu12".into(),
        }
    }

    fn works(cards: &[&str]) -> Driver {
        Driver::Works {
            version: "570.1".into(),
            cards: cards.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn assert_said(finding: &Finding, outcome: Outcome, parts: &[&str]) {
        let text = finding.to_string();
        assert_eq!(finding.outcome, outcome, "{text}");
        assert_eq!(finding.remedy.is_some(), outcome == Outcome::Problem, "{text}");
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }

    #[test]
    fn cards_that_compute_are_named_with_what_was_found() {
        let finding = judge(&works(&["Card X"]), &Ok(vec![card(true)]));
        assert_said(
            &finding,
            Outcome::Fine,
            &["computed on Card X with 24.0 GiB", "NVRTC and cuBLAS were found"],
        );
        let finding = judge(&Driver::Missing, &Ok(vec![card(true), card(false)]));
        assert_said(&finding, Outcome::Note, &["cuBLAS was not", "nvidia-cublas-cu12"]);
    }

    #[test]
    fn no_driver_and_no_card_are_no_problems() {
        let none = CudaError::NoCards {
            reason: "CUDA_ERROR_NO_DEVICE".into(),
        };
        for (driver, error, part) in [
            (Driver::Missing, CudaError::NoDriver, "no NVIDIA driver"),
            (works(&[]), none.clone(), "driver 570.1 has no card"),
            (Driver::Broken("not loaded".into()), none, "not loaded"),
        ] {
            assert_said(&judge(&driver, &Err(error)), Outcome::Note, &["on the processor", part]);
        }
    }

    #[test]
    fn cards_that_cannot_be_used_are_problems_with_what_helps() {
        let there = works(&["Card X"]);
        let finding = judge(&there, &Err(CudaError::NoDriver));
        assert_said(&finding, Outcome::Problem, &["Card X cannot be used", "libcuda.so.1"]);

        let finding = judge(&there, &Ok(vec![Err(no_compiler().into())]));
        assert_said(
            &finding,
            Outcome::Problem,
            &["on the processor", "NVRTC", "pip install nvidia-cuda-nvrtc-cu12"],
        );

        let old = CudaError::TooOld {
            card: 0,
            capability: 61,
        };
        let finding = judge(&there, &Ok(vec![Err(old.into())]));
        assert_said(
            &finding,
            Outcome::Problem,
            &["capability is 6.1", "newer card", "--device cpu"],
        );

        let full = LoadError::Card(CudaError::OutOfMemory { card: 1, bytes: 7 });
        let finding = judge(&there, &Ok(vec![card(true), Err(ProofError::Load(full).into())]));
        assert_said(
            &finding,
            Outcome::Problem,
            &[
                "computed on Card X with",
                "card 1 cannot be used",
                "end what else uses the card",
            ],
        );
        let wrong = ProofError::Disagrees {
            card: 0,
            name: "Card X".into(),
            format: "bf16",
            off: 0.5,
        };
        let finding = judge(&there, &Ok(vec![Err(wrong.into())]));
        assert_said(
            &finding,
            Outcome::Problem,
            &["does not compute what the processor does", "--device cpu"],
        );
    }
}
