//! Where logs go: stderr, as text or as JSON, at the level that was asked for, which may be changed while the program runs.
//! The last warnings and errors are remembered for whoever asks.

mod json;

use std::{
    collections::VecDeque,
    error::Error,
    fmt::{self, Write},
    io::IsTerminal,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

use clap::ValueEnum;
use serde_json::{Map, Value};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::Targets, layer::Context, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use self::json::Json;

use super::{environment, progress};
use crate::control::{Log, protocol::LogRow};

/// Warnings and errors that are remembered.
const MAX_RECENT: usize = 32;

/// Characters kept of one.
const MAX_TEXT: usize = 400;

/// The words for levels, and what each means: libraries say less than this program. (libp2p warns that the first node of a
/// swarm knows nobody.)
const LEVELS: [(&str, &str); 6] = [
    ("off", "off"),
    ("error", "error"),
    ("warn", "warn,libp2p_kad=error"),
    ("info", "warn,libp2p_kad=error,sepal=info"),
    ("debug", "info,sepal=debug"),
    ("trace", "debug,sepal=trace"),
];

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A line for people, in colours on a terminal.
    #[default]
    Text,
    /// One object a line, for programs.
    Json,
}

/// How much of what happens is logged, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) verbose: u8,
    pub(super) quiet: bool,
    /// The command tells its own story on stdout.
    pub(super) quieter: bool,
    pub(super) format: Format,
}

impl Wanted {
    /// The directives for that. Of commands that tell a story, warnings would interrupt it.
    fn directives(self) -> &'static str {
        match self.verbose {
            0 if self.quieter => meaning("error"),
            0 if self.quiet => meaning("warn"),
            0 => meaning("info"),
            1 => meaning("debug"),
            _ => meaning("trace"),
        }
    }
}

/// What this process logs, once it does.
static LOGGING: OnceLock<Arc<Logging>> = OnceLock::new();

#[derive(Debug)]
struct Logging {
    format: Format,
    filter: reload::Handle<EnvFilter, Registry>,
    directives: Mutex<String>,
    recent: Recent,
}

/// The last warnings and errors.
#[derive(Clone, Debug, Default)]
struct Recent(Arc<Mutex<VecDeque<Said>>>);

#[derive(Debug)]
struct Said {
    at: Instant,
    level: &'static str,
    target: String,
    text: String,
}

/// Something that takes part in logging.
pub(super) type Boxed = Box<dyn Layer<Registry> + Send + Sync>;

/// Starts logging, and `traces` if that is wanted. Returns what a person should know who set `RUST_LOG`.
pub(super) fn init(wanted: Wanted, traces: Option<Boxed>) -> Option<String> {
    let (filter, warning) = chosen(environment::rust_log().as_deref(), wanted);
    let directives = Mutex::new(filter.to_string());
    let (filter, handle) = reload::Layer::new(filter);
    let to_stderr = to_stderr(wanted.format).with_filter(filter);
    let recent = Recent::default();
    let worth_remembering = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("libp2p_kad", LevelFilter::ERROR);
    tracing_subscriber::registry()
        .with(
            [Some(to_stderr.boxed()), traces]
                .into_iter()
                .flatten()
                .collect::<Vec<Boxed>>(),
        )
        .with(recent.clone().with_filter(worth_remembering))
        .init();
    LOGGING.get_or_init(|| {
        Arc::new(Logging {
            format: wanted.format,
            filter: handle,
            directives,
            recent,
        })
    });
    if wanted.format == Format::Json {
        // Whoever reads lines of JSON reads nothing else.
        std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    }
    warning
}

/// What the variable `RUST_LOG` asks for; if it is not set, or cannot be understood, which is worth a warning, what is
/// wanted.
fn chosen(variable: Option<&str>, wanted: Wanted) -> (EnvFilter, Option<String>) {
    let usual = || EnvFilter::new(wanted.directives());
    match variable.map(|text| (text, EnvFilter::builder().parse(text))) {
        None => (usual(), None),
        Some((_, Ok(filter))) => (filter, None),
        Some((text, Err(error))) => {
            let why = expected(text, &format!(": {error}"));
            (usual(), Some(format!("RUST_LOG does not count: {why}")))
        }
    }
}

fn to_stderr(format: Format) -> Boxed {
    match format {
        Format::Text => tracing_subscriber::fmt::layer()
            .with_writer(progress::AroundBars::default)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .boxed(),
        Format::Json => Json(progress::AroundBars::default).boxed(),
    }
}

/// What the program says on stderr beside its log, as a line of JSON if that is what is logged; `None` where people read.
pub(super) fn as_json(level: Level, message: &str, hint: Option<&str>) -> Option<String> {
    let fields = hint.map(|hint| ("hint".to_owned(), Value::from(hint)));
    for_programs().then(|| json::line(level, message, Map::from_iter(fields)))
}

/// Whether all that goes to stderr is lines of JSON.
pub(super) fn for_programs() -> bool {
    LOGGING.get().is_some_and(|logging| logging.format == Format::Json)
}

/// What this process logs, for whoever may ask and change it; `None` before [`init`].
pub(super) fn running() -> Option<Arc<dyn Log>> {
    LOGGING.get().map(|logging| logging.clone() as Arc<dyn Log>)
}

/// The directives behind the word for a level; anything else stands for itself.
fn meaning(level: &str) -> &str {
    let known = LEVELS.iter().find(|(word, _)| level.eq_ignore_ascii_case(word));
    known.map_or(level, |(_, directives)| directives)
}

