//! Clerks against real processes: each write takes effect once, whoever is killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use strata_client::clerk::Clerk;
use strata_client::{Error, Options};
use strata_tests::{Cluster, eventually_sync, strata};
use tokio::sync::watch;

use crate::snapshot::{compacted_past, last_index_of_the_dead, leader_of, reached, short_logs};

const CLERKS: u64 = 4;
const WORDS: u64 = 2_500;
/// Times that a leader is killed.
const ROUNDS: u64 = 6;
/// Words that each clerk may write before the kill of a round, and again after it: so there
/// are always some under way at the kill, and enough after it for the log to be compacted,
/// whether the clerks or the kills are slow.
const PART: u64 = WORDS / (2 * ROUNDS + 2);

fn patient() -> Options {
    Options {
        // A restart of the whole cluster takes a while on a busy machine.
        operation_timeout: Duration::from_secs(60),
        ..Options::default()
    }
}

/// Four clerks append 10,000 numbered words while leaders are killed, all nodes restart, and
/// replicas come back by snapshots, which carry the sessions: each word is there once, and in
/// order.
#[tokio::test(flavor = "multi_thread")]
async fn clerk_appends_each_word_once_through_leader_kills_restarts_and_snapshots() {
    let mut cluster = Cluster::start_with(short_logs(&[])).await;
    let done = Arc::new(AtomicU64::new(0));
    let (allow, allowed) = watch::channel(2 * PART);
    let mut clerks = Vec::new();
    for number in 0..CLERKS {
        let client = cluster.client_with(patient()).await;
        let (done, mut allowed) = (done.clone(), allowed.clone());
        clerks.push(tokio::spawn(async move {
            let mut clerk = Clerk::new(client);
            let key = format!("a-clerk-{number}");
            for word in 0..WORDS {
                let may = allowed.wait_for(|allowed| word < *allowed).await;
                may.expect("the kills go on");
                clerk.append(key.as_bytes(), format!("{word} ")).await?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<(), Error>(())
        }));
    }
    let written = |count: u64| {
        let done = done.clone();
        move || match done.load(Ordering::Relaxed) {
            reached if reached >= count => Ok(()),
            reached => Err(format!("{reached} of {count} words")),
        }
    };
    for round in 1..=ROUNDS {
        eventually_sync("the clerks to go on", written(round * CLERKS * 2 * PART)).await;
        let client = cluster.client().await;
        let (victim, region) = leader_of(&cluster, &client, b"a-clerk-0").await;
        allow.send_replace((2 * round + 1) * PART);
        let begun = round * CLERKS * 2 * PART + 1;
        eventually_sync("the clerks to write", written(begun)).await;
        cluster.kill(victim);
        allow.send_replace((2 * round + 2) * PART);
        match round {
            // The others, too: nobody remembers anything but what is on disk.
            3 => {
                cluster.kill_all();
                cluster.start_all();
            }
            // Down until the log no longer reaches back to it.
            2 | 4 | 5 => {
                let last = last_index_of_the_dead(&cluster, victim, region);
                compacted_past(&cluster, region, last).await;
                cluster.start_node(victim);
                reached(&cluster, victim, region, "snapshots_received", 1).await;
            }
            _ => cluster.start_node(victim),
        }
        cluster.wait_ready().await;
    }
    allow.send_replace(WORDS);
    for clerk in clerks {
        clerk.await.unwrap().expect("every word is acknowledged");
    }
    let client = cluster.client().await;
    let expected: String = (0..WORDS).map(|word| format!("{word} ")).collect();
    for number in 0..CLERKS {
        let key = format!("a-clerk-{number}");
        let value = client.get(key.as_bytes()).await.unwrap().unwrap();
        assert!(value == expected.as_bytes(), "{key} differs from its words");
    }
    cluster.assert_replicas_equal().await;
}

/// Every operation of a clerk against a cluster, in several regions.
#[tokio::test(flavor = "multi_thread")]
async fn clerk_writes_in_every_region() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let mut clerk = Clerk::new(client.clone());
    for info in client.scheduler().all_regions().await.unwrap() {
        let key = [&info.region.start_key[..], b"clerk"].concat();
        clerk.put(&key, "one").await.unwrap();
        clerk.append(&key, " two").await.unwrap();
        assert_eq!(clerk.get(&key).await.unwrap().unwrap(), "one two");
        let swapped = clerk
            .compare_and_swap(&key, Some("other".into()), "three")
            .await
            .unwrap();
        assert_eq!(swapped.previous.as_deref(), Some(&b"one two"[..]));
        assert!(!swapped.succeeded);
        let swapped = clerk
            .compare_and_swap(&key, swapped.previous, "three")
            .await
            .unwrap();
        assert!(swapped.succeeded);
        clerk.delete(&key).await.unwrap();
        assert_eq!(clerk.get(&key).await.unwrap(), None);
        clerk.append(&key, "four").await.unwrap();
        assert_eq!(clerk.get(&key).await.unwrap().unwrap(), "four");
        clerk.put_with_ttl(&key, "five", 600).await.unwrap();
        clerk.append(&key, "!").await.unwrap();
        let ttl = client.ttl(&key).await.unwrap();
        assert!(ttl.is_some_and(|ttl| ttl > 0 && ttl <= 600), "{ttl:?}");
    }
    assert!(matches!(
        clerk.put(b"", "x").await,
        Err(Error::InvalidArgument(_))
    ));
    cluster.assert_replicas_equal().await;
}

/// What an append would make larger than an entry is refused, and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn bad_input_append_beyond_the_entry_limit() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let mut clerk = Clerk::new(client.clone());
    let part = vec![b'x'; 3 << 20];
    clerk.put(b"a-large", part.clone()).await.unwrap();
    clerk.append(b"a-large", part.clone()).await.unwrap();
    let refused = clerk.append(b"a-large", part.clone()).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    assert_eq!(
        client.get(b"a-large").await.unwrap().unwrap().len(),
        6 << 20
    );
    let flag = cluster.endpoints_flag();
    let words = ["--endpoints", &flag, "kv", "append", "a-large", "-"];
    let ended = strata(&words, &part).expect(3);
    assert!(ended.stderr.contains("limit"), "{ended:?}");
    // The clerk goes on with its next operation.
    clerk.append(b"a-large", "y").await.unwrap();
    assert_eq!(
        client.get(b"a-large").await.unwrap().unwrap().len(),
        (6 << 20) + 1
    );
}
