//! How this program calls servers of a model: the flags that `generate`, `chat` and `api` share, and the client that they make.

use std::{path::PathBuf, sync::OnceLock};

use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};

use super::{
    model::Model,
    models::{ForModel, of},
    node::Node,
    quant::Quant,
};
use crate::{
    client::{self, Activations, Client, DraftModel, LocalOptions, PrivateEnds, Scout, Speculate},
    model::{Adapter, HubOptions, ModelSource, WeightDType},
    receipt::Keeper,
    swarm::directory::Filter,
};

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct CallerArgs {
    /// Do not let servers send activations straight to each other.
    #[arg(long)]
    no_push: bool,
    /// How activations travel: as servers compute; rounded to 16 or 8 bits, which changes what comes out a little; or rounded
    /// where the lines turn out so slow that steps get quicker by it.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    activations: ActivationsArg,
    /// Share of the steps, from 0 to 1, to compute once more on another server; one that answers wrongly is left out.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    verify: f64,
    /// Ask servers for signed receipts of what they compute, check them, and append them to this file; `sepal receipts
    /// verify FILE` checks them again.
    #[arg(long, value_name = "FILE")]
    receipts: Option<PathBuf>,
    /// One for all models.
    #[arg(skip)]
    keeper: OnceLock<Keeper>,
    /// LoRA adapter to use; only servers that have it are.
    #[arg(long, value_name = "[MODEL=]NAME", alias = "active_adapter", value_parser = ForModel::<String>::parse)]
    pub(super) adapter: Vec<ForModel<String>>,
    /// Hold the first K and the last K blocks of the model in this program and have servers run only those between: what
    /// goes to servers is farther from the text then, and what comes back is not yet the next token. It is no encryption.
    #[arg(long, value_name = "[MODEL=]K", alias = "private_ends", value_parser = ForModel::<u32>::parse)]
    pub(super) private_ends: Vec<ForModel<u32>>,
    /// Folder with the adapter's weights for these blocks [default: the repository or folder that the adapter is called].
    #[arg(
        long,
        value_name = "FOLDER",
        alias = "private_adapter",
        requires = "adapter",
        requires = "private_ends"
    )]
    private_adapter: Option<PathBuf>,
    /// How the weights of these blocks are kept; auto leaves them as the model's files have them.
    #[arg(
        long,
        value_name = "auto|none|int8|q4_0|q4_k|nf4",
        value_enum,
        default_value_t = Quant::Auto,
        hide_possible_values = true,
        hide_default_value = true,
        ignore_case = true,
        alias = "private_quant"
    )]
    private_quant: Quant,
    /// Failed servers, and pauses for missing blocks, before giving up.
    #[arg(long, value_name = "N", default_value_t = 5, alias = "max_retries")]
    max_retries: usize,
    /// Guess tokens ahead where the text repeats itself, and check them in one step: auto does it where it pays, N always
    /// guesses so many. The text is the same.
    #[arg(long, value_name = "auto|off|N", default_value = "auto", value_parser = parse_speculate)]
    speculate: Speculate,
    /// Let a small model guess tokens as well, which this program computes: one of the same family, whose tokens are the
    /// same. Named as MODEL is. The text is the same.
    #[arg(long, value_name = "[MODEL=]SMALLER", alias = "draft_model", value_parser = ForModel::<String>::parse)]
    pub(super) draft: Vec<ForModel<String>>,
    /// How the weights of the small model are kept; auto leaves them as the model's files have them.
    #[arg(
        long,
        value_name = "auto|none|int8|q4_0|q4_k|nf4",
        value_enum,
        default_value_t = Quant::Auto,
        hide_possible_values = true,
        hide_default_value = true,
        ignore_case = true,
        alias = "draft_quant"
    )]
    draft_quant: Quant,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum ActivationsArg {
    /// What each server computes in.
    #[default]
    Exact,
    /// Chosen by what the lines were measured to carry.
    Auto,
    /// 16 bits.
    Bfloat16,
    /// 8 bits, with a scale for each 4096 numbers; servers of Petals are sent 16.
    Int8,
}

impl From<ActivationsArg> for Activations {
    fn from(arg: ActivationsArg) -> Self {
        match arg {
            ActivationsArg::Exact => Self::Exact,
            ActivationsArg::Auto => Self::Auto,
            ActivationsArg::Bfloat16 => Self::Bfloat16,
            ActivationsArg::Int8 => Self::Int8,
        }
    }
}

impl CallerArgs {
    /// Joins the swarm of `node` and loads the client's part of the model.
    ///
    /// # Errors
    /// Nobody of the swarm answers, or the weights cannot be had.
    pub(super) async fn connect(&self, model: &Model, node: &Node) -> anyhow::Result<Client> {
        // What cannot be is said before anybody is called.
        let private_ends = self.ends_with_adapter(model).await?;
        let draft = self.draft(model).await?;
        let receipts = self.keeper(node)?;
        node.join().await?;
        let parts = (node.p2p.clone(), node.dht.clone());
        let config = client::Config {
            draft,
            receipts,
            ..self.config(model, private_ends)
        };
        Ok(Client::connect(config, &model.source, parts, &node.tasks).await?)
    }