/// The filter that `level` stands for.
///
/// # Errors
/// What was expected instead.
fn parse(level: &str) -> Result<EnvFilter, String> {
    let directives = meaning(level.trim());
    // A word alone would be taken for the name of a part of the program, all of which is logged.
    let is_word = |part: &str| !part.contains(['=', '[', ':']) && LEVELS.iter().all(|(word, _)| *word != part.trim());
    if directives.split(',').any(is_word) {
        return Err(expected(level, ""));
    }
    EnvFilter::builder()
        .parse(directives)
        .map_err(|error| expected(level, &format!(": {error}")))
}

/// What was expected in the place of `level`.
fn expected(level: &str, why: &str) -> String {
    let words: Vec<&str> = LEVELS.iter().map(|(word, _)| *word).collect();
    let words = words.join(", ");
    format!("expected one of {words}, or directives such as info,sepal::p2p=trace, got {level:?}{why}")
}

impl Log for Logging {
    fn level(&self) -> String {
        lock(&self.directives).clone()
    }

    fn set_level(&self, level: &str) -> Result<(), String> {
        let filter = parse(level)?;
        let mut directives = lock(&self.directives);
        let text = filter.to_string();
        self.filter.reload(filter).map_err(|error| error.to_string())?;
        *directives = text;
        Ok(())
    }

    fn recent(&self) -> Vec<LogRow> {
        let said = lock(&self.recent.0);
        let rows = said.iter().map(|said| LogRow {
            age_s: said.at.elapsed().as_secs_f64(),
            level: said.level.to_owned(),
            target: said.target.clone(),
            text: said.text.clone(),
        });
        rows.collect()
    }
}

impl<S: Subscriber> Layer<S> for Recent {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let metadata = event.metadata();
        let mut recent = lock(&self.0);
        if recent.len() == MAX_RECENT {
            recent.pop_front();
        }
        recent.push_back(Said {
            at: Instant::now(),
            level: metadata.level().as_str(),
            target: metadata.target().to_owned(),
            text: text.0.chars().take(MAX_TEXT).collect(),
        });
    }
}

/// What an event says: its message, then its fields.
#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => {
                let rest = std::mem::take(&mut self.0);
                write!(self.0, "{value:?}{rest}")
            }
            name => write!(self.0, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.record_debug(field, &format_args!("{}", chain(value)));
    }
}

/// An error and its causes.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut chain = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a string does not fail.
        let _ = write!(chain, ": {cause}");
        source = cause.source();
    }
    chain
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_directives_are_levels_and_anything_else_is_explained() {
        for level in ["info", "TRACE", "off", "warn,sepal::p2p=trace", "sepal=debug"] {
            parse(level).unwrap();
        }
        assert_eq!(parse("debug").unwrap().to_string(), "sepal=debug,info");
        for wrong in ["loud", "", "info,loud", "sepal=loud"] {
            let error = parse(wrong).unwrap_err();
            assert!(
                error.contains("error, warn, info") && error.contains(wrong),
                "{wrong}: {error}"
            );
        }
    }

    #[test]
    fn flags_choose_the_level_unless_the_variable_does() {
        let wanted = |flag: &str| Wanted {
            verbose: flag.matches('v').count().try_into().unwrap(),
            quiet: flag == "q",
            quieter: flag == "story",
            format: Format::Text,
        };
        for (flag, level) in [
            ("", "info"),
            ("q", "warn"),
            ("story", "error"),
            ("v", "debug"),
            ("vv", "trace"),
        ] {
            assert_eq!(wanted(flag).directives(), meaning(level), "{flag}");
        }
        let usual = EnvFilter::new(meaning("warn")).to_string();
        let (filter, warning) = chosen(None, wanted("q"));
        assert_eq!((filter.to_string(), warning), (usual.clone(), None));
        let (filter, warning) = chosen(Some("sepal=debug"), wanted("q"));
        assert_eq!((filter.to_string().as_str(), warning), ("sepal=debug", None));
        let (filter, warning) = chosen(Some("sepal=loud"), wanted("q"));
        assert_eq!(filter.to_string(), usual);
        let warning = warning.unwrap();
        assert!(
            warning.starts_with("RUST_LOG does not count: ") && warning.contains("\"sepal=loud\""),
            "{warning}"
        );
    }

    #[test]
    fn the_last_warnings_are_remembered_with_their_causes() {
        let recent = Recent::default();
        let subscriber = tracing_subscriber::registry().with(recent.clone().with_filter(LevelFilter::WARN));
        tracing::subscriber::with_default(subscriber, || {
            (0..MAX_RECENT).for_each(|n| tracing::warn!(n, "early"));
            tracing::info!("not worth it");
            let cause = std::io::Error::other("no \u{1b}[31mdisk");
            let error = anyhow::Error::new(cause).context("cannot write");
            let error: &(dyn Error + 'static) = error.as_ref();
            tracing::error!(error, file = "a", "lost");
            tracing::warn!("{}", "x".repeat(10 * MAX_TEXT));
        });
        let said = lock(&recent.0);
        assert_eq!(said.len(), MAX_RECENT);
        assert_eq!(said[0].text, "early n=2");
        let lost = &said[MAX_RECENT - 2];
        assert_eq!(lost.level, "ERROR");
        assert_eq!(lost.text, "lost error=cannot write: no \u{1b}[31mdisk file=a");
        assert_eq!(said[MAX_RECENT - 1].text.len(), MAX_TEXT);
    }
}
