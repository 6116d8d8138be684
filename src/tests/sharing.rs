//! What sessions that begin alike share: the same outputs bit for bit, and less to compute. Nothing is shared where more
//! than the inputs decides what comes out.

use std::ops::Range;

use sepal_protocol::tensor::{DType, WireTensor};

use super::{
    caller::{Session, Step},
    generating::client_on,
    pipelining::roomy,
    setup::{Node, Swarm, TestServer, WIDTH, assert_same_bits, config, reference, soon, tokens},
};
use crate::{
    model::{Adapter, Hidden, HubOptions},
    server::Config,
};

const N_TOKENS: usize = 45;
/// What the first step of a session has.
const N_PROMPT: usize = 40;
/// Those of its tokens that fill pages.
const N_SHARED: u64 = 32;

struct Scene {
    swarm: Swarm,
    server: TestServer,
    node: Node,
}

async fn scene(config: Config) -> Scene {
    let swarm = Swarm::start().await;
    let (server, node) = (swarm.serve_with(config).await, swarm.caller().await);
    Scene { swarm, server, node }
}

impl Scene {
    fn reused(&self) -> u64 {
        self.server.server.stats().reused_tokens
    }

    async fn outputs(&self, steps: &[Step]) -> Vec<f32> {
        outputs(&self.node, &self.server, steps).await
    }
}

/// What a session of `steps` gets, all tokens one behind the other.
async fn outputs(node: &Node, server: &TestServer, steps: &[Step]) -> Vec<f32> {
    let mut session = Session::open(node, server.node.peer()).await;
    let mut outputs = Vec::new();
    for step in steps {
        outputs.extend(session.step(step).await.output().to_f32_vec());
    }
    session.finish().await;
    outputs
}

/// More tokens than the recorded prompt has, no two the same.
fn inputs(scale: f32) -> Hidden {
    let recorded = reference().embeddings;
    let data = recorded.data.iter().cycle().take(N_TOKENS * WIDTH).enumerate();
    let data = data.map(|(i, number)| number * (scale + (i / WIDTH) as f32 / 100.0));
    Hidden::new(data.collect(), 1, N_TOKENS, WIDTH).unwrap()
}

/// `x` in steps that end before each of `ends`, the last at its end.
fn steps(x: &Hidden, ends: &[usize]) -> Vec<Step> {
    let mut steps = vec![Step::first(&tokens(x, 0..ends[0]), N_TOKENS)];
    steps.extend(ends.windows(2).map(|pair| Step::next(&tokens(x, pair[0]..pair[1]))));
    steps
}

fn asking_for(adapter: &str, mut steps: Vec<Step>) -> Vec<Step> {
    steps[0].metadata.active_adapter = Some(adapter.to_owned());
    steps
}

#[tokio::test]
async fn a_session_that_begins_as_another_gets_the_same_bits_and_computes_less() {
    let scene = scene(config(0..4)).await;
    let x = inputs(1.0);
    let prompt_first = steps(&x, &[N_PROMPT, N_TOKENS]);
    let expected = scene.outputs(&prompt_first).await;
    assert_eq!(scene.reused(), 0);
    assert_same_bits(&scene.outputs(&prompt_first).await, &expected);
    assert_eq!(scene.reused(), N_SHARED);
    let whole = scene.outputs(&steps(&x, &[N_TOKENS])).await;
    assert_same_bits(&whole, &expected);
    assert_eq!(scene.reused(), 2 * N_SHARED);
    let pieces = scene.outputs(&steps(&x, &[7, 20, 21, 39, N_TOKENS])).await;
    assert_same_bits(&pieces, &expected);
    // Tokens 7 to 16 and 21 to 32: a page is known at the step that fills it.
    assert_eq!(scene.reused(), 2 * N_SHARED + 9 + 11);

    let mut alone = config(0..4);
    alone.limits.share_prefixes = false;
    let alone = scene.swarm.serve_with(alone).await;
    for _ in 0..2 {
        assert_same_bits(&outputs(&scene.node, &alone, &prompt_first).await, &expected);
    }
    assert_eq!(alone.server.stats().reused_tokens, 0);

    // What was counted is not forgotten with the blocks.
    let reused = scene.reused();
    scene.server.server.shutdown().await;
    assert_eq!(scene.reused(), reused);
}

