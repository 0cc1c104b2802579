//! The settings of a node: defaults, then the file, then the environment.
//!
//! The file is TOML with one table a section. An unknown key or a bad value is refused
//! with its line and the nearest known key. Each key is also the environment variable
//! `STRATA_SECTION_KEY`; an unknown variable with that beginning is only a warning,
//! because other programs may set some of their own.
//!
//! Elsewhere: the table of keys (`keys`), kinds of values (`value`).

mod keys;
mod value;

use std::path::Path;

use toml::de::{DeTable, DeValue};

pub use keys::{
    ApiConfig, Config, KEYS, Key, LogConfig, RaftConfig, SECTIONS, SchedulerConfig, ServerConfig,
    SetError, SnapshotConfig, StorageConfig, StoreConfig, TransportConfig,
};
pub use value::{ApiV1, LogFormat, LogLevel, Setting, Size, Switch};

/// Begins every environment variable that sets a key.
pub const ENVIRONMENT_PREFIX: &str = "STRATA_";

/// Variables with our beginning that are no settings of a node.
const OTHER_VARIABLES: &[&str] = &["STRATA_ENDPOINTS", "STRATA_BIN"];

/// Most bytes that the commands of one shared entry may write or answer with.
const REWRITES_MAX_BYTES: u64 = 1 << 30;

/// Why settings were refused. Each message is one line that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {reason}")]
    Unreadable {
        /// The file.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// The file is no TOML.
    #[error("{path} line {line}: {reason}")]
    Malformed {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// What the parser said, in one line.
        reason: String,
    },
    /// The file names a setting that does not exist.
    #[error("{path} line {line}: unknown key {key}; the nearest known key is {nearest}")]
    UnknownKey {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// What stands there.
        key: String,
        /// The known key with the fewest letters changed.
        nearest: &'static str,
    },
    /// A value does not fit its setting.
    #[error("{place}: bad value of {key}: {reason}")]
    BadValue {
        /// File and line, or the environment variable.
        place: String,
        /// The setting.
        key: String,
        /// What was expected.
        reason: String,
    },
    /// Two settings contradict each other.
    #[error("bad configuration: {0}")]
    Contradiction(String),
}

impl RaftConfig {
    /// The shortest time without a leader after which a replica campaigns, and for which it keeps
    /// from voting after word from one (Raft dissertation, section 6.4.1).
    #[must_use]
    pub fn election_timeout(&self) -> std::time::Duration {
        self.tick_interval * self.election_ticks as u32
    }
}

