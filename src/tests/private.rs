//! Clients that hold the first and the last blocks themselves: servers run only those between, and the text is the same.

use std::{iter, ops::Range, slice};

use super::{
    conversing::say,
    generating::{client, client_with, generate},
    setup::{N_BLOCKS, Node, Swarm, assert_same_bits, config, model, reference, tokens, vectors_folder},
};
use crate::{
    client::{Client, Conversations, HopReport, Limits, LocalError, LocalOptions, PrivateEnds},
    model::{Adapter, Hidden, HubOptions, WeightFormat},
    server,
    swarm::directory::Filter,
};

fn one_block(quant: Option<WeightFormat>) -> PrivateEnds {
    PrivateEnds {
        blocks: 1,
        options: LocalOptions {
            quant,
            ..LocalOptions::default()
        },
        adapter: None,
    }
}

async fn private_client(swarm: &Swarm) -> (Node, Client) {
    client_with(swarm, |config| config.private_ends = Some(one_block(None))).await
}

fn places(route: &[HopReport]) -> Vec<(bool, std::ops::Range<u32>)> {
    route.iter().map(|hop| (hop.is_here, hop.blocks.clone())).collect()
}

#[tokio::test]
async fn servers_of_the_middle_blocks_alone_give_the_tokens_of_transformers() {
    for spans in [iter::once(1..3).collect::<Vec<Range<u32>>>(), vec![1..2, 2..3]] {
        let swarm = Swarm::start().await;
        let servers = swarm.serve_all(&spans).await;
        let (node, client) = private_client(&swarm).await;
        let reference = reference();
        let generation = generate(&client, &reference.prompt, 16, &mut |_| {}).await.unwrap();
        assert_eq!(generation.token_ids, reference.greedy);
        let middle = spans.iter().map(|span| (false, span.clone()));
        let expected: Vec<_> = [(true, 0..1)].into_iter().chain(middle).chain([(true, 3..4)]).collect();
        assert_eq!(places(&generation.route), expected);
        assert!(generation.route.iter().all(|hop| hop.per_step.is_some()));
        assert_eq!(
            (generation.route[0].peer, &*generation.route[0].place()),
            (node.peer(), "here")
        );
        for server in &servers {
            server.idle().await;
            assert_eq!(server.server.stats().steps, 16);
        }
    }
}

/// What a chain puts out for a prompt in two pieces and the tokens behind it, one by one.
async fn outputs(client: &Client) -> Vec<f32> {
    let x: Hidden = reference().embeddings;
    let mut session = client.session(x.tokens);
    let mut found = Vec::new();
    let mut from = 0;
    for to in [3, 6].into_iter().chain(7..=x.tokens) {
        found.extend(session.step(tokens(&x, from..to)).await.unwrap().data);
        from = to;
    }
    session.close().await;
    found
}

#[tokio::test]
async fn own_blocks_compute_to_the_last_bit_what_servers_with_them_would() {
    for quant in [None, Some(WeightFormat::Q8_0), Some(WeightFormat::Nf4)] {
        let swarm = Swarm::start().await;
        let mut servers = Vec::new();
        for blocks in [0..1, 1..3, 3..4] {
            let config = server::Config {
                quant,
                ..config(blocks)
            };
            servers.push(swarm.serve_with(config).await);
        }
        let (_node, all_served) = client(&swarm).await;
        let expected = outputs(&all_served).await;
        let (_node, private) = client_with(&swarm, |config| config.private_ends = Some(one_block(quant))).await;
        assert_same_bits(&outputs(&private).await, &expected);
    }
}

#[tokio::test]
async fn a_conversation_is_taken_back_in_the_own_blocks_as_well() {
    let swarm = Swarm::start().await;
    let _servers = swarm.serve_all(slice::from_ref(&(1..3))).await;
    let (node, client) = private_client(&swarm).await;
    let conversations = Conversations::new(client.clone(), Limits::default(), &node.tasks);
    let first = reference().prompt;
    let answer = say(&conversations, &first).await;
    let parting = answer.token_ids[1] ^ 1;
    let changed = [&first[..], &answer.token_ids[..1], &[parting, 11]].concat();
    let next = say(&conversations, &changed).await;
    assert_eq!(next.reused_tokens, first.len() + 1);
    let alone = generate(&client, &changed, next.token_ids.len(), &mut |_| {})
        .await
        .unwrap();
    assert_eq!(next.token_ids, alone.token_ids);
}

#[tokio::test]
async fn a_server_that_dies_between_the_own_blocks_is_replaced() {
    let swarm = Swarm::start().await;
    let (first, spares) = (swarm.serve(1..3).await, swarm.serve_all(&[1..2, 2..3]).await);
    let (_node, client) = private_client(&swarm).await;
    assert_eq!(client.route(28).await.unwrap().len(), 1);
    let mut n_tokens = 0;
    let mut on_text = |_: &str| {
        n_tokens += 1;
        if n_tokens == 6 {
            first.kill();
        }
    };
    let reference = reference();
    let generation = generate(&client, &reference.prompt, 16, &mut on_text).await.unwrap();
    assert_eq!(generation.token_ids, reference.greedy);
    assert_eq!(generation.route.len(), 2 + spares.len());
}

