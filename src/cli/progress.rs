//! How far downloads are: a bar on a terminal, a line in the log every few seconds elsewhere.

use std::{
    io::{self, IsTerminal, Write},
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tracing::info;

use super::logging;
use crate::model::{Download, Progress, Transfer};

/// Between two lines in the log.
const LOG_PERIOD: Duration = Duration::from_secs(5);
/// Between two looks of a bar, so that the rate moves also when nothing comes.
const TICK: Duration = Duration::from_millis(250);
/// The bar takes what the other columns leave.
const TEMPLATE: &str =
    "{prefix} [{wide_bar}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
/// Most characters of a model's name beside a bar: with the longest numbers the line still has 80 columns.
const MAX_NAME: usize = 24;

/// All bars, so that lines of the log go above them.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Shows every download.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bars;

impl Progress for Bars {
    fn begin(&self, download: &Download) -> Box<dyn Transfer> {
        if logging::for_programs() || !io::stderr().is_terminal() {
            return Box::new(Lines::begin(download));
        }
        let bar = BARS.add(bar(download));
        bar.enable_steady_tick(TICK);
        Box::new(Bar(bar))
    }
}

fn bar(download: &Download) -> ProgressBar {
    let bar = ProgressBar::new(download.total).with_position(download.present);
    if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
        bar.set_style(style.progress_chars("=> "));
    }
    let name = download.what.rsplit('/').next().unwrap_or_default();
    bar.set_prefix(name.chars().take(MAX_NAME).collect::<String>());
    // The rate is that of what comes now.
    bar.reset_eta();
    bar
}

#[derive(Debug)]
struct Bar(ProgressBar);

impl Transfer for Bar {
    fn received(&self, _file: &str, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        BARS.remove(&self.0);
    }
}

#[derive(Debug)]
struct Lines {
    what: String,
    total: u64,
    present: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    begun: Instant,
    told: Instant,
    /// Bytes since then.
    received: u64,
}

impl Lines {
    fn begin(download: &Download) -> Self {
        info!(
            bytes = download.total,
            already_here = download.present,
            "downloading {}",
            download.what
        );
        let now = Instant::now();
        Self {
            what: download.what.clone(),
            total: download.total,
            present: download.present,
            state: Mutex::new(State {
                begun: now,
                told: now,
                received: 0,
            }),
        }
    }
}

impl Transfer for Lines {
    fn received(&self, file: &str, bytes: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.received += bytes;
        if state.told.elapsed() < LOG_PERIOD {
            return;
        }
        state.told = Instant::now();
        let rate = state.received as f64 / state.begun.elapsed().as_secs_f64();
        let done = self.present + state.received;
        info!(
            file,
            percent = (done * 100).checked_div(self.total),
            mb_per_s = format!("{:.1}", rate / 1e6),
            left_s = format!("{:.0}", self.total.saturating_sub(done) as f64 / rate.max(1.0)),
            "downloading {}",
            self.what
        );
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.present + state.received >= self.total {
            let seconds = format!("{:.1}", state.begun.elapsed().as_secs_f64());
            info!(seconds, "downloaded {}", self.what);
        }
    }
}

/// stderr, with bars out of the way while it is written to.
#[derive(Debug, Default)]
pub(super) struct AroundBars;

impl Write for AroundBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use indicatif::{ProgressDrawTarget, TermLike};

    use super::*;

    /// Keeps what is written to it.
    #[derive(Clone, Debug, Default)]
    struct Screen(Arc<Mutex<Vec<String>>>);

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            80
        }

        fn move_cursor_up(&self, _n: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _n: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _n: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _n: usize) -> io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push(text.to_owned());
            Ok(())
        }

        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_bar_fits_a_line_of_80_columns_whatever_the_name_of_the_model() {
        for what in [
            "org/m",
            "an-organisation/a-model-with-a-very-long-name-of-its-own-70B-Instruct",
        ] {
            let screen = Screen::default();
            let bar = bar(&Download {
                what: what.to_owned(),
                total: (1 << 40) - 1,
                present: (1 << 40) - (1 << 30),
            });
            bar.set_draw_target(ProgressDrawTarget::term_like(Box::new(screen.clone())));
            bar.force_draw();
            let written = screen.0.lock().unwrap().clone();
            let lines: Vec<&String> = written.iter().filter(|text| text.contains(" left")).collect();
            assert!(!lines.is_empty(), "{written:?}");
            for line in lines {
                assert!(line.chars().count() <= 80, "{line}");
            }
        }
    }
}