#[tokio::test]
async fn with_deep_prompts_nothing_is_taken_over_and_nothing_is_left_to_others() {
    let scene = scene(config(0..4)).await;
    for (x, prompts_first) in [(inputs(1.0), false), (inputs(-0.5), true)] {
        let plain = steps(&x, &[N_PROMPT, N_TOKENS]);
        let mut tuned = plain.clone();
        let prompts = vec![0.25; 4 * 3 * WIDTH];
        tuned[0].prompts = WireTensor::from_f32(&prompts, [4, 1, 3, WIDTH], DType::F32).unwrap();
        let reused = scene.reused();
        let (first, second) = if prompts_first {
            (&tuned, &plain)
        } else {
            (&plain, &tuned)
        };
        let (first, second) = (scene.outputs(first).await, scene.outputs(second).await);
        assert_ne!(first, second, "the prompts do something");
        assert_eq!(scene.reused(), reused);
        // Each gets what it got before, whoever was there meanwhile.
        let (again, expected) = if prompts_first {
            (&second, &first)
        } else {
            (&first, &second)
        };
        assert_same_bits(&scene.outputs(&plain).await, again);
        assert_same_bits(&scene.outputs(&tuned).await, expected);
        assert_eq!(scene.reused(), reused + N_SHARED, "only the plain session shares");
    }
}

#[tokio::test]
async fn sessions_share_with_those_of_the_same_adapter_only() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/vectors/sepal/lora/everything");
    let mut config = config(0..4);
    config.adapters = vec![Adapter::open(folder, &HubOptions::from_variables(|_| None)).unwrap()];
    let scene = scene(config).await;
    let plain = steps(&inputs(1.0), &[N_PROMPT, N_TOKENS]);
    let adapted = asking_for("everything", plain.clone());
    let without = scene.outputs(&plain).await;
    let with = scene.outputs(&adapted).await;
    assert_ne!(with, without, "the adapter does something");
    assert_eq!(scene.reused(), 0);
    assert_same_bits(&scene.outputs(&adapted).await, &with);
    assert_eq!(scene.reused(), N_SHARED);
    assert_same_bits(&scene.outputs(&plain).await, &without);
    assert_eq!(scene.reused(), 2 * N_SHARED);
}

/// Rows of a prompt that is too long for a message, which has room for no whole number of pages of so many.
const ROWS: usize = 3;
const N_LONG: usize = 404;
/// Those of its tokens that fill pages.
const N_LONG_SHARED: u64 = 400;

/// Some of the tokens of that prompt.
fn long(range: Range<usize>) -> Hidden {
    let numbers = |row: usize| {
        let numbers = range.start * WIDTH..range.end * WIDTH;
        numbers.map(move |i| ((row * 7001 + i * 7919 % 10_007) as f32 / 5003.0).sin())
    };
    Hidden::new((0..ROWS).flat_map(numbers).collect(), ROWS, range.len(), WIDTH).unwrap()
}

#[tokio::test]
async fn of_a_long_prompt_that_a_client_repeats_every_server_reuses_nearly_all() {
    let swarm = Swarm::start().await;
    let node = swarm.caller().await;
    let mut expected: Option<Vec<f32>> = None;
    for ends in [&[4][..], &[1, 3, 4]] {
        let mut servers = Vec::new();
        let mut start = 0;
        for end in ends {
            servers.push(swarm.serve_with(roomy(start..*end)).await);
            start = *end;
        }
        let allowed = servers.iter().map(|server| server.node.peer()).collect();
        let client = client_on(&node, &swarm, |config| config.filter.allowed = Some(allowed)).await;
        let mut reused = 0;
        // Steps that end where pages do not: tokens 7 to 96 and 100 to 400 are known at the steps that fill their pages.
        for (ends, known) in [
            (vec![N_LONG], 0),
            (vec![N_LONG], N_LONG_SHARED),
            (vec![7, 100, N_LONG], 89 + 300),
        ] {
            let (mut session, mut start) = (client.session(N_LONG), 0);
            let mut last = Vec::new();
            for end in ends {
                let output = soon("a step", session.step(long(start..end))).await.unwrap();
                // The last token of every row.
                let rows = output.data.chunks_exact(output.tokens * WIDTH);
                last = rows.flat_map(|row| row[row.len() - WIDTH..].to_vec()).collect();
                start = end;
            }
            session.close().await;
            assert_same_bits(&last, expected.get_or_insert_with(|| last.clone()));
            reused += ROWS as u64 * known;
            for server in &servers {
                assert_eq!(server.server.stats().reused_tokens, reused);
            }
        }
    }
}
