//! `strata debug keys`: keys of a column family as the engine holds them.

use super::{damaged, named, no_region, unreadable};
use crate::args::{Family, Global};
use crate::exit::{Failure, Outcome};
use crate::{output, text};
use serde_json::json;
use std::borrow::Cow;
use std::ops::ControlFlow;
use strata_proto::stratapb::RawSpace;
use strata_storage::snapshot::Content;
use strata_storage::{Cf, Direction, ReadView, keys, raw_value, read_region_state};

/// Which keys are asked for, as the command line has it.
pub struct Look {
    pub cf: Family,
    pub region: Option<u64>,
    pub start: Option<String>,
    pub end: Option<String>,
    pub limit: u64,
    pub values: bool,
    pub hex: bool,
}

impl Look {
    /// Prints the keys in order.
    pub fn run(&self, global: &Global, kv: &impl ReadView) -> Outcome {
        let (mut start, mut end) = self.family_range();
        if let Some(id) = self.region {
            let (from, to) = self.region_range(kv, id)?;
            start = start.max(from);
            end = end.min(to);
        }
        if let Some(word) = &self.start {
            start = start.max(self.engine_key(&text::parse(word, self.hex)?));
        }
        if let Some(word) = &self.end {
            end = end.min(self.engine_key(&text::parse(word, self.hex)?));
        }
        let mut seen = 0;
        let mut next = None;
        let mut printed = Ok(());
        let mut visit = |key: &[u8], value: &[u8]| {
            if seen == self.limit {
                next = Some(text::show(&self.shown(key), self.hex));
                return ControlFlow::Break(());
            }
            seen += 1;
            printed = self.print(global, key, value);
            match printed {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        };
        kv.scan(
            self.cf(),
            &start,
            Some(&end),
            Direction::Forward,
            &mut visit,
        )
        .map_err(unreadable)?;
        printed?;
        if let Some(key) = next {
            let hint = if self.hex {
                ""
            } else {
                " (use --hex if it is escaped)"
            };
            eprintln!("more: go on with --start {key}{hint}");
        }
        Ok(())
    }

    fn cf(&self) -> Cf {
        match self.cf {
            Family::Raw => Cf::Raw,
            Family::Raw2 => Cf::Raw2,
            Family::Default => Cf::Default,
            Family::Lock => Cf::Lock,
            Family::Write => Cf::Write,
            Family::Raft => Cf::Raft,
        }
    }

    fn space(&self) -> Option<RawSpace> {
        match self.cf {
            Family::Raw => Some(RawSpace::RawV1),
            Family::Raw2 => Some(RawSpace::RawV2),
            Family::Default | Family::Lock | Family::Write | Family::Raft => None,
        }
    }

    /// All keys of the family. No engine key of ours begins with 0xff.
    fn family_range(&self) -> (Vec<u8>, Vec<u8>) {
        match self.cf {
            Family::Raft => (Vec::new(), vec![0xff]),
            _ => keys::data_range(b"", b""),
        }
    }

    /// The share of a region: its range, or its sessions (region 1: the scheduler's records)
    /// in the family of records.
    fn region_range(&self, kv: &impl ReadView, id: u64) -> Result<(Vec<u8>, Vec<u8>), Failure> {
        let state = read_region_state(kv, id).map_err(damaged)?;
        let state = state.ok_or_else(|| no_region(id))?;
        let region = named(Some(id), &state)?;
        let nothing = || Failure::No(format!("region {id} can have no keys there"));
        let content = Content::ALL.into_iter().rev();
        let content = content.filter(|content| content.cf() == self.cf());
        let mut ranges = content.filter_map(|content| content.range(region));
        ranges.next().ok_or_else(nothing)
    }

    /// The engine's form of a key that a user wrote.
    fn engine_key(&self, key: &[u8]) -> Vec<u8> {
        match (self.cf, self.space()) {
            (_, Some(space)) => keys::raw_key(space, key),
            (Family::Raft, None) => key.to_vec(),
            (_, None) => keys::data_key(key),
        }
    }

    /// The form in which a key is printed, and read again.
    fn shown<'a>(&self, key: &'a [u8]) -> Cow<'a, [u8]> {
        let raw = self
            .space()
            .and_then(|space| keys::parse_raw_key(space, key));
        match (self.cf, raw) {
            (_, Some(raw)) => raw,
            (Family::Raft, None) => key.into(),
            (_, None) => keys::parse_data_key(key).unwrap_or(key).into(),
        }
    }

    fn print(&self, global: &Global, key: &[u8], stored: &[u8]) -> Outcome {
        let decoded = self.space().map(|_| raw_value::decode(stored));
        let (value, expires_at_ms, damage) = match decoded {
            None => (stored, None, None),
            Some(Ok(value)) => (value.value, value.expires_at_ms, None),
            Some(Err(fault)) => (stored, None, Some(fault.to_string())),
        };
        let key = self.shown(key);
        let mut line = json!({
            "key": text::to_json(&key, self.hex),
            "value_bytes": value.len(),
            "expires_at_ms": expires_at_ms,
        });
        if self.values {
            line["value"] = text::to_json(value, self.hex);
        }
        if let Some(damage) = &damage {
            line["damage"] = json!(damage);
        }
        output::print(global.format, &line, || {
            let mut text = format!("{}\t{} bytes", text::show(&key, self.hex), value.len());
            if let Some(expiry) = expires_at_ms {
                text.push_str(&format!("\texpires at {expiry} ms"));
            }
            if self.values {
                text.push_str(&format!("\t{}", text::show(value, self.hex)));
            }
            if let Some(damage) = &damage {
                text.push_str(&format!("\tdamaged: {damage}"));
            }
            text
        })
    }
}
