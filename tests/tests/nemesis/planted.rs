//! Planted faults: the checks at the end of a nemesis run can fail.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use strata_tests::nemesis::{Nemesis, NemesisOptions, run_nemesis};
use strata_tests::network::between;

fn assert_found(findings: &[String], words: &str) {
    println!("{findings:#?}");
    assert!(
        findings.iter().any(|finding| finding.contains(words)),
        "no finding says {words:?}: {findings:#?}"
    );
}

/// What the linearizability checker says of a violation.
const NO_ORDER: &str = "not linearizable";

/// Increases the digit behind the first `-` of the first value in some bytes; values of the
/// load are `CLIENT-NUMBER`.
fn alter_value(bytes: &mut [u8]) -> bool {
    let digit = |byte: &u8| byte.is_ascii_digit();
    for place in 1..bytes.len().saturating_sub(3) {
        let around = [&bytes[place - 1], &bytes[place + 1], &bytes[place + 2]];
        if bytes[place] == b'-' && around.into_iter().all(digit) {
            bytes[place + 1] = b'0' + (bytes[place + 1] - b'0' + 1) % 10;
            return true;
        }
    }
    false
}

/// Answers that a proxy alters on their way to clients.
#[test]
fn planted_fault_nemesis_altered_answer_is_found() {
    const ALTERED: usize = 10;
    let armed = Arc::new(AtomicUsize::new(0));
    let altered = armed.clone();
    let options = NemesisOptions {
        alter_answers: Some(Arc::new(move |bytes| {
            if altered.load(Ordering::Relaxed) > 0 && alter_value(bytes) {
                altered.fetch_sub(1, Ordering::Relaxed);
            }
        })),
        ..NemesisOptions::default()
    };
    run_nemesis(options, async move |nemesis| {
        nemesis.progress(300).await;
        armed.store(ALTERED, Ordering::Relaxed);
        strata_tests::eventually_sync("answers to be altered", || {
            let left = armed.load(Ordering::Relaxed);
            (left == 0).then_some(()).ok_or(left)
        })
        .await;
        nemesis.progress(100).await;
        nemesis.heal().await;
        assert_found(&nemesis.judge().await, NO_ORDER);
    });
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(status.expect("cp runs").success());
}

/// All nodes lose what they acknowledged since a copy of their folders was made.
#[test]
fn planted_fault_nemesis_wiped_writes_are_found() {
    run_nemesis(NemesisOptions::default(), async |nemesis| {
        let copies = tempfile::tempdir().unwrap();
        let folders = |nemesis: &Nemesis| -> Vec<_> {
            let ids = nemesis.ids().into_iter();
            ids.map(|id| nemesis.cluster.spec(id).folder.clone())
                .collect()
        };
        nemesis.kill_all();
        for folder in folders(nemesis) {
            copy(&folder, copies.path());
        }
        nemesis.start_all();
        nemesis.progress(500).await;
        nemesis.kill_all();
        for folder in folders(nemesis) {
            std::fs::remove_dir_all(&folder).unwrap();
            let name = folder.file_name().expect("a folder of the cluster");
            copy(&copies.path().join(name), &folder);
        }
        nemesis.start_all();
        nemesis.progress(100).await;
        nemesis.heal().await;
        let findings = nemesis.judge().await;
        assert_found(&findings, "acknowledged writes are missing");
        assert_found(&findings, NO_ORDER);
    });
}

/// A leader is stopped, as by the sleep of its machine, and the clock of its lease stands
/// still meanwhile, which is no clock that `raft.max-clock-drift` allows: when it goes on,
/// cut off, it holds the lease still, and what it answers is stale.
#[test]
fn planted_fault_nemesis_clock_that_sleeps_is_found() {
    run_nemesis(NemesisOptions::default(), async |nemesis| {
        let leader = nemesis.leader().await;
        nemesis.set_rate(leader, -1_000_000);
        // Some rounds of heartbeats, each of which renews the lease at that time.
        tokio::time::sleep(Duration::from_millis(300)).await;
        nemesis.pause(leader);
        let others = nemesis.others(&[leader]);
        nemesis.cut("the leader off", &between(&[leader], &others));
        nemesis.another_leads(leader).await;
        nemesis.progress(300).await;
        nemesis.resume(leader);
        tokio::time::sleep(Duration::from_secs(1)).await;
        nemesis.heal().await;
        assert_found(&nemesis.judge().await, NO_ORDER);
    });
}
