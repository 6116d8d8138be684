//! How this node is reached: gathers evidence for `reachability.rs` and does what follows from it.

use std::time::Instant;

use tracing::info;

use super::{
    super::reachability::{Effect, Evidence, Source, Verdict},
    Actor,
};

impl Actor {
    pub(super) fn on_check(&mut self, verdict: Verdict) {
        let now = Instant::now();
        self.hear(Evidence::new(Source::Check, verdict, now));
    }

    fn hear(&mut self, evidence: Evidence) {
        let effects = self.judge.hear(evidence, Instant::now());
        self.apply(effects);
        self.show_reachability();
    }

    fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Moved(standing) => info!(?standing, "how this node is reached has changed"),
                Effect::Announce(_) | Effect::Withdraw(_) => self.announce(),
            }
        }
    }

    fn show_reachability(&mut self) {
        let judge = &self.judge;
        self.outputs.reachability.send_modify(|shown| {
            shown.standing = judge.standing();
            shown.evidence = judge.evidence().to_vec();
        });
    }
}