#[tokio::test]
async fn generations_at_once_share_the_own_blocks() {
    let swarm = Swarm::start().await;
    let _servers = swarm.serve_all(slice::from_ref(&(1..3))).await;
    let (_node, client) = private_client(&swarm).await;
    let reference = reference();
    let generations = (0..6).map(|_| {
        let (client, prompt) = (client.clone(), reference.prompt.clone());
        async move { generate(&client, &prompt, 16, &mut |_| {}).await.unwrap().token_ids }
    });
    for tokens in futures::future::join_all(generations).await {
        assert_eq!(tokens, reference.greedy);
    }
}

fn adapter() -> Adapter {
    let folder = vectors_folder("sepal/lora/everything");
    Adapter::open(&folder, &HubOptions::from_variables(|_| None)).unwrap()
}

#[tokio::test]
async fn an_adapter_changes_the_own_blocks_as_those_of_servers() {
    let swarm = Swarm::start().await;
    let mut servers = Vec::new();
    for blocks in [0..1, 1..3, 3..4] {
        let config = server::Config {
            adapters: vec![adapter()],
            ..config(blocks)
        };
        servers.push(swarm.serve_with(config).await);
    }
    let filter = Filter {
        adapter: Some("everything".to_owned()),
        ..Filter::default()
    };
    let (_node, all_served) = client_with(&swarm, |config| config.filter = filter.clone()).await;
    let (_node, plain) = client(&swarm).await;
    let expected = outputs(&all_served).await;
    assert_ne!(outputs(&plain).await, expected);
    let (_node, private) = client_with(&swarm, |config| {
        config.filter = filter.clone();
        config.private_ends = Some(PrivateEnds {
            adapter: Some(adapter()),
            ..one_block(None)
        });
    })
    .await;
    assert_same_bits(&outputs(&private).await, &expected);
}

#[tokio::test]
async fn an_adapter_of_servers_alone_is_refused() {
    let swarm = Swarm::start().await;
    let node = swarm.caller().await;
    let config = crate::client::Config {
        filter: Filter {
            adapter: Some("everything".to_owned()),
            ..Filter::default()
        },
        private_ends: Some(one_block(None)),
        ..crate::client::Config::new("P".to_owned())
    };
    let parts = (node.p2p.clone(), node.dht.clone());
    let error = Client::connect(config, &swarm.source, parts, &node.tasks)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("need the weights of the adapter everything as well"),
        "{error}"
    );
}

#[test]
fn ends_that_leave_nothing_to_the_swarm_are_refused_with_the_most_that_do() {
    let error = |blocks| {
        let wanted = PrivateEnds {
            blocks,
            ..one_block(None)
        };
        wanted.others(&model()).map_err(|error| error.to_string())
    };
    assert_eq!(error(1), Ok(1..N_BLOCKS - 1));
    for blocks in [2, 3, 9, u32::MAX] {
        let text = error(blocks).unwrap_err();
        assert!(text.starts_with(&format!(
            "{} has 4 blocks: {blocks} of its own at each end leave none to the swarm; at most 1 are possible",
            model().name()
        )));
    }
}

#[test]
fn ends_that_do_not_fit_are_refused_with_what_would() {
    let demo = crate::model::ModelSource::resolve("demo", &HubOptions::from_variables(|_| None)).unwrap();
    let wanted = |blocks, memory, quant| PrivateEnds {
        blocks,
        options: LocalOptions {
            quant,
            memory: Some(memory),
            cache_tokens: 16,
        },
        adapter: None,
    };
    let check = |blocks, memory, quant| wanted(blocks, memory, quant).check_room(&demo);
    let needed = |blocks, quant| match check(blocks, 0, quant) {
        Err(LocalError::DoesNotFit { needed, .. }) => needed,
        other => panic!("{other:?}"),
    };
    assert!(check(3, needed(3, None), None).is_ok());
    let text = check(3, needed(2, None), None).unwrap_err().to_string();
    assert!(
        text.starts_with("the first and the last 3 blocks of demo need "),
        "{text}"
    );
    assert!(
        text.ends_with("free here: --private-ends 2 fits, or --private-quant q8_0"),
        "{text}"
    );
    let text = check(1, needed(1, Some(WeightFormat::Nf4)), None)
        .unwrap_err()
        .to_string();
    assert!(text.ends_with("free here: --private-quant nf4"), "{text}");
    let text = check(1, 0, None).unwrap_err().to_string();
    assert!(text.ends_with("0.0 KiB are free here"), "{text}");
}
