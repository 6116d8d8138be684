//! Names of blocks: `<prefix>.<index>`, and chains of them joined by one space.

use std::{fmt, ops::Range, str::FromStr};

use crate::error::WireError;

/// The name of one block of a model: its key in the DHT, and what calls ask for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BlockUid {
    prefix: String,
    block: u32,
}

const WHAT: &str = "block uid";
const SEPARATOR: char = '.';
const CHAIN_SEPARATOR: char = ' ';

impl BlockUid {
    /// The block with this index of the model with this prefix.
    ///
    /// # Errors
    /// [`WireError::Malformed`] if the prefix is empty or has a dot or a space in it, which Petals forbids.
    pub fn new(prefix: &str, block: u32) -> Result<Self, WireError> {
        if prefix.is_empty() || prefix.contains([SEPARATOR, CHAIN_SEPARATOR]) {
            return Err(malformed("the prefix is empty or has a dot or a space in it"));
        }
        Ok(Self {
            prefix: prefix.to_string(),
            block,
        })
    }

    /// Prefix of the model.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Index of the block in the model.
    pub fn block(&self) -> u32 {
        self.block
    }

    /// Reads the `uid` of a request: one or more uids in execution order.
    ///
    /// Blocks need not be in order, contiguous or distinct: Python serves any sequence of blocks it has.
    ///
    /// # Errors
    /// [`WireError::Malformed`] if one of them is not a uid. An empty text is one empty uid.
    pub fn parse_chain(text: &str) -> Result<Vec<Self>, WireError> {
        text.split(CHAIN_SEPARATOR).map(str::parse).collect()
    }

    /// The `uid` of a request for contiguous blocks of a model.
    pub fn format_chain(prefix: &str, blocks: Range<u32>) -> String {
        let uids: Vec<String> = blocks.map(|block| format!("{prefix}{SEPARATOR}{block}")).collect();
        uids.join(" ")
    }
}

impl FromStr for BlockUid {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Self, WireError> {
        let (prefix, digits) = text.split_once(SEPARATOR).ok_or(malformed("there is no dot in it"))?;
        // Uids are compared as text, so that `P.03` or `P.+3` names nothing.
        let is_canonical = digits == "0" || digits.starts_with(|first: char| ('1'..='9').contains(&first));
        match digits.parse() {
            Ok(block) if is_canonical => Self::new(prefix, block),
            _ => Err(malformed("the index is not a plain decimal number")),
        }
    }
}

impl fmt::Display for BlockUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{SEPARATOR}{}", self.prefix, self.block)
    }
}

fn malformed(problem: &'static str) -> WireError {
    WireError::Malformed { what: WHAT, problem }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::testing;

    #[test]
    fn chains_of_recorded_requests_are_read_and_written_back_the_same() {
        let mut foreign = BTreeSet::new();
        let mut n_chains = 0;
        for (_, event) in testing::recorded_events() {
            let Some(text) = event["decoded"]["uid"].as_str() else {
                continue;
            };
            match BlockUid::parse_chain(text) {
                Ok(chain) => {
                    n_chains += 1;
                    let again: Vec<String> = chain.iter().map(ToString::to_string).collect();
                    assert_eq!(again.join(" "), text);
                }
                Err(_) => drop(foreign.insert(text.to_string())),
            }
        }
        assert!(n_chains > 100);
        // The only others are empty uids: the health monitor's question and the end of a session.
        assert_eq!(foreign, BTreeSet::from([String::new()]));
    }

    #[test]
    fn a_chain_of_contiguous_blocks_is_spelled_out() {
        assert_eq!(BlockUid::format_chain("P", 3..6), "P.3 P.4 P.5");
        let chain = BlockUid::parse_chain("P.3 P.4 P.5").unwrap();
        assert_eq!(chain[2], BlockUid::new("P", 5).unwrap());
        assert_eq!((chain[0].prefix(), chain[0].block()), ("P", 3));
    }

    #[test]
    fn what_is_not_a_uid_is_refused() {
        for text in [
            "",
            ".",
            "P",
            "P.",
            ".3",
            "P.03",
            "P.+3",
            "P.-1",
            "P.3.4",
            "P Q.3",
            "P.4294967296",
            "P.3 ",
            "P.x",
        ] {
            assert!(BlockUid::parse_chain(text).is_err(), "{text:?}");
        }
        assert!(BlockUid::new("a.b", 0).is_err());
        assert!(BlockUid::new("a b", 0).is_err());
    }

    proptest! {
        #[test]
        fn uids_survive_the_wire(prefix in "[A-Za-z0-9/_-]{1,20}", block: u32) {
            let uid = BlockUid::new(&prefix, block).unwrap();
            prop_assert_eq!(uid.to_string().parse::<BlockUid>().unwrap(), uid);
        }
    }
}
