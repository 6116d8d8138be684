//! A control socket and those who talk on it: real sockets in folders of their own, and hosts that serve nothing. What servers
//! do when they are paused is tested with whole swarms.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

use super::{
    protocol::{Answer, FailureCode, Request, State},
    testing::Nowhere,
    *,
};
use crate::p2p;

/// For what must happen sooner or later.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Words(Mutex<String>);

impl Log for Words {
    fn level(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_level(&self, directives: &str) -> Result<(), String> {
        if directives.is_empty() {
            return Err("nothing is no level".to_owned());
        }
        *self.0.lock().unwrap() = directives.to_owned();
        Ok(())
    }

    fn recent(&self) -> Vec<LogRow> {
        Vec::new()
    }
}

/// A node that serves nothing, and the token that tells it to stop.
async fn subject(tasks: &Tasks) -> (Subject, CancellationToken) {
    let config = p2p::Config {
        listen: Vec::new(),
        client_mode: true,
        ..p2p::Config::default()
    };
    let stop = CancellationToken::new();
    let subject = Subject {
        command: "bootstrap",
        p2p: P2p::bind(config, tasks).await.unwrap(),
        access: None,
        servers: Vec::new(),
        calls: Vec::new(),
        api: None,
        jobs: None,
        swarms: Arc::new(Nowhere),
        log: Arc::new(Words::default()),
        stop: stop.clone(),
    };
    (subject, stop)
}

/// A folder for sockets, with the control of one node in it.
struct Stage {
    folder: tempfile::TempDir,
    tasks: Tasks,
    control: Control,
    name: String,
    stop: CancellationToken,
}

impl Stage {
    async fn open() -> Self {
        let (folder, tasks) = (tempfile::tempdir().unwrap(), Tasks::new());
        let (subject, stop) = subject(&tasks).await;
        prepare_folder(folder.path()).await.unwrap();
        let name = name_of(&subject.p2p);
        let control = Control::open(&socket_in(folder.path(), &name), subject).await.unwrap();
        Self {
            folder,
            tasks,
            control,
            name,
            stop,
        }
    }

    async fn connect(&self) -> Connection {
        Connection::open(self.control.path()).await.unwrap()
    }

    fn folders(&self) -> Vec<PathBuf> {
        vec![self.folder.path().to_owned()]
    }
}

#[tokio::test]
async fn a_node_answers_on_a_socket_that_only_its_owner_can_open() {
    let stage = Stage::open().await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(stage.control.path()), 0o600);
    assert_eq!(mode(stage.folder.path()), 0o700);

    let mut connection = stage.connect().await;
    let Answer::Status(status) = connection.ask(&Request::Status).await.unwrap() else {
        panic!("no status");
    };
    assert_eq!(
        (status.state, status.node.name.as_str()),
        (State::Running, &*stage.name)
    );
    assert_eq!((status.sessions, status.models.len(), status.peers), (0, 0, 0));
    // The same connection goes on.
    let log = |level: Option<&str>| Request::Log {
        level: level.map(str::to_owned),
    };
    let changed = connection.ask(&log(Some("debug"))).await.unwrap();
    let (before, now) = (String::new(), "debug".to_owned());
    assert_eq!(
        changed,
        Answer::Log {
            before,
            now: now.clone()
        }
    );
    let refused = connection.ask(&log(Some(""))).await.unwrap_err();
    assert_eq!(refused.to_string(), "nothing is no level");
    let asked = connection.ask(&log(None)).await.unwrap();
    let before = now.clone();
    assert_eq!(asked, Answer::Log { before, now });
    let pause = connection.ask(&Request::Pause).await.unwrap_err();
    assert!(pause.to_string().contains("serves no blocks"), "{pause}");
    let drain = Request::Drain { timeout_s: Some(-1.0) };
    let refused = connection.ask(&drain).await.unwrap_err().to_string();
    assert!(
        refused.starts_with("a timeout of -1 seconds is none: give 0 or more"),
        "{refused}"
    );
    stage.tasks.shutdown().await;
}

#[tokio::test]
async fn stopping_and_draining_end_a_node_that_has_nothing_to_wait_for() {
    for request in [Request::Stop, Request::Drain { timeout_s: None }] {
        let stage = Stage::open().await;
        let mut connection = stage.connect().await;
        let Answer::State(change) = connection.ask(&request).await.unwrap() else {
            panic!("no change");
        };
        assert_eq!(change.before, State::Running);
        tokio::time::timeout(PATIENCE, stage.stop.cancelled()).await.unwrap();
        // The last thing that a process does is to close the socket; its clients see that.
        let path = stage.control.path().to_owned();
        tokio::join!(stage.control.close(), connection.closed());
        assert!(!path.exists());
        stage.tasks.shutdown().await;
    }
}

