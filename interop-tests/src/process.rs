//! A child process in a group of its own: its output is collected, waits have deadlines, dropping it ends the group.

use std::{
    io::{self, Read, Write},
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::Value;

/// How often a wait looks whether the process still lives; output wakes it at once.
const LIVENESS_CHECK: Duration = Duration::from_millis(100);

/// How long the pipes of an ended process may stay open before they are taken for somebody else's.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Bytes of each output shown when something goes wrong.
const SHOWN: usize = 4000;

/// What a process has said so far.
#[derive(Debug, Default)]
pub struct Said {
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
    ended_pipes: u8,
}

#[derive(Debug, Default)]
struct Collected {
    said: Mutex<Said>,
    grown: Condvar,
}

/// A running process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    collected: Arc<Collected>,
    /// Bytes of standard output that [`Process::answer`] has used up.
    answered: usize,
}

impl Process {
    /// Starts `command`; `name` is for messages.
    ///
    /// # Errors
    ///
    /// If the program cannot be started.
    pub fn start(name: &str, command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        end_with_this_process(child.id())?;
        let collected = Arc::new(Collected::default());
        if let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) {
            collect(out, collected.clone(), |said| &mut said.out);
            collect(err, collected.clone(), |said| &mut said.err);
        }
        Ok(Self {
            name: name.to_owned(),
            child,
            collected,
            answered: 0,
        })
    }

    /// Waits until `found` sees what it looks for in what the process has said.
    ///
    /// # Errors
    ///
    /// If the process ends first or the time is up, with the end of its output.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut found: impl FnMut(&Said) -> Option<T>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + limit;
        let mut ended: Option<ExitStatus> = None;
        loop {
            {
                let said = self.collected.lock();
                if let Some(value) = found(&said) {
                    return Ok(value);
                }
                if let Some(status) = ended {
                    drop(said);
                    bail!("{} ended ({status}) before {what}{}", self.name, self.tail());
                }
                drop(
                    self.collected
                        .grown
                        .wait_timeout(said, LIVENESS_CHECK)
                        .unwrap_or_else(PoisonError::into_inner),
                );
            }
            if Instant::now() > deadline {
                bail!("{}: no {what} within {} s{}", self.name, limit.as_secs(), self.tail());
            }
            if let Some(status) = self.child.try_wait()? {
                // What it said last may still be in the pipe.
                thread::sleep(LIVENESS_CHECK);
                ended = Some(status);
            }
        }
    }

    /// Waits for a line of standard output that starts with `start`, and gives the rest of it.
    ///
    /// # Errors
    ///
    /// As [`Process::wait_for`].
    pub fn wait_line(&mut self, start: &str, limit: Duration) -> anyhow::Result<String> {
        self.wait_for(&format!("line {start:?}"), limit, |said| {
            let complete = &said.out[..said.out.rfind('\n')? + 1];
            complete
                .lines()
                .find_map(|line| line.strip_prefix(start))
                .map(|rest| rest.trim().to_owned())
        })
    }

    /// Writes one JSON line to the process.
    ///
    /// # Errors
    ///
    /// If it no longer reads.
    pub fn tell(&mut self, order: &Value) -> anyhow::Result<()> {
        self.say(&order.to_string())
    }

    /// Writes one line to the process.
    ///
    /// # Errors
    ///
    /// If it no longer reads.
    pub fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let stdin = self.child.stdin.as_mut().context("stdin is closed")?;
        writeln!(stdin, "{line}").with_context(|| format!("{} no longer listens", self.name))?;
        Ok(stdin.flush()?)
    }

    /// The next line of standard output, as JSON. Lines that are no JSON objects are passed over: Python libraries
    /// sometimes print.
    ///
    /// # Errors
    ///
    /// As [`Process::wait_for`].
    pub fn answer(&mut self, limit: Duration) -> anyhow::Result<Value> {
        let mut position = self.answered;
        let value = self.wait_for("JSON line", limit, |said| {
            while let Some(length) = said.out[position..].find('\n') {
                let line = &said.out[position..position + length];
                position += length + 1;
                if let Ok(value @ Value::Object(_)) = serde_json::from_str(line) {
                    return Some(value);
                }
            }
            None
        })?;
        self.answered = position;
        Ok(value)
    }

    /// [`Process::tell`] and [`Process::answer`].
    ///
    /// # Errors
    ///
    /// Theirs.
    pub fn ask(&mut self, order: &Value, limit: Duration) -> anyhow::Result<Value> {
        self.tell(order)?;
        self.answer(limit)
    }

    /// Everything said so far on standard output and standard error.
    pub fn said(&self) -> Said {
        let said = self.collected.lock();
        Said {
            out: said.out.clone(),
            err: said.err.clone(),
            ended_pipes: said.ended_pipes,
        }
    }

    /// kill -9 for the whole group.
    pub fn kill(&mut self) {
        self.signal("KILL", "-");
        // It is dead; an error here means that it was waited for before.
        drop(self.child.wait());
    }

    /// Stops the whole group where it is: its connections stay open, and nothing answers on them.
    pub fn freeze(&self) {
        self.signal("STOP", "-");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal("CONT", "-");
    }

    /// What Ctrl-C sends, to the process alone: its helpers are its own business.
    pub fn interrupt(&self) {
        self.signal("INT", "");
    }

    /// Waits for the process to end by itself.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub fn wait_exit(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.wait_for_last_words();
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} did not end within {} s{}", self.name, limit.as_secs(), self.tail());
            }
            thread::sleep(LIVENESS_CHECK);
        }
    }

    /// What a process says last is still in its pipes when it has ended. A grandchild may keep them open for ever.
    fn wait_for_last_words(&self) {
        let deadline = Instant::now() + LAST_WORDS;
        let mut said = self.collected.lock();
        while said.ended_pipes < 2 && Instant::now() < deadline {
            let (next, _) = self
                .collected
                .grown
                .wait_timeout(said, LIVENESS_CHECK)
                .unwrap_or_else(PoisonError::into_inner);
            said = next;
        }
    }

    fn signal(&self, signal: &str, group: &str) {
        let kill = format!("kill -s {signal} -- {group}{}", self.child.id());
        // The process may have ended meanwhile, which is what was wanted.
        drop(Command::new("sh").arg("-c").arg(kill).stderr(Stdio::null()).status());
    }

    fn tail(&self) -> String {
        let said = self.said();
        format!("\n--- stdout\n{}\n--- stderr\n{}", last(&said.out), last(&said.err))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let report = format!("\n=== {} (the test failed){}\n", self.name, self.tail());
            drop(io::stderr().write_all(report.as_bytes()));
        }
    }
}