impl Config {
    /// Reads the settings: defaults, then `file`, then `environment`. Returns them with
    /// the warnings that the caller should log.
    ///
    /// # Errors
    /// [`ConfigError`], one line each.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(Config, Vec<String>), ConfigError> {
        let mut config = Config::default();
        if let Some(path) = file {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
                path: name.clone(),
                reason: error.to_string(),
            })?;
            config.read_file(&name, &text)?;
        }
        let warnings = config.read_environment(environment)?;
        config.check()?;
        Ok((config, warnings))
    }

    /// Takes over what a file says. `path` is named in errors only.
    ///
    /// # Errors
    /// [`ConfigError`] with the line.
    pub fn read_file(&mut self, path: &str, text: &str) -> Result<(), ConfigError> {
        let document = DeTable::parse(text).map_err(|error| ConfigError::Malformed {
            path: path.to_owned(),
            line: line_at(text, error.span().map_or(0, |span| span.start)),
            reason: error.message().replace('\n', " "),
        })?;
        for (section, value) in document.into_inner() {
            let DeValue::Table(table) = value.get_ref() else {
                return Err(unknown_key(
                    path,
                    text,
                    section.span().start,
                    section.get_ref(),
                ));
            };
            for (key, value) in table {
                let name = format!("{}.{}", section.get_ref(), key.get_ref());
                let line = line_at(text, key.span().start);
                let place = format!("{path} line {line}");
                let set = value_text(value.get_ref())
                    .map_err(SetError::BadValue)
                    .and_then(|value| self.set(&name, &value));
                match set {
                    Ok(()) => {}
                    // An unknown name is the better explanation, whatever its value is.
                    _ if !KEYS.iter().any(|known| known.name == name) => {
                        return Err(unknown_key(path, text, key.span().start, &name));
                    }
                    Err(SetError::UnknownKey) => {
                        return Err(unknown_key(path, text, key.span().start, &name));
                    }
                    Err(SetError::BadValue(reason)) => {
                        return Err(ConfigError::BadValue {
                            place,
                            key: name,
                            reason,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes over what the environment says; returns warnings about unknown variables.
    ///
    /// # Errors
    /// [`ConfigError::BadValue`] naming the variable.
    pub fn read_environment(
        &mut self,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Vec<String>, ConfigError> {
        let mut warnings = Vec::new();
        let mut ours: Vec<_> = environment
            .into_iter()
            .filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX))
            .filter(|(name, _)| !OTHER_VARIABLES.contains(&name.as_str()))
            .collect();
        ours.sort();
        for (variable, text) in ours {
            let Some(key) = KEYS
                .iter()
                .find(|key| environment_variable(key.name) == variable)
            else {
                warnings.push(format!(
                    "the environment variable {variable} names no setting and is ignored"
                ));
                continue;
            };
            self.set(key.name, &text).map_err(|error| match error {
                SetError::BadValue(reason) => ConfigError::BadValue {
                    place: variable,
                    key: key.name.to_owned(),
                    reason,
                },
                SetError::UnknownKey => unreachable!("{} is in the table", key.name),
            })?;
        }
        Ok(warnings)
    }

    /// Checks settings that depend on each other.
    ///
    /// # Errors
    /// [`ConfigError::Contradiction`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |text: String| Err(ConfigError::Contradiction(text));
        if self.raft.heartbeat_ticks * 3 > self.raft.election_ticks {
            return refuse(format!(
                "raft.heartbeat-ticks ({}) must be at most a third of raft.election-ticks ({})",
                self.raft.heartbeat_ticks, self.raft.election_ticks
            ));
        }
        if self.server.max_message_size.0 < self.raft.max_entry_size.0.saturating_mul(2) {
            return refuse(format!(
                "server.max-message-size ({}) must be at least twice raft.max-entry-size ({})",
                self.server.max_message_size.render(),
                self.raft.max_entry_size.render()
            ));
        }
        // A store refuses a larger frame by ending the stream, and would get it again.
        for (name, size) in [
            ("raft.max-message-size", self.raft.max_message_size),
            ("raft.shared-entry-size", self.raft.shared_entry_size),
            ("transport.frame-size", self.transport.frame_size),
        ] {
            if self.server.max_message_size.0 < size.0.saturating_mul(2) {
                return refuse(format!(
                    "server.max-message-size ({}) must be at least twice {name} ({})",
                    self.server.max_message_size.render(),
                    size.render()
                ));
            }
        }
        // Each of them may write and answer a whole value, and an entry is applied as a whole.
        let rewrites = self.raft.shared_entry_rewrites;
        if self.raft.max_entry_size.0.saturating_mul(rewrites) > REWRITES_MAX_BYTES {
            return refuse(format!(
                "raft.shared-entry-rewrites ({rewrites}) times raft.max-entry-size ({}) must not \
                 be above {}",
                self.raft.max_entry_size.render(),
                Size(REWRITES_MAX_BYTES).render()
            ));
        }
        if self.transport.reconnect_max < self.transport.reconnect_min {
            return refuse(
                "transport.reconnect-max must not be below transport.reconnect-min".to_owned(),
            );
        }
        if self.scheduler.store_down_time < self.scheduler.report_interval * 2 {
            return refuse(
                "scheduler.store-down-time must be at least twice scheduler.report-interval"
                    .to_owned(),
            );
        }
        let longest_election = self.raft.election_timeout() * 2;
        if self.raft.peer_stale_time < longest_election {
            return refuse(format!(
                "raft.peer-stale-time ({}) must be at least the longest election time-out ({}), \
                 twice raft.election-ticks ticks",
                self.raft.peer_stale_time.render(),
                longest_election.render()
            ));
        }
        self.check_snapshots().map_or(Ok(()), refuse)
    }

    /// What contradicts itself in the section of snapshots.
    fn check_snapshots(&self) -> Option<String> {
        let snapshot = &self.snapshot;
        if snapshot.keep_time < snapshot.give_up_time {
            return Some(format!(
                "snapshot.keep-time ({}) must be at least snapshot.give-up-time ({})",
                snapshot.keep_time.render(),
                snapshot.give_up_time.render()
            ));
        }
        // A chunk waits for one of each other snapshot before it leaves. A receiver that
        // hears nothing for stall-time ends the stream, and nothing would ever get on.
        let round_bytes = u128::from(snapshot.chunk_size.0) * u128::from(snapshot.max_concurrent);
        let heard_bytes =
            u128::from(snapshot.rate_limit.0) * snapshot.stall_time.as_millis() / 1000;
        if snapshot.rate_limit.0 > 0 && heard_bytes < 2 * round_bytes {
            return Some(format!(
                "snapshot.rate-limit ({}) must send two chunks of each of snapshot.max-concurrent \
                 ({}) snapshots within snapshot.stall-time ({}); smaller chunks or fewer \
                 snapshots at a time allow a lower limit",
                snapshot.rate_limit.render(),
                snapshot.max_concurrent,
                snapshot.stall_time.render()
            ));
        }
        None
    }

    /// The documented file: every key with its meaning and default.
    pub fn documented() -> String {
        let mut text = String::from(
            "# Settings of a StrataKV node, each with its default. Durations are written 200ms,\n\
             # 1s or 5m, sizes 100B, 512KiB or 8MiB. Every key is also an environment variable:\n\
             # raft.tick-interval is STRATA_RAFT_TICK_INTERVAL, which wins over this file.\n",
        );
        for (section, doc) in SECTIONS {
            text.push_str("\n#");
            text.push_str(&doc.join("\n#"));
            text.push_str(&format!("\n[{section}]\n"));
            for key in KEYS {
                let Some(name) = key
                    .name
                    .strip_prefix(section)
                    .and_then(|rest| rest.strip_prefix('.'))
                else {
                    continue;
                };
                let quote = if key.bare { "" } else { "\"" };
                text.push('#');
                text.push_str(&key.doc.join("\n#"));
                text.push_str(&format!("\n{name} = {quote}{}{quote}\n", key.default));
            }
        }
        text
    }
}

/// The environment variable of a key: `raft.tick-interval` is `STRATA_RAFT_TICK_INTERVAL`.
pub fn environment_variable(key: &str) -> String {
    let name = key.to_ascii_uppercase().replace(['.', '-'], "_");
    format!("{ENVIRONMENT_PREFIX}{name}")
}

/// A TOML scalar as the text that the settings read.
fn value_text(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => Ok(number.as_str().replace('_', "")),
        DeValue::Float(number) => Ok(number.as_str().replace('_', "")),
        DeValue::Boolean(truth) => Ok(truth.to_string()),
        _ => Err("a single value is expected".to_owned()),
    }
}

fn unknown_key(path: &str, text: &str, offset: usize, key: &str) -> ConfigError {
    ConfigError::UnknownKey {
        path: path.to_owned(),
        line: line_at(text, offset),
        key: key.to_owned(),
        nearest: nearest_key(key),
    }
}

/// The number of the line that holds a byte, counted from 1.
fn line_at(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// The known key that needs the fewest letters changed, the first of equals.
fn nearest_key(key: &str) -> &'static str {
    KEYS.iter()
        .min_by_key(|known| edit_distance(known.name, key))
        .map_or("", |known| known.name)
}

/// Letters to insert, delete or replace to make one word of the other.
fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        config.read_file("strata.toml", text)?;
        Ok(config)
    }

    #[test]
    fn defaults_are_consistent_and_inside_their_bounds() {
        let mut config = Config::default();
        config.check().unwrap();
        for key in KEYS {
            config.set(key.name, key.default).unwrap();
        }
        assert_eq!(config, Config::default());
        assert_eq!(config.server.park_time, Duration::from_millis(300));
    }

    #[test]
    fn the_documented_file_holds_every_key_and_its_default() {
        // Asked for at run time: one target folder may serve several checkouts.
        let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo");
        let path = Path::new(&package).join("../../config/strata.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            Config::documented(),
            "config/strata.toml differs from the table of keys"
        );
        assert_eq!(read(&text).unwrap(), Config::default());
    }

    #[test]
    fn file_then_environment_win_over_defaults() {
        let mut config = read("[raft]\ntick-interval = \"20ms\"\nelection-ticks = 9\n").unwrap();
        let environment = [
            ("STRATA_RAFT_ELECTION_TICKS", "10"),
            ("STRATA_ENDPOINTS", "a:1"),
            ("STRATA_NO_SUCH_KEY", "x"),
            ("HOME", "/"),
        ];
        let warnings = config
            .read_environment(environment.map(|(k, v)| (k.to_owned(), v.to_owned())))
            .unwrap();
        assert_eq!(config.raft.tick_interval, Duration::from_millis(20));
        assert_eq!(config.raft.election_ticks, 10);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("STRATA_NO_SUCH_KEY"));
    }

    #[test]
    fn bad_input_unknown_configuration_key() {
        let error = read("[raft]\nelection-ticks = 9\ntick-intervall = \"1s\"\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "strata.toml line 3: unknown key raft.tick-intervall; \
             the nearest known key is raft.tick-interval"
        );
        let error = read("tick = 3\n").unwrap_err();
        assert!(matches!(error, ConfigError::UnknownKey { line: 1, .. }));
        let error = read("[rafd]\n\nelection-ticks = 9\n").unwrap_err();
        assert!(error.to_string().contains("line 3"));
        assert!(error.to_string().contains("raft.election-ticks"));
    }

    #[test]
    fn a_bad_value_is_refused_with_its_line() {
        let error = read("[raft]\n\ntick-interval = 50\n").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("strata.toml line 3: bad value of raft.tick-interval")
        );
        let error = read("[raft]\nelection-ticks = 1\n").unwrap_err();
        assert!(error.to_string().contains("outside 3 to 1000"));
        let error = read("[raft]\nelection-ticks = [1]\n").unwrap_err();
        assert!(error.to_string().contains("a single value"));
        let error = read("[raft\n").unwrap_err();
        assert!(matches!(error, ConfigError::Malformed { line: 1, .. }));
        assert!(!error.to_string().contains('\n'));
        let mut config = Config::default();
        let error = config
            .read_environment([("STRATA_API_V1".to_owned(), "none".to_owned())])
            .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("STRATA_API_V1: bad value of api.v1")
        );
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let config = read("[raft]\nheartbeat-ticks = 3\nelection-ticks = 8\n").unwrap();
        assert!(matches!(config.check(), Err(ConfigError::Contradiction(_))));
    }

    #[test]
    fn entries_whose_work_has_no_room_are_no_setting() {
        let check = |text: &str| {
            let text = format!("[server]\nmax-message-size = \"1GiB\"\n[raft]\n{text}\n");
            read(&text).unwrap().check()
        };
        check("max-entry-size = \"32MiB\"").unwrap();
        let refused = check("max-entry-size = \"64MiB\"").unwrap_err();
        assert!(matches!(refused, ConfigError::Contradiction(_)));
        let named = refused
            .to_string()
            .contains("raft.shared-entry-rewrites (32)");
        assert!(named, "{refused}");
        check("max-entry-size = \"64MiB\"\nshared-entry-rewrites = 16").unwrap();
    }

    #[test]
    fn times_that_the_store_would_refuse_are_no_setting() {
        for (text, named) in [
            ("[snapshot]\ngive-up-time = \"1h\"\n", "snapshot.keep-time"),
            (
                "[raft]\nelection-ticks = 900\npeer-stale-time = \"1m\"\n",
                "raft.peer-stale-time",
            ),
        ] {
            let refused = read(text).unwrap().check().unwrap_err();
            assert!(matches!(refused, ConfigError::Contradiction(_)));
            assert!(refused.to_string().contains(named), "{refused}");
        }
    }

    #[test]
    fn rate_at_which_no_chunk_arrives_in_time_is_no_setting() {
        let check = |text: &str| read(&format!("[snapshot]\n{text}\n")).unwrap().check();
        // Eight chunks of 1 MiB, twice, in ten seconds.
        let refused = check("rate-limit = \"1MiB\"").unwrap_err();
        assert!(matches!(refused, ConfigError::Contradiction(_)));
        assert!(
            refused.to_string().contains("snapshot.rate-limit"),
            "{refused}"
        );
        check("rate-limit = \"2MiB\"").unwrap();
        check("rate-limit = \"1MiB\"\nchunk-size = \"512KiB\"").unwrap();
        check("rate-limit = \"0B\"").unwrap();
    }

    #[test]
    fn messages_that_the_port_would_refuse_are_no_setting() {
        for key in [
            "[raft]\nmax-message-size",
            "[raft]\nshared-entry-size",
            "[transport]\nframe-size",
        ] {
            let with = |port| {
                let text = format!("{key} = \"8MiB\"\n[server]\nmax-message-size = {port}\n");
                let text = text.replace("[raft]\n", "[raft]\nmax-entry-size = \"1MiB\"\n");
                read(&text).unwrap().check()
            };
            with("\"17MiB\"").unwrap();
            let refused = with("\"15MiB\"").unwrap_err();
            assert!(
                matches!(refused, ConfigError::Contradiction(_)),
                "{refused}"
            );
        }
    }

    #[test]
    fn edit_distance_counts_letters() {
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("same", "same"), 0);
    }
}