#[tokio::test]
async fn pictures_come_until_the_client_says_something() {
    let stage = Stage::open().await;
    let mut connection = stage.connect().await;
    let first = connection.ask(&Request::Watch { period_s: 0.0 }).await.unwrap();
    assert!(matches!(first, Answer::Picture(_)), "{first:?}");
    assert!(matches!(connection.next().await.unwrap(), Answer::Picture(_)));
    let mut last = connection.ask(&Request::Who).await;
    while last.is_ok() {
        last = connection.next().await;
    }
    assert!(matches!(last, Err(ControlError::Broken(_))), "{last:?}");
    stage.tasks.shutdown().await;
}

#[tokio::test]
async fn what_is_no_request_is_answered_and_what_is_too_long_ends_the_line() {
    let stage = Stage::open().await;
    let mut stream = UnixStream::connect(stage.control.path()).await.unwrap();
    stream.write_all(b"hello\n").await.unwrap();
    stream
        .write_all(&vec![b'x'; 2 * socket::MAX_REQUEST as usize])
        .await
        .unwrap();
    let mut answers = Vec::new();
    // The rest of the long line is not read, which the system tells as a reset behind the answers.
    while stream.read_buf(&mut answers).await.is_ok_and(|n| n > 0) {}
    let answers = String::from_utf8(answers).unwrap();
    let answers: Vec<&str> = answers.lines().collect();
    assert_eq!(answers.len(), 2, "{answers:?}");
    assert!(
        answers[0].contains("bad_request") && answers[0].contains("expected value"),
        "{answers:?}"
    );
    assert!(answers[1].contains("longer than 4096 bytes"), "{answers:?}");
    stage.tasks.shutdown().await;
}

#[tokio::test]
async fn clients_are_bounded_and_those_who_do_not_read_disturb_nobody() {
    let stage = Stage::open().await;
    let mut deaf = Vec::new();
    for _ in 0..socket::MAX_CLIENTS - 1 {
        let mut stream = UnixStream::connect(stage.control.path()).await.unwrap();
        stream
            .write_all(&Request::Watch { period_s: 0.0 }.line())
            .await
            .unwrap();
        deaf.push(stream);
    }
    let mut last = stage.connect().await;
    last.ask(&Request::Who).await.unwrap();
    let refused = stage.connect().await.ask(&Request::Who).await.unwrap_err();
    let ControlError::Refused { code, message } = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(code, FailureCode::Busy);
    assert!(message.contains("16 others"), "{message}");
    last.ask(&Request::Who).await.unwrap();
    drop(deaf);
    let free = async {
        while stage.connect().await.ask(&Request::Who).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, free).await.unwrap();
    stage.tasks.shutdown().await;
}

#[tokio::test]
async fn several_nodes_are_found_and_dead_ones_are_swept_away() {
    let (stage, tasks) = (Stage::open().await, Tasks::new());
    let (second, _) = subject(&tasks).await;
    let second_name = name_of(&second.p2p);
    let second_path = socket_in(stage.folder.path(), &second_name);
    let second = Control::open(&second_path, second).await.unwrap();
    // What a killed process leaves behind, and things that are none of ours.
    let dead = stage.folder.path().join("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    fs::write(stage.folder.path().join("file.sock"), "mine").unwrap();
    assert!(dead.exists());

    let found = find(&stage.folders()).await;
    let mut names: Vec<String> = found.into_iter().map(|found| found.who.unwrap().name).collect();
    names.sort();
    let mut expected = [stage.name.clone(), second_name];
    expected.sort();
    assert_eq!(names, expected);
    assert!(!dead.exists());
    assert!(stage.folder.path().join("file.sock").exists());

    second.close().await;
    assert!(!second_path.exists());
    assert_eq!(find(&stage.folders()).await.len(), 1);
    assert!(find(&["/nowhere/at/all".into()]).await.is_empty());
    tasks.shutdown().await;
    stage.tasks.shutdown().await;
}

#[tokio::test]
async fn a_place_is_taken_over_from_the_dead_but_not_from_the_living() {
    let (stage, tasks) = (Stage::open().await, Tasks::new());
    let place = stage.control.path().to_owned();
    let taken = Control::open(&place, subject(&tasks).await.0).await.unwrap_err();
    assert!(taken.to_string().contains("--control"), "{taken}");
    let file = stage.folder.path().join("file");
    fs::write(&file, "mine").unwrap();
    let refused = Control::open(&file, subject(&tasks).await.0).await.unwrap_err();
    assert!(matches!(refused, ControlError::NoSocket { .. }), "{refused}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");

    let dead = stage.folder.path().join("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    let next = Control::open(&dead, subject(&tasks).await.0).await.unwrap();
    Connection::open(&dead).await.unwrap().ask(&Request::Who).await.unwrap();
    // Whoever replaces the socket meanwhile keeps theirs.
    fs::remove_file(&dead).unwrap();
    fs::write(&dead, "somebody else's").unwrap();
    next.close().await;
    assert!(dead.exists());
    let long = stage.folder.path().join("x".repeat(200));
    let refused = Control::open(&long, subject(&tasks).await.0).await.unwrap_err();
    assert!(matches!(refused, ControlError::Listen { .. }), "{refused}");
    tasks.shutdown().await;
    stage.tasks.shutdown().await;
}
