//! Counters of the network side, and the text that `GET /metrics` answers.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use prometheus::{Encoder, HistogramOpts, HistogramVec, IntCounter, Opts, Registry, TextEncoder};
use strata_raftstore::{Counter, StoreMetrics, WriteStages};

/// Bounds of the histogram of calls, in seconds.
const CALL_SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
];

/// Counters and histograms of the services and of the transport.
pub(crate) struct ServerMetrics {
    registry: Registry,
    calls: HistogramVec,
    /// Raft messages dropped because the queue to a store was full.
    pub(crate) transport_dropped_full: IntCounter,
    /// Raft messages dropped because the connection to a store was lost.
    pub(crate) transport_dropped_lost: IntCounter,
    /// Raft messages refused because they did not come from or go to the stores named.
    pub(crate) transport_refused: IntCounter,
    /// Frames sent to other stores.
    pub(crate) transport_frames: IntCounter,
    /// Snapshots that another store has whole.
    pub(crate) snapshots_sent: IntCounter,
    /// Snapshots that were given up.
    pub(crate) snapshots_send_failed: IntCounter,
    /// Chunks of snapshots sent, those of broken streams among them.
    pub(crate) snapshot_chunks_sent: IntCounter,
    /// Streams of snapshots that ended early and had a successor.
    pub(crate) snapshot_streams_broken: IntCounter,
    /// Snapshots that are whole here.
    pub(crate) snapshots_received: IntCounter,
    /// Streams of snapshots that this node ended with a refusal.
    pub(crate) snapshots_refused: IntCounter,
    /// Connections that broke off, or spoke neither HTTP nor as a store does.
    pub(crate) connections_failed: IntCounter,
    /// Connections closed because too many were open.
    pub(crate) connections_refused: IntCounter,
    /// Log lines dropped because their reader was slow.
    pub(crate) log_lines_dropped: Arc<Counter>,
}

impl ServerMetrics {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let calls = HistogramVec::new(
            HistogramOpts::new(
                "strata_call_duration_seconds",
                "Time of each call until its answer, by method and result.",
            )
            .buckets(CALL_SECONDS.to_vec()),
            &["method", "result"],
        )
        .expect("the histogram of calls is well-formed");
        registry
            .register(Box::new(calls.clone()))
            .expect("a new registry holds no such name");
        let counter = |name: &str, help: &str| {
            let counter =
                IntCounter::with_opts(Opts::new(name, help)).expect("the counter is well-formed");
            registry
                .register(Box::new(counter.clone()))
                .expect("each counter has a name of its own");
            counter
        };
        ServerMetrics {
            transport_dropped_full: counter(
                "strata_transport_dropped_full_total",
                "Raft messages dropped because the queue to a store was full.",
            ),
            transport_dropped_lost: counter(
                "strata_transport_dropped_lost_total",
                "Raft messages dropped because the connection to a store was lost.",
            ),
            transport_refused: counter(
                "strata_transport_refused_total",
                "Raft messages refused because they named other stores.",
            ),
            transport_frames: counter(
                "strata_transport_frames_total",
                "Frames of raft messages sent to other stores.",
            ),
            snapshots_sent: counter(
                "strata_snapshots_sent_total",
                "Snapshots that another store has whole.",
            ),
            snapshots_send_failed: counter(
                "strata_snapshots_send_failed_total",
                "Snapshots whose sending was given up.",
            ),
            snapshot_chunks_sent: counter(
                "strata_snapshot_chunks_sent_total",
                "Chunks of snapshots sent, those of broken streams among them.",
            ),
            snapshot_streams_broken: counter(
                "strata_snapshot_streams_broken_total",
                "Streams of snapshots that ended early and had a successor.",
            ),
            snapshots_received: counter(
                "strata_snapshots_received_total",
                "Snapshots that are whole on this node.",
            ),
            snapshots_refused: counter(
                "strata_snapshots_refused_total",
                "Streams of snapshots that this node ended with a refusal.",
            ),
            connections_failed: counter(
                "strata_connections_failed_total",
                "Connections that broke off, or spoke neither HTTP nor as a store does.",
            ),
            connections_refused: counter(
                "strata_connections_refused_total",
                "Connections closed because too many were open.",
            ),
            log_lines_dropped: Arc::default(),
            registry,
            calls,
        }
    }

    /// Begins to time a call.
    pub(crate) fn call(&self, method: &'static str) -> CallTimer<'_> {
        CallTimer {
            metrics: self,
            method,
            begun: Instant::now(),
        }
    }

    /// All counters in Prometheus' text form.
    pub(crate) fn render(&self, store: &StoreMetrics) -> String {
        let mut bytes = Vec::new();
        // Writing to memory fails only if a metric has no name, which `new` excludes.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut bytes);
        let mut text = String::from_utf8(bytes).unwrap_or_default();
        for (name, value) in store.snapshot() {
            let _ = write!(
                text,
                "# TYPE strata_store_{name} counter\nstrata_store_{name} {value}\n"
            );
        }
        let _ = write!(
            text,
            "# TYPE strata_log_lines_dropped counter\nstrata_log_lines_dropped {}\n",
            self.log_lines_dropped.get()
        );
        render_stages(&mut text, &store.write_stages);
        text
    }
}