    /// The same without any weights, for those who only look.
    ///
    /// # Errors
    /// Nobody of the swarm answers.
    pub(super) async fn scout(&self, model: &Model, node: &Node) -> anyhow::Result<Scout> {
        let private_ends = self.private_ends(model)?;
        node.join().await?;
        let parts = (node.p2p.clone(), node.dht.clone());
        let n_blocks = model.source.config().n_blocks;
        Ok(Scout::connect(self.config(model, private_ends), n_blocks, parts, &node.tasks).await)
    }

    /// What keeps the receipts of all models.
    ///
    /// # Errors
    /// The file cannot be opened.
    fn keeper(&self, node: &Node) -> anyhow::Result<Option<Keeper>> {
        let Some(file) = &self.receipts else { return Ok(None) };
        if let Some(keeper) = self.keeper.get() {
            return Ok(Some(keeper.clone()));
        }
        let keeper = Keeper::open(file, &node.tasks)?;
        Ok(Some(self.keeper.get_or_init(|| keeper).clone()))
    }

    fn config(&self, model: &Model, private_ends: Option<PrivateEnds>) -> client::Config {
        client::Config {
            push: !self.no_push,
            activations: self.activations.into(),
            verify: self.verify,
            backoff: client::Backoff {
                max_retries: self.max_retries,
                ..client::Backoff::default()
            },
            filter: Filter {
                adapter: of(&self.adapter, &model.name).cloned(),
                ..Filter::default()
            },
            speculate: self.speculate,
            private_ends,
            ..client::Config::new(model.prefix.clone())
        }
    }

    /// The small model that guesses, if one was given.
    ///
    /// # Errors
    /// Nothing is to be guessed. It is nowhere, has other tokens, or there is no room for it.
    async fn draft(&self, model: &Model) -> anyhow::Result<Option<DraftModel>> {
        let Some(name) = of(&self.draft, &model.name).cloned() else {
            return Ok(None);
        };
        if self.speculate == Speculate::Off {
            anyhow::bail!("--draft {name} would guess nothing with --speculate off: leave out one of the two");
        }
        let (large, quant) = (model.source.clone(), self.draft_quant);
        let hub = HubOptions {
            revision: None,
            ..model.hub.clone()
        };
        let finding = tokio::task::spawn_blocking(move || -> anyhow::Result<DraftModel> {
            let source = ModelSource::resolve(&name, &hub).with_context(|| format!("--draft {name} cannot be used"))?;
            let dtype = source.config().torch_dtype.unwrap_or(WeightDType::F32);
            let options = LocalOptions {
                quant: quant.format(dtype),
                ..LocalOptions::default()
            };
            let draft = DraftModel { source, options };
            draft.check(&large)?;
            Ok(draft)
        });
        finding.await.context("interrupted")?.map(Some)
    }

    /// The blocks that are held here, without an adapter.
    ///
    /// # Errors
    /// More than the model can spare.
    fn private_ends(&self, model: &Model) -> anyhow::Result<Option<PrivateEnds>> {
        let blocks = of(&self.private_ends, &model.name).copied().unwrap_or(0);
        if blocks == 0 {
            return Ok(None);
        }
        let dtype = model.source.config().torch_dtype.unwrap_or(WeightDType::F32);
        let options = LocalOptions {
            quant: self.private_quant.format(dtype),
            ..LocalOptions::default()
        };
        let wanted = PrivateEnds {
            blocks,
            options,
            adapter: None,
        };
        wanted.others(&model.source)?;
        Ok(Some(wanted))
    }

    /// The same with the adapter, if there is one and room for all of it.
    async fn ends_with_adapter(&self, model: &Model) -> anyhow::Result<Option<PrivateEnds>> {
        let Some(mut wanted) = self.private_ends(model)? else {
            return Ok(None);
        };
        if let Some(name) = of(&self.adapter, &model.name).cloned() {
            let place = self.private_adapter.as_ref();
            let place = place.map_or_else(|| name.clone(), |folder| format!("{name}={}", folder.display()));
            let hub = model.hub.clone();
            let opening = tokio::task::spawn_blocking(move || Adapter::open(&place, &hub));
            let adapter = opening.await.context("interrupted")?.with_context(|| {
                format!(
                    "--private-ends needs the weights of the adapter {name} here; --private-adapter says where they are"
                )
            });
            wanted.adapter = Some(adapter?);
        }
        wanted.check_room(&model.source)?;
        Ok(Some(wanted))
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a number from 0 to 1 is wanted".to_owned())
}

/// Most tokens to guess ahead at each step: more than any text repeats, and within every server's batch.
const MOST_GUESSES: usize = 64;

fn parse_speculate(text: &str) -> Result<Speculate, String> {
    match text {
        "auto" => Ok(Speculate::Auto),
        "off" => Ok(Speculate::Off),
        number => match number.parse() {
            Ok(0) => Ok(Speculate::Off),
            Ok(n @ 1..=MOST_GUESSES) => Ok(Speculate::Always(n)),
            _ => Err(format!(
                "expected auto, off, or a number of tokens up to {MOST_GUESSES}"
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_are_automatic_off_or_counted() {
        assert_eq!(parse_speculate("auto"), Ok(Speculate::Auto));
        assert_eq!(parse_speculate("off"), Ok(Speculate::Off));
        assert_eq!(parse_speculate("0"), Ok(Speculate::Off));
        assert_eq!(parse_speculate("4"), Ok(Speculate::Always(4)));
        for wrong in ["", "on", "-1", "65", "1.5"] {
            assert!(parse_speculate(wrong).is_err(), "{wrong}");
        }
    }
}
