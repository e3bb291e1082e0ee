//! A bar on standard error for what takes longer than two seconds, where somebody sees it.

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;

/// What is done sooner shows none.
const AFTER: Duration = Duration::from_secs(2);
/// Size, share, rate and time left.
const TEMPLATE: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";

/// Progress in bytes.
pub(super) struct Bar {
    bar: ProgressBar,
    begun: Instant,
    is_shown: Mutex<bool>,
}

impl Bar {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template(TEMPLATE).expect("the template is right");
        bar.set_style(style);
        Self { bar, begun: Instant::now(), is_shown: Mutex::new(false) }
    }

    /// Shows how far it is.
    pub(super) fn set(&self, done: u64, total: u64, message: String) {
        let mut is_shown = self.is_shown.lock();
        if !*is_shown && self.begun.elapsed() >= AFTER && io::stderr().is_terminal() {
            *is_shown = true;
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_length(total.max(done));
        self.bar.set_position(done);
        self.bar.set_message(message);
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Since it was made.
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}