/// The histograms of the stages of writes.
fn render_stages(text: &mut String, stages: &WriteStages) {
    const NAME: &str = "strata_store_write_stage_seconds";
    let _ = write!(
        text,
        "# HELP {NAME} Time in each stage of writes that were executed; log_queue and log_write: \
         of log batches.\n# TYPE {NAME} histogram\n"
    );
    let seconds = |micros: u64| micros as f64 / 1e6;
    for (stage, histogram) in stages.each() {
        let found = histogram.snapshot();
        for (bound_us, count) in found.buckets {
            let bound = seconds(bound_us);
            let _ = writeln!(
                text,
                "{NAME}_bucket{{stage=\"{stage}\",le=\"{bound}\"}} {count}"
            );
        }
        let (count, sum) = (found.count, seconds(found.sum_us));
        let _ = write!(
            text,
            "{NAME}_bucket{{stage=\"{stage}\",le=\"+Inf\"}} {count}\n\
             {NAME}_sum{{stage=\"{stage}\"}} {sum}\n\
             {NAME}_count{{stage=\"{stage}\"}} {count}\n"
        );
    }
}

/// Times one call; a call that is dropped unfinished was cancelled.
pub(crate) struct CallTimer<'a> {
    metrics: &'a ServerMetrics,
    method: &'static str,
    begun: Instant,
}

impl CallTimer<'_> {
    /// The call is answered.
    pub(crate) fn finish(self, served: bool) {
        let result = if served { "served" } else { "refused" };
        self.metrics
            .calls
            .with_label_values(&[self.method, result])
            .observe(self.begun.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_network_and_store_are_rendered() {
        let metrics = ServerMetrics::new();
        metrics.call("raw_get").finish(true);
        metrics.transport_frames.inc_by(3);
        let store = StoreMetrics::default();
        store.proposals.add(7);
        let text = metrics.render(&store);
        for line in [
            "strata_call_duration_seconds_count{method=\"raw_get\",result=\"served\"} 1",
            "strata_transport_frames_total 3",
            "strata_store_proposals 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn stages_of_writes_are_histograms_of_one_family() {
        let store = StoreMetrics::default();
        for (stage, histogram) in store.write_stages.each() {
            if stage == "commit" {
                histogram.record(17, 2);
                histogram.record(9_000_000, 1);
            }
        }
        let text = ServerMetrics::new().render(&store);
        let family: Vec<&str> = text
            .lines()
            .skip_while(|line| *line != "# TYPE strata_store_write_stage_seconds histogram")
            .collect();
        // 20 bounds and the one without, sum and count; nothing of others in between.
        assert_eq!(family.len(), 1 + 9 * 23, "{text}");
        let name = "strata_store_write_stage_seconds";
        assert!(family[1..].iter().all(|line| line.starts_with(name)));
        let of_commit: Vec<&str> = family
            .into_iter()
            .filter_map(|line| line.strip_prefix(name))
            .filter(|line| line.contains("stage=\"commit\""))
            .collect();
        let expected = [
            (0, "_bucket{stage=\"commit\",le=\"0.000016\"} 0"),
            (1, "_bucket{stage=\"commit\",le=\"0.000032\"} 2"),
            (19, "_bucket{stage=\"commit\",le=\"8.388608\"} 2"),
            (20, "_bucket{stage=\"commit\",le=\"+Inf\"} 3"),
            (21, "_sum{stage=\"commit\"} 9.000034"),
            (22, "_count{stage=\"commit\"} 3"),
        ];
        for (place, line) in expected {
            assert_eq!(of_commit[place], line);
        }
    }
}
