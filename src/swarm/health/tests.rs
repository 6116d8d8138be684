//! The picture that comes of records and answers, with data alone; then one look at a swarm in this process.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use sepal_protocol::{
    Message,
    record::{ModelInfo, RpcInfo, ServerInfo, ServerState},
    value::Subkey,
};

use super::{
    model::{Findings, ModelFacts, model_state},
    probe::Probe,
    *,
};
use crate::{
    dht::{Found, FoundDictionary, FoundEntry, Refused, StoreItem},
    p2p::{Handler, HandlerLimits, Router},
    swarm::{
        directory::block_key,
        hygiene::Sorting,
        testing::{node, peer, server},
    },
};

/// The records of servers that say this of themselves under each of their blocks.
fn facts(n_blocks: u32, servers: &[(u64, ServerInfo)]) -> ModelFacts {
    sorted_facts(n_blocks, |block| {
        let serves = |info: &ServerInfo| (info.start_block.unwrap()..info.end_block.unwrap()).contains(&block);
        let entries = servers.iter().filter(|(_, info)| serves(info));
        FoundDictionary {
            entries: entries.map(|(id, info)| entry(*id, info, false)).collect(),
            refused: Vec::new(),
        }
    })
}

fn entry(id: u64, info: &ServerInfo, proven: bool) -> FoundEntry {
    FoundEntry {
        subkey: peer(id).to_string().into(),
        value: info.encode(),
        expiration: 240.0,
        proven,
    }
}

/// A model of which this is found under each block.
fn sorted_facts(n_blocks: u32, under: impl Fn(u32) -> FoundDictionary) -> ModelFacts {
    let mut sorting = Sorting::new(0, n_blocks, 0.0);
    (0..n_blocks).for_each(|block| sorting.add(Some(Found::Dictionary(under(block)))));
    ModelFacts {
        prefix: "demo-hf".to_string(),
        name: Some("demo".to_string()),
        repository: Some("https://huggingface.co/sepal/demo".to_string()),
        in_registry: true,
        records: sorting.finish(),
    }
}

fn online(blocks: Range<u32>) -> ServerInfo {
    server(ServerState::Online, blocks)
}

fn look(facts: &ModelFacts, silent: &[u64], rtts: &RttMap) -> ModelState {
    let refused = |id: &u64| {
        let probe = Probe {
            checked: 5.0,
            error: Some("no answer".to_string()),
            fleeting: false,
        };
        (peer(*id), probe)
    };
    let probes: HashMap<_, _> = silent.iter().map(refused).collect();
    let findings = Findings {
        me: peer(99),
        probes: &probes,
        rtts,
        join: Some("/ip4/192.0.2.1/tcp/1/p2p/12D3"),
        join_flags: "",
    };
    model_state(facts, findings)
}

fn look_at(n_blocks: u32, servers: &[(u64, ServerInfo)]) -> ModelState {
    look(&facts(n_blocks, servers), &[], &RttMap::new())
}

fn holes_of(state: &ModelState) -> Vec<(u32, u32)> {
    state.holes.iter().map(|hole| (hole.start, hole.end)).collect()
}

#[test]
fn a_model_is_healthy_when_servers_that_answer_hold_every_block() {
    let servers = [(1, online(0..4)), (2, online(4..8)), (3, online(2..6))];
    let state = look_at(8, &servers);
    assert_eq!(state.state, ModelCondition::Healthy);
    assert_eq!(state.coverage, [1, 1, 2, 2, 2, 2, 1, 1]);
    assert!(state.holes.is_empty());
    let silent = look(&facts(8, &servers), &[2], &RttMap::new());
    assert_eq!(silent.state, ModelCondition::Broken);
    assert_eq!(silent.coverage, [1, 1, 2, 2, 1, 1, 0, 0]);
    assert_eq!(holes_of(&silent), [(6, 8)]);
    assert_eq!(silent.best_route, None);
    let unreachable = &silent.servers[1];
    assert_eq!(unreachable.state, Condition::Unreachable);
    assert_eq!(unreachable.reach_error.as_deref(), Some("no answer"));
    assert_eq!((unreachable.reachable, unreachable.checked), (Some(false), Some(5.0)));
}

