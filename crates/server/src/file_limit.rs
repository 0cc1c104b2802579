//! How many files this process may have open, and how many connections fit into that.
//!
//! Raise   The soft limit goes up to what the settings ask for, as far as the hard one lets it.
//! Fit     Where that is too little, fewer connections are served. An engine that cannot open a
//!         file ends the process, so strangers who connect must not take its descriptors.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use slog::{Logger, warn};

use crate::config::Config;

/// The data engine opens up to `storage.open-files-max`; the files of the log engine, a few unless
/// long logs are kept in small files, have room for as many.
const ENGINES: u64 = 2;
/// Descriptors beside those of engines and connections: logs that are written, snapshots,
/// streams to other stores, the runtime's own.
const OTHER_FILES: u64 = 512;

/// What becomes of the limits.
#[derive(Debug, PartialEq, Eq)]
struct Fitted {
    /// The soft limit to set.
    soft: u64,
    /// Connections that fit.
    connections: u64,
}

/// At least half of the limit is left to connections: engines seldom use all that they may.
fn fitted(soft: u64, hard: u64, connections: u64, open_files: u64) -> Fitted {
    let others = ENGINES * open_files + OTHER_FILES;
    let soft = soft.max(hard.min(connections.saturating_add(others)));
    let room = soft.saturating_sub(others).max(soft / 2);
    Fitted {
        soft,
        connections: connections.min(room),
    }
}

/// Raises the limit of open files, and returns how many connections may be served.
pub(crate) fn fit(config: &Config, logger: &Logger) -> u64 {
    let wanted = config.server.max_connections;
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            warn!(logger, "cannot tell how many files may be open"; "reason" => %error);
            return wanted;
        }
    };
    let mut fit = fitted(soft, hard, wanted, config.storage.open_files_max);
    if fit.soft > soft
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, fit.soft, hard)
    {
        warn!(logger, "cannot raise the limit of open files"; "reason" => %error);
        fit = fitted(soft, soft, wanted, config.storage.open_files_max);
    }
    if fit.connections < wanted {
        warn!(logger, "fewer connections are served than server.max-connections: too few files \
            may be open; raise `ulimit -n`";
            "connections" => fit.connections, "open_files" => fit.soft);
    }
    fit.connections
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_into_the_files_that_may_be_open() {
        let fit = |soft, hard| fitted(soft, hard, 8192, 1024);
        let of = |soft, connections| Fitted { soft, connections };
        assert_eq!(
            fit(1024, 1 << 20),
            of(10_752, 8192),
            "raised as far as needed"
        );
        assert_eq!(fit(1 << 16, 1 << 20), of(1 << 16, 8192), "never lowered");
        assert_eq!(
            fit(1024, 8192),
            of(8192, 5632),
            "as far as the hard limit lets it"
        );
        assert_eq!(fit(1024, 1024), of(1024, 512), "half at least");
        assert_eq!(fit(u64::MAX, u64::MAX), of(u64::MAX, 8192), "no limit");
    }

    #[test]
    fn the_limit_of_this_process_is_raised_or_connections_are_fewer() {
        let config = Config::default();
        let logger = Logger::root(slog::Discard, slog::o!());
        let connections = fit(&config, &logger);
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(connections <= config.server.max_connections);
        assert!(
            connections <= soft,
            "{connections} connections, {soft} files"
        );
    }
}
