//! What the client makes of each answer: where it goes on, what it repeats, what it calls unknown.

use super::*;
use strata_client::{Error, Scan};

#[tokio::test]
async fn scans_walk_over_regions_in_both_directions() {
    let server = Scripted::start().await;
    let client = server.client(|_| {}).await;
    let names: Vec<Bytes> = (b'a'..=b'z')
        .flat_map(|first| (0..50).map(move |i| format!("{}{i:02}", first as char).into()))
        .collect();
    let pairs = names.iter().map(|name| (name.clone(), name.clone()));
    client.batch_put(pairs.collect(), 0).await.unwrap();
    let scan = async |scan: Scan| -> Vec<Bytes> {
        let rows = client.scan(scan).await.unwrap();
        rows.into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(scan(Scan::default()).await, names);
    let mut reverse = names.clone();
    reverse.reverse();
    let back = Scan {
        reverse: true,
        ..Scan::default()
    };
    assert_eq!(scan(back.clone()).await, reverse);
    let limited = Scan {
        limit: Some(700),
        ..back
    };
    assert_eq!(scan(limited).await, reverse[..700]);
    let part = Scan {
        start: "g10".into(),
        end: "p".into(),
        reverse: true,
        ..Scan::default()
    };
    let mut expected = names[310..750].to_vec();
    expected.reverse();
    assert_eq!(scan(part).await, expected);
}

#[tokio::test]
async fn refusals_are_repeated_until_the_leader_is_found() {
    let server = Scripted::start().await;
    let client = server.client(|_| {}).await;
    server.plant([not_leader(None), not_leader(Some(20)), not_leader(Some(21))]);
    client.put(b"a", "1").await.unwrap();
    assert_eq!(client.get(b"a").await.unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(server.requests(), 5);
}

#[tokio::test]
async fn nodes_that_point_at_each_other_do_not_burn_the_budget() {
    let server = Scripted::start().await;
    let client = server.client(|_| {}).await;
    server.plant((0..10_000).map(|i| not_leader(Some(20 + i % 2))));
    let error = client.put(b"a", "1").await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert!(
        server.requests() < 100,
        "{} requests in 3 s",
        server.requests()
    );
    assert!(server.state.lock().unwrap().pairs.is_empty());
}

#[tokio::test]
async fn a_lost_answer_of_a_write_is_unknown_and_a_swap_is_never_repeated() {
    let server = Scripted::start().await;
    let client = server.client(|_| {}).await;
    server.plant([Fault::Lose]);
    let error = client.compare_and_swap(b"a", None, "1").await.unwrap_err();
    assert!(matches!(error, Error::Unknown { .. }), "{error:?}");
    assert_eq!(server.requests(), 1);
    // A put may be repeated, and is unless that was switched off.
    server.plant([Fault::Hang]);
    client.put(b"a", "2").await.unwrap();
    assert_eq!(server.requests(), 3);
    let careful = server
        .client(|options| options.repeat_unknown_writes = false)
        .await;
    server.plant([Fault::Lose]);
    let error = careful.put(b"a", "3").await.unwrap_err();
    assert!(matches!(error, Error::Unknown { .. }), "{error:?}");
    assert_eq!(server.requests(), 4);
    // A refusal after it does not make it known.
    server.plant([Fault::Hang]);
    server.plant((0..10_000).map(|_| not_leader(None)));
    let error = client.put(b"a", "4").await.unwrap_err();
    assert!(matches!(error, Error::Unknown { .. }), "{error:?}");
}

#[tokio::test]
async fn an_undetermined_answer_is_unknown_whatever_stands_beside_it() {
    let server = Scripted::start().await;
    let client = server.client(|_| {}).await;
    server.plant([Fault::Refuse(Box::new(errorpb::Error {
        not_leader: Some(errorpb::NotLeader {
            region_id: 2,
            leader: Some(peer(21)),
        }),
        undetermined_result: Some(Default::default()),
        ..Default::default()
    }))]);
    let error = client.compare_and_swap(b"a", None, "1").await.unwrap_err();
    assert!(matches!(error, Error::Unknown { .. }), "{error:?}");
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn a_new_epoch_is_taken_from_the_answer() {
    let server = Scripted::start().await;
    let client = server.client(|_| {}).await;
    client.put(b"a", "1").await.unwrap();
    let look_ups = server.state.lock().unwrap().look_ups;
    server.state.lock().unwrap().version = 2;
    client.put(b"a", "2").await.unwrap();
    client.put(b"z", "2").await.unwrap();
    assert_eq!(
        server.state.lock().unwrap().look_ups,
        look_ups,
        "the scheduler was asked"
    );
}

#[tokio::test]
async fn a_server_that_never_answers_ends_in_time_and_typed() {
    let server = Scripted::start().await;
    let client = server
        .client(|options| options.operation_timeout = Duration::from_secs(1))
        .await;
    server.plant((0..100).map(|_| Fault::Hang));
    let begun = std::time::Instant::now();
    let error = client.get(b"a").await.unwrap_err();
    assert!(matches!(error, Error::Exhausted { .. }), "{error:?}");
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_asked_for_in_halves() {
    let store = Scripted::start().await;
    let client = store.client(|_| {}).await;
    let keys: Vec<Bytes> = (b'a'..=b'z').map(|c| Bytes::from(vec![c])).collect();
    for (at, key) in keys.iter().enumerate() {
        let value = vec![b'v'; if at % 5 == 0 { 90 } else { 9 }];
        client.put(&key[..], value).await.unwrap();
    }
    let everything = client.scan(Scan::default()).await.unwrap();
    assert_eq!(everything.len(), 26);
    store.state.lock().unwrap().answer_bytes_max = Some(100);
    let reverse = Scan {
        reverse: true,
        ..Scan::default()
    };
    assert_eq!(client.scan(Scan::default()).await.unwrap(), everything);
    let mut backwards = client.scan(reverse).await.unwrap();
    backwards.reverse();
    assert_eq!(backwards, everything);
    assert_eq!(client.batch_get(keys).await.unwrap(), everything);
}