#[test]
fn servers_that_load_or_said_goodbye_hold_nothing() {
    let servers = [
        (1, server(ServerState::Joining, 0..2)),
        (2, server(ServerState::Offline, 0..2)),
        (3, online(2..4)),
    ];
    let state = look_at(5, &servers);
    assert_eq!(holes_of(&state), [(0, 2), (4, 5)]);
    let conditions: Vec<Condition> = state.servers.iter().map(|server| server.state).collect();
    assert_eq!(conditions, [Condition::Joining, Condition::Offline, Condition::Online]);
    assert_eq!(look_at(3, &[]).holes.len(), 1);
}

#[test]
fn a_hole_comes_with_the_command_that_fills_it() {
    let fill = |change: &dyn Fn(&mut ModelFacts)| {
        let mut facts = facts(8, &[(1, online(0..4))]);
        change(&mut facts);
        look(&facts, &[], &RttMap::new()).holes[0].fill.clone()
    };
    let join = "--blocks 4:8 --initial-peers /ip4/192.0.2.1/tcp/1/p2p/12D3";
    assert_eq!(fill(&|_| {}), format!("sepal serve demo {join}"));
    let named = |prefix: &str, name: Option<&str>| {
        let (prefix, name) = (prefix.to_string(), name.map(str::to_string));
        fill(&move |facts| (facts.prefix, facts.name) = (prefix.clone(), name.clone()))
    };
    assert_eq!(named("Big-hf", Some("x/Big")), format!("sepal serve x/Big {join}"));
    let chosen = named("mine", Some("x/Big"));
    assert_eq!(chosen, format!("sepal serve x/Big --dht-prefix mine {join}"));
    assert_eq!(
        named("_mine", None),
        format!("sepal serve MODEL --dht-prefix _mine {join}")
    );
}

#[test]
fn a_command_made_of_what_strangers_wrote_is_safe_to_paste() {
    for (prefix, name, expected) in [
        ("a;rm -rf ~", None, "sepal serve MODEL --dht-prefix 'a;rm -rf ~'"),
        ("it's", None, r"sepal serve MODEL --dht-prefix 'it'\''s'"),
        ("--new-swarm", None, "sepal serve MODEL --dht-prefix PREFIX"),
        ("a\nb", None, "sepal serve MODEL --dht-prefix PREFIX"),
        ("p", Some("x/$(reboot)"), "sepal serve 'x/$(reboot)' --dht-prefix p"),
    ] {
        let mut facts = facts(2, &[]);
        (facts.prefix, facts.name) = (prefix.to_string(), name.map(str::to_string));
        let fill = look(&facts, &[], &RttMap::new()).holes[0].fill.clone();
        assert!(fill.starts_with(&format!("{expected} --blocks 0:2 ")), "{fill}");
    }
}

#[test]
fn those_who_could_close_a_hole_are_servers_whose_blocks_others_hold_as_well() {
    let servers = [
        (1, online(0..4)),
        (2, online(0..4)),
        (3, online(0..4)),
        (4, online(4..6)),
        (5, online(3..6)),
    ];
    let state = look_at(8, &servers);
    assert_eq!(holes_of(&state), [(6, 8)]);
    let candidates: Vec<(&str, &str)> = state.holes[0]
        .candidates
        .iter()
        .map(|candidate| (candidate.peer_id.as_str(), candidate.why.as_str()))
        .collect();
    let id = |i| peer(i).to_string();
    let many = "serves 0:4, which 2 others also serve";
    assert_eq!(
        candidates,
        [
            (&*id(1), many),
            (&*id(2), many),
            (&*id(3), many),
            (&*id(4), "serves 4:6, which 1 other also serves"),
            (&*id(5), "serves 3:6, which 1 other also serves"),
        ]
    );
    let alone = look_at(8, &[(1, online(0..4)), (2, online(4..6))]);
    assert!(alone.holes[0].candidates.is_empty());
}

