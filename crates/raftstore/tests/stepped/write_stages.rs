//! The histograms of the stages of writes: what is counted, and what the stages last.

use strata_raftstore::HistogramSnapshot;

use super::*;

const WAIT_FOR_DISK: Duration = Duration::from_millis(30);
const WAIT_FOR_APPLY: Duration = Duration::from_millis(7);
const WRITE_DATA: Duration = Duration::from_millis(2);

fn stage(cluster: &Cluster, wanted: &str) -> HistogramSnapshot {
    let metrics = cluster.nodes[&1].core.metrics().clone();
    let stages = metrics.write_stages.each();
    let found = stages.iter().find(|(name, _)| *name == wanted).unwrap();
    found.1.snapshot()
}

/// Count and sum of a stage.
fn count_and_time(cluster: &Cluster, wanted: &str) -> (u64, Duration) {
    let found = stage(cluster, wanted);
    (found.count, Duration::from_micros(found.sum_us))
}

#[test]
fn each_stage_lasts_as_long_as_what_it_waits_for() {
    let mut cluster = cluster(1);
    let region_id = cluster.region_of(b"a");
    let node = cluster.nodes.get_mut(&1).unwrap();
    (node.disk_works, node.apply_works, node.data_works) = (false, false, false);
    let answer = cluster.send(1, region_id, write(&[("a", Some("1"), 0)]));
    cluster.now += WAIT_FOR_DISK;
    cluster.release_disk(1);
    cluster.now += WAIT_FOR_APPLY;
    cluster.release_apply(1);
    cluster.now += WRITE_DATA;
    assert_eq!(stage(&cluster, "total").count, 0, "it is not answered yet");
    cluster.release_data(1);
    assert_eq!(written(cluster.wait(&answer)), [CommandOutcome::Done]);
    let total = WAIT_FOR_DISK + WAIT_FOR_APPLY + WRITE_DATA;
    for (name, time) in [
        ("inbox", Duration::ZERO),
        ("propose", Duration::ZERO),
        ("commit", WAIT_FOR_DISK),
        ("apply_queue", WAIT_FOR_APPLY),
        ("apply_write", WRITE_DATA),
        ("reply", Duration::ZERO),
        ("total", total),
    ] {
        assert_eq!(count_and_time(&cluster, name), (1, time), "{name}");
    }
    let commit = stage(&cluster, "commit");
    let reached = commit.buckets.iter().find(|(_, count)| *count > 0).unwrap();
    assert_eq!(reached.0, 32_768, "the first bound above 30 ms");
}

#[test]
fn a_write_that_waits_to_be_proposed_does_so_in_that_stage() {
    let mut cluster = Cluster::new(1, StoreOptions::default());
    let region_id = cluster.region_of(b"a");
    // Nobody leads yet: it is parked.
    let answer = cluster.send(1, region_id, write(&[("a", Some("1"), 0)]));
    let sent = cluster.now;
    assert_eq!(written(cluster.wait(&answer)), [CommandOutcome::Done]);
    let waited = cluster.now - sent;
    assert!(waited > Duration::ZERO, "no election was needed");
    assert_eq!(count_and_time(&cluster, "inbox"), (1, Duration::ZERO));
    assert_eq!(count_and_time(&cluster, "propose"), (1, waited));
    assert_eq!(count_and_time(&cluster, "total"), (1, waited));
}

#[test]
fn writes_that_share_an_entry_are_counted_each() {
    let mut cluster = cluster(1);
    let region_id = cluster.region_of(b"a");
    cluster.nodes.get_mut(&1).unwrap().disk_works = false;
    let mut answers = Vec::new();
    let events = (0..3)
        .map(|_| {
            let (sender, receiver) = std::sync::mpsc::channel();
            answers.push(receiver);
            let request = Request {
                header: cluster.header(region_id),
                body: write(&[("a", Some("1"), 0)]),
            };
            let reply = Reply::new(move |result| drop(sender.send(result)));
            StoreEvent::Request { request, reply }
        })
        .collect();
    cluster.events(1, events);
    cluster.now += WAIT_FOR_DISK;
    cluster.release_disk(1);
    for answer in &answers {
        assert_eq!(written(cluster.wait(answer)), [CommandOutcome::Done]);
    }
    assert_eq!(cluster.nodes[&1].core.metrics().proposals.get(), 1);
    for name in ["commit", "total"] {
        assert_eq!(count_and_time(&cluster, name), (3, 3 * WAIT_FOR_DISK));
    }
}

#[test]
fn what_is_refused_or_no_longer_waited_for_is_not_counted() {
    let mut cluster = cluster(1);
    let region_id = cluster.region_of(b"a");
    cluster.event(1, StoreEvent::DiskNearlyFull(true));
    let refused = cluster.send(1, region_id, write(&[("a", Some("1"), 0)]));
    assert!(cluster.wait(&refused).is_err());
    cluster.event(1, StoreEvent::DiskNearlyFull(false));

    cluster.nodes.get_mut(&1).unwrap().disk_works = false;
    let deadline = cluster.now + Duration::from_millis(100);
    let header = RequestHeader {
        deadline,
        ..cluster.header(region_id)
    };
    let late = cluster.send_with(1, header, write(&[("a", Some("2"), 0)]));
    let answer = cluster.wait(&late).unwrap_err();
    assert!(matches!(answer, Error::Undetermined { .. }), "{answer}");
    cluster.release_disk(1);
    assert_eq!(cluster.get("a").as_deref(), Some("2"), "it was executed");
    assert_eq!(count_and_time(&cluster, "inbox"), (0, Duration::ZERO));
    assert_eq!(count_and_time(&cluster, "total"), (0, Duration::ZERO));

    assert_eq!(written(cluster.put("b", "3")), [CommandOutcome::Done]);
    assert_eq!(stage(&cluster, "total").count, 1);
}
