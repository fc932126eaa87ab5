//! The bar that `run` shows on a terminal while partitions are restored; log lines go above it.

use std::io::{IsTerminal, Write, stderr};
use std::sync::LazyLock;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::instance::view::Restores;

/// What is drawn on standard error.
static DRAWN: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Takes log lines.
pub(super) struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        DRAWN.suspend(|| stderr().write(line))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        stderr().flush()
    }
}

/// The bar, while there is something to show.
#[derive(Default)]
pub(super) struct Bar(Option<ProgressBar>);

impl Bar {
    /// What is restored now.
    pub(super) fn show(&mut self, restores: Option<&Restores>) {
        let Some(restores) = restores.filter(|restores| restores.remaining > 0 && stderr().is_terminal()) else {
            if let Some(bar) = self.0.take() {
                bar.finish_and_clear();
            }
            return;
        };
        let (done, left) = (restores.restored.unsigned_abs(), restores.remaining.unsigned_abs());
        let bar = self.0.get_or_insert_with(|| DRAWN.add(bar()));
        bar.set_length(done + left);
        bar.set_position(done);
        let eta = restores.eta.map(|eta| format!(", about {}", humantime::format_duration(eta))).unwrap_or_default();
        bar.set_message(format!("{} partitions{eta}", restores.partitions));
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("restoring {wide_bar} {human_pos}/{human_len} records, {msg}");
    ProgressBar::no_length().with_style(style.expect("a constant template"))
}
