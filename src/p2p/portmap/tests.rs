//! The whole conversation with a router on loopback that speaks NAT-PMP, and the rules around it.

use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;

use super::*;
use crate::task::Tasks;

/// What a router was asked to map: opcode (1 UDP, 2 TCP), internal port, lifetime in seconds.
type Asked = Arc<Mutex<Vec<(u8, u16, u32)>>>;

/// The limit of waits that only end so when something is broken.
const LONG: Duration = Duration::from_secs(30);

/// A router that answers PCP with "only NAT-PMP here", and grants every port with this offset for `lifetime` seconds.
struct Router {
    ip: IpAddr,
    asked: Asked,
}

const OFFSET: u16 = 1000;

impl Router {
    async fn start(last: u8, external: [u8; 4], lifetime: u32, tasks: &Tasks) -> Self {
        // The port is the protocol's own, so every router of every test process has another address of loopback.
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let ip = IpAddr::from([127, high, low, last]);
        let socket = UdpSocket::bind((ip, crab_nat::GATEWAY_PORT)).await.unwrap();
        let asked = Asked::default();
        let heard = asked.clone();
        tasks.spawn_until_stopped("router", async move {
            let mut request = [0; 1100];
            loop {
                let (n, from) = socket.recv_from(&mut request).await.unwrap();
                let answer = answer(&request[..n], external, lifetime, &heard);
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        Self { ip, asked }
    }

    fn asked(&self) -> Vec<(u8, u16, u32)> {
        let mut asked = self.asked.lock().unwrap().clone();
        asked.sort_unstable();
        asked.dedup();
        asked
    }
}

/// RFC 6886, sections 3.2 to 3.5.
fn answer(request: &[u8], external: [u8; 4], lifetime: u32, asked: &Asked) -> Vec<u8> {
    const EPOCH: [u8; 4] = [0, 0, 0, 9];
    let (version, opcode) = (request[0], request[1]);
    if version != 0 {
        return [&[0, 128, 0, 1], &EPOCH[..]].concat();
    }
    if opcode == 0 {
        return [&[0, 128, 0, 0], &EPOCH[..], &external].concat();
    }
    let internal = u16::from_be_bytes([request[4], request[5]]);
    let wanted = u32::from_be_bytes([request[8], request[9], request[10], request[11]]);
    asked.lock().unwrap().push((opcode, internal, wanted));
    let (outside, granted) = if wanted == 0 {
        (0, 0)
    } else {
        (internal + OFFSET, lifetime)
    };
    let head = [0, 128 + opcode, 0, 0];
    let ports = [internal.to_be_bytes(), outside.to_be_bytes()].concat();
    [&head[..], &EPOCH, &ports, &granted.to_be_bytes()].concat()
}

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

async fn next(reports: &mut mpsc::Receiver<Command>) -> Report {
    match timeout(LONG, reports.recv()).await {
        Ok(Some(Command::Mapping(Mapper::NatPmp, report))) => report,
        other => panic!("no report: {other:?}"),
    }
}

#[tokio::test]
async fn both_ports_are_asked_for_renewed_and_given_back_at_the_end() {
    let tasks = Tasks::new();
    let router = Router::start(1, [8, 8, 8, 8], 2, &tasks).await;
    let (tell, mut reports) = mpsc::channel(16);
    let stop = CancellationToken::new();
    let ports = vec![(Carrier::Tcp, port(4001)), (Carrier::Quic, port(4001))];
    let kept = tasks.spawn("ports", keep(router.ip, ports, tell, stop.clone()));
    let mut mapped = [next(&mut reports).await, next(&mut reports).await];
    mapped.sort_by_key(|report| format!("{report:?}"));
    assert_eq!(
        mapped.map(|report| format!("{report:?}")),
        ["Mapped(/ip4/8.8.8.8/tcp/5001)", "Mapped(/ip4/8.8.8.8/udp/5001/quic-v1)"]
    );
    timeout(LONG, async {
        // Two leases of two seconds, each renewed at least once.
        while router.asked.lock().unwrap().len() < 4 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    stop.cancel();
    timeout(LONG, kept).await.unwrap().unwrap();
    assert!(matches!(next(&mut reports).await, Report::Lost(_)));
    let asked = router.asked();
    assert!(
        asked.contains(&(2, 4001, 0)) && asked.contains(&(1, 4001, 0)),
        "{asked:?}"
    );
    tasks.shutdown().await;
}

#[tokio::test]
async fn a_router_behind_another_router_is_of_no_use_and_gets_its_port_back() {
    let tasks = Tasks::new();
    let router = Router::start(2, [192, 168, 7, 7], 7200, &tasks).await;
    let (tell, mut reports) = mpsc::channel(16);
    let stop = CancellationToken::new();
    let kept = tasks.spawn(
        "ports",
        keep(router.ip, vec![(Carrier::Tcp, port(4001))], tell, stop.clone()),
    );
    assert_eq!(next(&mut reports).await, Report::Failed(Mapping::NotPublic));
    assert!(router.asked().contains(&(2, 4001, 0)));
    stop.cancel();
    timeout(LONG, kept).await.unwrap().unwrap();
    tasks.shutdown().await;
}

#[tokio::test]
async fn a_router_that_speaks_neither_protocol_is_told_from_one_that_refuses() {
    let tasks = Tasks::new();
    // Nobody is there: the system says so at once.
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let nobody = IpAddr::from([127, high, low, 3]);
    let (tell, mut reports) = mpsc::channel(16);
    let stop = CancellationToken::new();
    let kept = tasks.spawn(
        "ports",
        keep(nobody, vec![(Carrier::Tcp, port(4001))], tell, stop.clone()),
    );
    assert_eq!(next(&mut reports).await, Report::Failed(Mapping::NoGateway));
    stop.cancel();
    timeout(LONG, kept).await.unwrap().unwrap();
    let refused = outcome(&MappingFailure::NatPmp(natpmp::Failure::NotAuthorized));
    assert!(matches!(refused, Mapping::Refused { reason } if reason.contains("Not authorized")));
}

#[test]
fn the_default_route_is_found_in_the_table_of_the_system() {
    let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
                 eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n\
                 eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\n";
    assert_eq!(default_route(table), Some([192, 168, 1, 1].into()));
    let none = "Iface\tDestination\tGateway\neth0\t0001A8C0\t00000000\t0001\nbad\n";
    assert_eq!(default_route(none), None);
    assert_eq!(default_route(""), None);
}

#[test]
fn ports_of_the_local_network_are_asked_for_once_each_and_others_not() {
    let listened: Vec<Multiaddr> = [
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/192.168.1.7/tcp/2",
        "/ip4/10.0.0.7/tcp/2",
        "/ip4/192.168.1.7/udp/2/quic-v1",
        "/ip4/8.8.8.8/tcp/3",
        "/ip6/fd00::7/tcp/4",
    ]
    .iter()
    .map(|addr| addr.parse().unwrap())
    .collect();
    assert_eq!(ports(&listened), [(Carrier::Tcp, port(2)), (Carrier::Quic, port(2))]);
}

#[test]
fn nothing_is_asked_on_loopback_or_when_it_is_known_what_to_announce() {
    let asks = |listen: &str, announce: &[&str]| {
        wanted(&Config {
            listen: vec![listen.parse().unwrap()],
            announce: announce.iter().map(|addr| addr.parse().unwrap()).collect(),
            map_ports: true,
            ..Config::default()
        })
    };
    assert!(asks("/ip4/0.0.0.0/tcp/0", &[]));
    assert!(!asks("/ip4/127.0.0.1/tcp/0", &[]));
    assert!(!asks("/ip4/0.0.0.0/tcp/0", &["/ip4/8.8.8.8/tcp/1"]));
    assert!(!wanted(&Config::default()));
}

#[test]
fn nothing_is_asked_for_a_swarm_on_this_machine_or_the_local_network() {
    let asks = |lan: Option<&str>, known: &[&str]| {
        wanted(&Config {
            listen: vec!["/ip4/0.0.0.0/tcp/0".parse().unwrap()],
            known_peers: known.iter().map(|addr| addr.parse().unwrap()).collect(),
            lan: lan.map(str::to_owned),
            map_ports: true,
            ..Config::default()
        })
    };
    assert!(asks(None, &["/ip4/127.0.0.1/tcp/1", "/ip4/8.8.8.8/tcp/1"]));
    assert!(!asks(None, &["/ip4/127.0.0.1/tcp/1"]));
    assert!(!asks(Some("home"), &[]));
    assert!(asks(Some("home"), &["/ip4/8.8.8.8/tcp/1"]));
}
