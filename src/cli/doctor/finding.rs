//! What one check found, as one line: how it went, what was seen and, if something is wrong, what to do about it.

use std::fmt;

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// As it should be.
    Fine,
    /// Worth knowing; the node works all the same.
    Note,
    /// A node would not work well like this.
    Problem,
}

/// The result of one check.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub(super) topic: &'static str,
    pub(super) outcome: Outcome,
    pub(super) seen: String,
    pub(super) remedy: Option<String>,
}

impl Finding {
    pub(super) fn fine(topic: &'static str, seen: impl Into<String>) -> Self {
        Self::new(topic, Outcome::Fine, seen.into(), None)
    }

    pub(super) fn note(topic: &'static str, seen: impl Into<String>) -> Self {
        Self::new(topic, Outcome::Note, seen.into(), None)
    }

    pub(super) fn problem(topic: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(topic, Outcome::Problem, seen.into(), Some(remedy.into()))
    }

    fn new(topic: &'static str, outcome: Outcome, seen: String, remedy: Option<String>) -> Self {
        Self {
            topic,
            outcome,
            seen,
            remedy,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.outcome {
            Outcome::Fine => "ok",
            Outcome::Note => "note",
            Outcome::Problem => "FAIL",
        };
        // Error texts may list one cause per line.
        let seen = self.seen.split_whitespace().collect::<Vec<_>>().join(" ");
        write!(f, "{mark:<5}{:<13}{seen}", self.topic)?;
        match &self.remedy {
            Some(remedy) => write!(f, "; remedy: {remedy}"),
            None => Ok(()),
        }
    }
}

/// The whole chain of causes of an error, in one line.
pub(super) fn causes(error: &anyhow::Error) -> String {
    format!("{error:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_with_its_remedy() {
        assert_eq!(
            Finding::problem("clock", "4.0 s behind\n  the others", "set the clock").to_string(),
            "FAIL clock        4.0 s behind the others; remedy: set the clock"
        );
        assert_eq!(
            Finding::fine("memory", "12 GiB free").to_string(),
            "ok   memory       12 GiB free"
        );
    }
}