#[test]
fn the_best_route_is_as_quick_as_the_routing_of_clients_says() {
    let mut quick = online(0..4);
    quick.inference_rps = Some(100.0);
    quick.next_pings = Some(vec![(peer(2).to_string(), 0.04)]);
    let mut rest = online(4..8);
    rest.inference_rps = Some(50.0);
    let facts = facts(8, &[(1, quick), (2, rest)]);
    let rtts = RttMap::from([(peer(1), 0.02), (peer(2), 0.06)]);
    let route = look(&facts, &[], &rtts).best_route.unwrap();
    let hops: Vec<_> = route
        .hops
        .iter()
        .map(|hop| (hop.peer_id.clone(), hop.start, hop.end))
        .collect();
    assert_eq!(hops, [(peer(1).to_string(), 0, 4), (peer(2).to_string(), 4, 8)]);
    // To the first, through its blocks, to the second, through its blocks, and back.
    let seconds = (0.01 + 0.018 + 4.0 / 100.0) + (0.02 + 0.018 + 4.0 / 50.0) + 0.03;
    assert!((route.tokens_per_second - 1.0 / seconds).abs() < 1e-9, "{route:?}");
}

#[test]
fn what_a_server_says_is_shown_and_bounded() {
    let mut info = online(0..4);
    info.public_name = Some("<script>alert(1)</script>".repeat(1000));
    info.cache_tokens_left = Some(8 * 100 + 7);
    info.adapters = (0..1000).map(|i| format!("x/{i}")).collect();
    let far = (peer(2).to_string(), f64::INFINITY);
    info.next_pings = Some(vec![far, (peer(3).to_string(), 0.1), ("nobody".to_string(), 0.1)]);
    let state = look_at(4, &[(1, info)]);
    let view = &state.servers[0];
    assert!(
        view.public_name
            .as_ref()
            .unwrap()
            .starts_with("<script>alert(1)</script><script>")
    );
    assert_eq!(view.public_name.as_ref().unwrap().chars().count(), 100);
    assert_eq!(view.cache_tokens_left, Some(100));
    assert_eq!(view.adapters.len(), 32);
    assert_eq!(view.pings.len(), 2);
    assert_eq!(view.expires, Some(240.0));
    let json = serde_json::to_value(&state).unwrap();
    assert!(json["servers"][0]["pings"][peer(2).to_string()].is_null());
    assert!(json["servers"][0].get("info").is_none());
    assert_eq!(json["state"], "healthy");
}

#[test]
fn servers_of_which_nothing_is_believed_are_shown_with_the_reason_and_cover_nothing() {
    let refused = Refused {
        subkey: peer(3).to_string().into(),
        expiration: 90.0,
    };
    let facts = sorted_facts(8, |_| FoundDictionary {
        entries: vec![entry(1, &online(0..8), true), entry(2, &online(0..80), false)],
        refused: vec![refused.clone()],
    });
    let state = look(&facts, &[], &RttMap::new());
    assert_eq!(state.coverage, [1; 8]);
    let of = |id| {
        let name = peer(id).to_string();
        state.servers.iter().find(|view| view.peer_id == name).unwrap()
    };
    assert_eq!((of(1).signature, of(1).problems.len()), (SignatureView::Valid, 0));
    assert_eq!((of(2).signature, of(2).start, of(2).end), (SignatureView::None, 0, 0));
    assert_eq!(of(2).problems, ["claims blocks 0:80 of a model of 8 blocks"]);
    assert_eq!(of(3).signature, SignatureView::Forged);
    assert_eq!(of(3).problems, ["has a signature that is not of this server"]);
    assert_eq!(of(3).expires, Some(90.0));
}

#[test]
fn a_claim_that_cannot_be_is_shown_beside_the_ones_that_can() {
    let facts = sorted_facts(8, |block| FoundDictionary {
        entries: match block {
            0 | 5 => vec![entry(2, &online(0..2), false)],
            _ => Vec::new(),
        },
        refused: Vec::new(),
    });
    let state = look(&facts, &[], &RttMap::new());
    assert_eq!((state.servers[0].start, state.servers[0].end), (0, 2));
    assert_eq!(
        state.servers[0].problems,
        [
            "claims blocks 0:2 under block 5",
            "1 blocks of its span 0:2 have no record of it"
        ]
    );
}

