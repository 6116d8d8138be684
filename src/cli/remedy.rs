//! What a person can do about an error that is nobody's mistake on the command line: a sentence behind it.

use std::error::Error;

use crate::{client::ClientError, p2p::BindError, swarm::route::MissingBlocks};

const LISTEN: &str = "another program may have that port, or the address is none of this machine: choose others with --port \
                      or --listen; port 0 is any that is free";

/// A way out, where one is known.
pub(super) fn of(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(BindError::Listen { .. }) => Some(LISTEN.to_owned()),
        _ => missing(cause).map(of_missing),
    })
}

fn missing<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a MissingBlocks> {
    match error.downcast_ref() {
        Some(ClientError::MissingBlocks { missing, .. }) => Some(missing),
        _ => error.downcast_ref(),
    }
}

fn of_missing(missing: &MissingBlocks) -> String {
    let adapter = missing.adapter.as_deref();
    let flag = adapter.map_or_else(String::new, |gap| format!(" --adapters {}=FOLDER", gap.wanted));
    if let Some(gap) = adapter.filter(|_| missing.known.is_empty()) {
        let instead = match gap.there.is_empty() {
            true => "leave --adapter out",
            false => "give --adapter one that is there, or leave it out",
        };
        return format!(
            "{instead}, or serve the model with this one yourself with `sepal serve MODEL{flag} --initial-peers ADDR`"
        );
    }
    if missing.known.is_empty() {
        return format!(
            "this swarm knows no server of {}: see with `sepal health` which models it has, compare --dht-prefix, or \
             serve the model yourself with `sepal serve MODEL --initial-peers ADDR`",
            missing.prefix
        );
    }
    let first = missing.missing.first().cloned().unwrap_or_default();
    format!(
        "wait until servers of these blocks are back, or serve them yourself with `sepal serve MODEL --blocks {}:{}{flag} \
         --initial-peers ADDR`; `sepal route MODEL --why` shows what every server does",
        first.start, first.end
    )
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;
    use crate::swarm::{AdapterGap, route::KnownServer, testing::peer};

    fn nobody(known: Vec<KnownServer>) -> MissingBlocks {
        MissingBlocks {
            prefix: "demo-hf".into(),
            missing: vec![0..2, 4..8],
            known,
            adapter: None,
        }
    }

    #[test]
    fn blocks_that_nobody_serves_can_be_served_by_oneself() {
        let server = KnownServer {
            peer: peer(1),
            blocks: 2..4,
            excluded: false,
        };
        let missing = nobody(vec![server]);
        let outcome = Err::<(), _>(ClientError::MissingBlocks { missing, last: None }).context("generation failed");
        let remedy = of(&outcome.unwrap_err()).unwrap();
        assert!(
            remedy.contains("`sepal serve MODEL --blocks 0:2 --initial-peers"),
            "{remedy}"
        );
    }

    #[test]
    fn a_model_that_the_swarm_does_not_know_may_be_another_one() {
        let remedy = of(&nobody(Vec::new()).into()).unwrap();
        assert!(
            remedy.starts_with("this swarm knows no server of demo-hf: "),
            "{remedy}"
        );
        assert_eq!(of(&anyhow::anyhow!("something else")), None);
    }

    #[test]
    fn an_adapter_that_nobody_has_is_left_out_replaced_or_served_by_oneself() {
        let lacking = |there: &[&str], known| MissingBlocks {
            adapter: Some(Box::new(AdapterGap {
                wanted: "nope".into(),
                there: there.iter().map(|name| (*name).to_owned()).collect(),
            })),
            ..nobody(known)
        };
        let remedy = of(&lacking(&["everything"], Vec::new()).into()).unwrap();
        assert!(remedy.starts_with("give --adapter one that is there, "), "{remedy}");
        let served = "`sepal serve MODEL --adapters nope=FOLDER --initial-peers ADDR`";
        assert!(remedy.contains(served), "{remedy}");
        let remedy = of(&lacking(&[], Vec::new()).into()).unwrap();
        assert!(remedy.starts_with("leave --adapter out, "), "{remedy}");
        let server = KnownServer {
            peer: peer(1),
            blocks: 2..4,
            excluded: false,
        };
        let remedy = of(&lacking(&["nope"], vec![server]).into()).unwrap();
        assert!(remedy.contains("--blocks 0:2 --adapters nope=FOLDER "), "{remedy}");
    }
}
