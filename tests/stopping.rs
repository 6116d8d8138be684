//! The program when it is told to stop before it has begun to work.
#![expect(clippy::unwrap_used, reason = "all of this program is a test")]

#[path = "common/program.rs"]
mod program;

use std::{
    fs::{self, OpenOptions},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use self::program::sepal;

/// For what must happen sooner or later.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(10);

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Process {
    fn start(folder: &Path, line: &str) -> Self {
        let mut command = sepal(folder, line);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// How it ended, if it did.
    fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "never seen: {what}");
        thread::sleep(LOOK);
    }
}

#[test]
fn a_server_stops_while_the_model_of_its_jobs_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (folder, model) = (folder.path(), folder.path().join("model"));
    fs::create_dir(&model).unwrap();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/src/model/demo/config.json");
    fs::copy(config, model.join("config.json")).unwrap();
    let tokenizer = model.join("tokenizer.json");
    assert!(Command::new("mkfifo").arg(&tokenizer).status().unwrap().success());
    // Whoever reads it waits for its end, which does not come as long as it is open for writing.
    let _open = OpenOptions::new().read(true).write(true).open(&tokenizer).unwrap();

    let line = "serve ./model --jobs --new-swarm --listen /ip4/127.0.0.1/tcp/0 --throughput 1 --control socket";
    let mut node = Process::start(folder, line);
    until("the control socket", || {
        assert_eq!(node.ended(), None);
        folder.join("socket").exists().then_some(())
    });
    let mut order = Process::start(folder, "stop --control socket");
    let ends = until("the end of the node", || node.ended());
    let told = until("the end of the order", || order.ended());
    assert!(ends.success() && told.success(), "{ends} {told}");
    assert!(!folder.join("socket").exists());
}