#[test]
fn contributors_are_named_servers_with_ten_blocks_and_their_links_lead_to_pages_only() {
    let named = |name: &str, blocks: Range<u32>| {
        let mut info = online(blocks);
        info.public_name = Some(name.to_string());
        info
    };
    let mut gone = named("gone", 0..20);
    gone.state = ServerState::Offline;
    let servers = [
        (1, named("https://example.org/a-page-with-a-name/", 0..12)),
        (2, named("ann", 0..10)),
        (3, named("ann", 10..20)),
        (4, named("small", 0..9)),
        (5, named("javascript:alert(1)", 0..11)),
        (6, gone),
    ];
    let shown = text::contributors(&[look_at(20, &servers)]);
    let shown: Vec<_> = shown
        .iter()
        .map(|who| (who.name.as_str(), who.url.as_deref(), who.blocks))
        .collect();
    assert_eq!(
        shown,
        [
            ("ann", None, 20),
            (
                "example.org/a-page-w",
                Some("https://example.org/a-page-with-a-name/"),
                12
            ),
            ("javascript:alert(1)", None, 11),
        ]
    );
}

/// A server that says it serves, and answers `rpc_info` or does not.
async fn serve(tasks: &Tasks, through: &P2p, blocks: Range<u32>, answers: bool) -> P2p {
    let (host, dht) = node(tasks, through.addrs()).await;
    if answers {
        let info = Handler::unary(sepal_protocol::names::INFO, HandlerLimits::default(), |_, _| async {
            let info = RpcInfo {
                version: "test".to_string(),
                dht_client_mode: false,
                cache_tokens_available: 1,
                schema: None,
            };
            let info = sepal_protocol::proto::ExpertInfo {
                serialized_info: info.encode(),
            };
            Ok(info.encode_to_vec().into())
        });
        Router::new(host.clone()).serve(vec![info]).spawn(tasks);
    }
    let record = server(ServerState::Online, blocks.clone()).encode();
    let items = blocks.map(|block| StoreItem {
        key: block_key("m", block),
        subkey: Subkey::text(&host.peer_id().to_string()),
        value: record.clone(),
        expiration: dht.now() + 60.0,
    });
    let mut items: Vec<StoreItem> = items.collect();
    items.push(StoreItem {
        key: sepal_protocol::dht_id::DhtId::of_str(sepal_protocol::record::MODEL_REGISTRY_KEY),
        subkey: Subkey::text("m"),
        value: ModelInfo {
            num_blocks: 4,
            repository: None,
        }
        .encode(),
        expiration: dht.now() + 60.0,
    });
    assert!(dht.store_many(items).await.iter().all(|stored| *stored));
    host
}

#[tokio::test]
async fn a_look_at_a_swarm_finds_its_models_its_servers_and_who_answers() {
    let tasks = Tasks::new();
    let (first, dht) = node(&tasks, Vec::new()).await;
    let answering = serve(&tasks, &first, 0..2, true).await;
    // This one serves the DHT but not the question: as one that is joining, it counts as reachable.
    let shy = serve(&tasks, &first, 2..4, false).await;
    let leaving = Tasks::new();
    let gone = serve(&leaving, &first, 2..4, true).await.peer_id();
    leaving.shutdown().await;
    let config = Config {
        initial_peers: answering.addrs(),
        ..Config::default()
    };
    let health = Health::new(first.clone(), dht, config, &tasks);
    assert!(health.age().is_none());
    let mut watch = health.watch();
    let state = health.collect().await;
    assert!(watch.has_changed().unwrap());
    assert_eq!(*watch.borrow_and_update(), state);
    assert!(health.age().is_some());
    assert!(state.bootstraps.iter().all(|bootstrap| bootstrap.ok) && state.bootstraps.len() == 1);
    assert_eq!(state.totals.models, 1);
    let conditions: BTreeMap<String, Condition> = state.models[0]
        .servers
        .iter()
        .map(|server| (server.peer_id.clone(), server.state))
        .collect();
    let expected = [
        (answering.peer_id(), Condition::Online),
        (shy.peer_id(), Condition::Online),
        (gone, Condition::Unreachable),
    ];
    assert_eq!(
        conditions,
        expected.map(|(peer, state)| (peer.to_string(), state)).into()
    );
    assert_eq!(state.models[0].coverage, [1, 1, 1, 1]);
    assert_eq!(
        health.is_reachable(answering.peer_id()).await,
        Ok(Dialable { error: None })
    );
    tasks.shutdown().await;
}
