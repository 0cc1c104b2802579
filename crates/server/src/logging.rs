//! Log lines: structured, on standard error, written by a thread of their own.

use std::sync::Arc;

use slog::{Drain, Level, Logger, OwnedKVList, Record, o};
use strata_raftstore::Counter;

use crate::config::{LogConfig, LogFormat, LogLevel};

/// Makes the logger of a node. Lines beyond the queue are dropped and counted.
pub(crate) fn logger(config: &LogConfig, store_id: u64, dropped: Arc<Counter>) -> Logger {
    let level = match config.level {
        LogLevel::Error => Level::Error,
        LogLevel::Warning => Level::Warning,
        LogLevel::Info => Level::Info,
        LogLevel::Debug => Level::Debug,
    };
    let lines = config.queue_lines as usize;
    let drain = match config.format {
        LogFormat::Text => {
            let decorator = slog_term::PlainDecorator::new(std::io::stderr());
            queued(
                slog_term::FullFormat::new(decorator)
                    .use_utc_timestamp()
                    .build()
                    .fuse(),
                lines,
            )
        }
        LogFormat::Json => queued(slog_json::Json::default(std::io::stderr()).fuse(), lines),
    };
    let counted = Counted { drain, dropped };
    let filtered = slog::LevelFilter::new(counted, level).fuse();
    Logger::root(filtered, o!("store" => store_id))
}

fn queued<D>(drain: D, lines: usize) -> slog_async::Async
where
    D: Drain<Ok = (), Err = slog::Never> + Send + 'static,
{
    slog_async::Async::new(drain)
        .chan_size(lines)
        .overflow_strategy(slog_async::OverflowStrategy::Drop)
        .build()
}

/// Counts lines that found no room.
struct Counted {
    drain: slog_async::Async,
    dropped: Arc<Counter>,
}

impl Drain for Counted {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
        if self.drain.log(record, values).is_err() {
            self.dropped.increment();
        }
        Ok(())
    }
}