impl Collected {
    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sees to it that a group is killed also if the test itself is killed and drops nothing.
fn end_with_this_process(group: u32) -> anyhow::Result<()> {
    tell_watcher(&format!("kill -s KILL -- -{group}"))
}

/// The same for a network namespace, whatever runs in it.
///
/// # Errors
///
/// If there is no shell.
pub(crate) fn end_namespace_with_this_process(name: &str) -> anyhow::Result<()> {
    tell_watcher(&format!("ip netns del {name}"))
}

/// A shell reads commands from a pipe; when this process is gone, whatever the reason, the pipe ends, and it runs them.
fn tell_watcher(last_will: &str) -> anyhow::Result<()> {
    const WATCH: &str = "while read -r line; do will=\"$will$line;\"; done; eval \"$will\" 2>/dev/null";
    static WATCHER: Mutex<Option<ChildStdin>> = Mutex::new(None);
    let mut watcher = WATCHER.lock().unwrap_or_else(PoisonError::into_inner);
    if watcher.is_none() {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(WATCH).process_group(0);
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        *watcher = shell.spawn().context("cannot start a shell")?.stdin.take();
    }
    if let Some(pipe) = watcher.as_mut() {
        writeln!(pipe, "{last_will}")?;
    }
    Ok(())
}

/// Reads a pipe to its end in a thread. The thread outlives the process if a grandchild keeps the pipe open.
fn collect(mut pipe: impl Read + Send + 'static, collected: Arc<Collected>, place: fn(&mut Said) -> &mut String) {
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        let mut pending = Vec::new();
        while let Ok(n @ 1..) = pipe.read(&mut buffer) {
            pending.extend_from_slice(&buffer[..n]);
            // A character may be cut in two; only whole ones are passed on.
            let whole = match std::str::from_utf8(&pending) {
                Err(error) if error.error_len().is_none() => error.valid_up_to(),
                _ => pending.len(),
            };
            let text = String::from_utf8_lossy(&pending[..whole]).into_owned();
            pending.drain(..whole);
            place(&mut collected.lock()).push_str(&text);
            collected.grown.notify_all();
        }
        collected.lock().ended_pipes += 1;
        collected.grown.notify_all();
    });
}

fn last(text: &str) -> &str {
    let start = (text.len().saturating_sub(SHOWN)..=text.len()).find(|at| text.is_char_boundary(*at));
    &text[start.unwrap_or(0)..]
}
