//! How this program calls servers of a model: the flags that `generate`, `chat` and `api` share, and the client that they make.

use clap::{Args as ClapArgs, ValueEnum};

use super::{
    model::Model,
    models::{ForModel, of},
    node::Node,
};
use crate::{
    client::{self, Activations, Client, Scout, Speculate},
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
    /// LoRA adapter to use; only servers that have it are.
    #[arg(long, value_name = "[MODEL=]NAME", alias = "active_adapter", value_parser = ForModel::<String>::parse)]
    pub(super) adapter: Vec<ForModel<String>>,
    /// Failed servers, and pauses for missing blocks, before giving up.
    #[arg(long, value_name = "N", default_value_t = 5, alias = "max_retries")]
    max_retries: usize,
    /// Guess tokens ahead where the text repeats itself, and check them in one step: auto does it where it pays, N always
    /// guesses so many. The text is the same.
    #[arg(long, value_name = "auto|off|N", default_value = "auto", value_parser = parse_speculate)]
    speculate: Speculate,
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
        node.join().await?;
        let parts = (node.p2p.clone(), node.dht.clone());
        Ok(Client::connect(self.config(model), &model.source, parts, &node.tasks).await?)
    }

    /// The same without any weights, for those who only look.
    ///
    /// # Errors
    /// Nobody of the swarm answers.
    pub(super) async fn scout(&self, model: &Model, node: &Node) -> anyhow::Result<Scout> {
        node.join().await?;
        let parts = (node.p2p.clone(), node.dht.clone());
        let n_blocks = model.source.config().n_blocks;
        Ok(Scout::connect(self.config(model), n_blocks, parts, &node.tasks).await)
    }

    fn config(&self, model: &Model) -> client::Config {
        client::Config {
            push: !self.no_push,
            activations: self.activations.into(),
            backoff: client::Backoff {
                max_retries: self.max_retries,
                ..client::Backoff::default()
            },
            filter: Filter {
                adapter: of(&self.adapter, &model.name).cloned(),
                ..Filter::default()
            },
            speculate: self.speculate,
            ..client::Config::new(model.prefix.clone())
        }
    }
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
