//! Where a step is on the compute thread, for those who trace where the time goes: it waits, then it is computed. Where
//! nobody does, this is nothing.

use tracing::{Span, debug_span};

use crate::task::TRACE;

/// The spans of a step. They end with it.
#[derive(Debug)]
pub(crate) struct Traced(Option<Box<Spans>>);

#[derive(Debug)]
struct Spans {
    step: Span,
    now: Span,
}

impl Traced {
    /// The step whose span this is in waits.
    pub(crate) fn waits() -> Self {
        let now = debug_span!(target: TRACE, "queue");
        let spans = || {
            Box::new(Spans {
                step: Span::current(),
                now: now.clone(),
            })
        };
        Self((!now.is_disabled()).then(spans))
    }

    /// It is computed from now on.
    pub(crate) fn is_computed(&mut self) {
        if let Some(spans) = &mut self.0 {
            spans.now = debug_span!(target: TRACE, parent: &spans.step, "compute");
        }
    }

    /// It is not any more.
    pub(crate) fn ends(&mut self) {
        self.0 = None;
    }
}
