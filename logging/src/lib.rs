//! What a program says: one JSON object a line on standard error, and how many of them were warnings and errors, so that
//! somebody who does not read them knows that there is something to read.

use std::{io, sync::LazyLock};

use prometheus::{IntCounterVec, Opts, Registry};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer, Registry as Spans,
    layer::{Context, SubscriberExt as _},
    util::SubscriberInitExt as _,
};

/// Levels that are counted.
const COUNTED: [(Level, &str); 2] = [(Level::WARN, "warn"), (Level::ERROR, "error")];

/// Of this process, whoever asks.
static RECORDS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let opts = Opts::new(
        "quorumail_log_records_total",
        "Lines of the log that tell of something that is not as it should be, by level (warn, error).",
    );
    let records = IntCounterVec::new(opts, &["level"]).expect("the name is valid");
    for (_, name) in COUNTED {
        // Zero is a figure as well.
        records.with_label_values(&[name]);
    }
    records
});

/// Logs from now on. RUST_LOG says what; `otherwise`, where it is not set or is not understood, in the same notation. Called
/// once, by a program.
pub fn start(otherwise: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(otherwise));
    let lines = tracing_subscriber::fmt::layer().json().with_writer(io::stderr);
    Spans::default().with(filter).with(lines).with(Count).init();
}

/// Shows how many warnings and errors there were since the start. What RUST_LOG leaves out is not counted.
///
/// # Errors
/// When it is registered there already.
pub fn register(registry: &Registry) -> Result<(), prometheus::Error> {
    registry.register(Box::new(RECORDS.clone()))
}

struct Count;

impl<S: Subscriber> Layer<S> for Count {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if let Some((_, name)) = COUNTED.iter().find(|(level, _)| level == event.metadata().level()) {
            RECORDS.with_label_values(&[name]).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_and_errors_are_counted_unless_they_are_left_out() {
        let registry = Registry::new();
        register(&registry).unwrap();
        let log = Spans::default().with(EnvFilter::new("info,quiet=error")).with(Count);
        tracing::subscriber::with_default(log, || {
            tracing::info!("all is well");
            tracing::warn!("something");
            tracing::warn!(target: "quiet", "of no interest");
            tracing::error!(target: "quiet", "of interest");
        });
        let of = |name: &str| RECORDS.with_label_values(&[name]).get();
        assert_eq!((of("warn"), of("error")), (1, 1));
        assert_eq!(registry.gather()[0].get_metric().len(), COUNTED.len(), "both, though nothing happened");
    }
}
