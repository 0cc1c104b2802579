//! The figures of one run.

use super::kind::Kind;
use super::load::Seen;
use super::usage::Usage;
use crate::args::{LoadArgs, Target};
use crate::output;
use serde_json::{Value, json};

/// Percentiles of latency that are given to programs, in per cent.
const LATENCY_PERCENTILES: [f64; 9] = [10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99];

/// What a run amounts to.
pub struct Report {
    noop: bool,
    kind: Kind,
    args: LoadArgs,
    seen: Seen,
    regions: usize,
    stores: usize,
    /// What the server's processes used.
    usage: Option<Value>,
    /// Keys that were written or read.
    pub operations: u64,
    /// Answers that were not what was written.
    pub wrong: u64,
    /// The first error, in words.
    pub first_error: Option<String>,
}

impl Report {
    /// Sums up what the tasks saw.
    pub fn new(kind: Kind, args: &LoadArgs, seen: Seen, regions: usize, stores: usize) -> Self {
        Self {
            noop: false,
            kind,
            args: args.clone(),
            operations: seen.operations,
            wrong: seen.wrong,
            first_error: seen.first_error.clone(),
            seen,
            regions,
            stores,
            usage: None,
        }
    }

    /// Adds what the server's processes used, where both looks at them succeeded.
    pub fn with_usage(mut self, before: Option<Usage>, after: Option<Usage>) -> Self {
        let both = before.zip(after);
        self.usage = both.map(|(before, after)| after.since(&before, self.operations));
        self
    }

    /// Marks the report as one of the noop server.
    pub fn of_noop(mut self) -> Self {
        self.noop = true;
        self
    }

    /// Adds answers that turned out wrong later.
    pub fn with_wrong(mut self, wrong: u64) -> Self {
        self.wrong += wrong;
        self
    }

    /// Numbers of the keys whose puts were acknowledged.
    pub fn acknowledged(&self) -> Vec<u64> {
        self.seen.keys.to_vec()
    }

    fn name(&self) -> String {
        if self.noop {
            format!("noop-{}", self.kind.name())
        } else {
            self.kind.name().into()
        }
    }

    fn operations_per_second(&self) -> f64 {
        self.operations as f64 / self.seen.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    fn percentile_us(&self, percentile: f64) -> u64 {
        self.seen.latency.value_at_quantile(percentile / 100.0)
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({
            "target": match self.args.target {
                _ if self.noop => "noop",
                Target::Strata => "strata",
                Target::Etcd => "etcd",
            },
            "kind": self.name(),
            "command": super::command_line(),
            "clients": self.args.clients,
            "seconds": self.seen.elapsed.as_secs_f64(),
            "value_size": self.args.value_size,
            "keys": self.args.keys,
            "single_region": self.args.single_region,
            "connections": self.args.connections,
            "threads": super::threads(&self.args),
            "rate": self.args.rate,
            "unsent": self.seen.unsent,
            "calls": self.seen.latency.len(),
            "keys_per_call": self.kind.keys_per_call(),
            "written_user_bytes": self.seen.written_bytes,
            "operations": self.operations,
            "ops_per_second": self.operations_per_second(),
            "p50_us": self.percentile_us(50.0),
            "p99_us": self.percentile_us(99.0),
            "p999_us": self.percentile_us(99.9),
            "max_us": self.seen.latency.max(),
            "latency_us": LATENCY_PERCENTILES
                .map(|percentile| (percentile, self.percentile_us(percentile))),
            "longest_gap_us": u64::try_from(self.seen.longest_gap.as_micros()).unwrap_or(u64::MAX),
            "errors": self.seen.errors,
            "first_error": self.first_error,
            "wrong_answers": self.wrong,
            "failures": self.seen.errors + self.wrong,
            "regions": self.regions,
            "stores": self.stores,
            "servers": self.usage,
        })
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let milliseconds = |percentile| self.percentile_us(percentile) as f64 / 1000.0;
        let mut text = format!(
            "{}: {:.0} {}/s  p50 {:.3} ms  p99 {:.3} ms  p99.9 {:.3} ms  {} errors  {} wrong answers\n\
             {} operations in {:.1} s by {} clients, values of {} bytes, longest time without an answer {:.0} ms",
            self.name(),
            self.operations_per_second(),
            if self.kind.keys_per_call() > 1 {
                "keys"
            } else {
                "ops"
            },
            milliseconds(50.0),
            milliseconds(99.0),
            milliseconds(99.9),
            self.seen.errors,
            self.wrong,
            self.operations,
            self.seen.elapsed.as_secs_f64(),
            self.args.clients,
            self.args.value_size,
            self.seen.longest_gap.as_secs_f64() * 1000.0,
        );
        if let Some(rate) = self.args.rate {
            text.push_str(&format!(
                ", {rate} calls/s by schedule, {} not sent",
                self.seen.unsent
            ));
        }
        if self.regions > 0 {
            text.push_str(&format!(
                ", {} regions led by {} stores",
                self.regions, self.stores
            ));
        }
        if let Some(usage) = &self.usage {
            let resident = usage["resident_bytes"].as_array().into_iter().flatten();
            let resident: Vec<String> = resident
                .map(|bytes| output::bytes(bytes.as_u64().unwrap_or_default()))
                .collect();
            text.push_str(&format!(
                "\nservers: {:.1} us of CPU for each operation, resident {}",
                usage["cpu_us_per_op"].as_f64().unwrap_or_default(),
                resident.join(", ")
            ));
        }
        if let Some(error) = &self.first_error {
            text.push_str(&format!("\nfirst error: {error}"));
        }
        text
    }
}
