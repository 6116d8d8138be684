//! What traces tell of the way of a step through its chain, of whatever length it is.

use std::sync::{Arc, Mutex};

use tracing::{
    Subscriber,
    span::{Attributes, Id},
};
use tracing_subscriber::{
    Layer,
    filter::filter_fn,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

use super::{
    generating::client_on,
    pipelining::{PIECES, TOKENS, roomy, through},
    setup::Swarm,
};
use crate::task::TRACE;

/// The name of the span that one is in, and its own.
type Names = (Option<&'static str>, &'static str);

/// The spans that were begun.
#[derive(Clone, Debug, Default)]
struct Begun(Arc<Mutex<Vec<Names>>>);

impl<S> Layer<S> for Begun
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let parent = span.parent().map(|parent| parent.name());
        self.0.lock().unwrap().push((parent, span.name()));
    }
}

impl Begun {
    /// How many chains there were, and how many hops in these.
    fn counts(&self) -> [usize; 2] {
        let begun = self.0.lock().unwrap();
        let count = |wanted| begun.iter().filter(|span| **span == wanted).count();
        [count((None, "chain")), count((Some("chain"), "hop"))]
    }
}

#[tokio::test]
async fn a_prompt_in_pieces_is_one_chain_of_as_many_hops_as_pieces_and_servers() {
    let begun = Begun::default();
    let wanted = filter_fn(|metadata| metadata.is_span() && metadata.target() == TRACE);
    let subscriber = tracing_subscriber::registry().with(begun.clone().with_filter(wanted));
    let _traced = tracing::subscriber::set_default(subscriber);
    let swarm = Swarm::start().await;
    let _servers = [swarm.serve_with(roomy(0..2)).await, swarm.serve_with(roomy(2..4)).await];
    let node = swarm.caller().await;
    let mut session = client_on(&node, &swarm, |_| {}).await.session(TOKENS + 1);
    through(&mut session, TOKENS).await;
    assert_eq!(begun.counts(), [1, 2 * PIECES]);
    through(&mut session, 1).await;
    assert_eq!(begun.counts(), [2, 2 * PIECES + 2]);
}
