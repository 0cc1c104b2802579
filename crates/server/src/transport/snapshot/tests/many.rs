//! Several snapshots: permits, the rate limit, and one that takes the place of another.

use super::*;

#[tokio::test]
async fn too_many_snapshots_at_once_are_refused_as_busy_and_come_again() {
    let mut config = small_config();
    config.snapshot.max_concurrent = 1;
    let mut pair = pair_with(&config, Vec::new()).await;
    let snapshot = make(&pair.leader, 7, 20);
    let other = {
        let mut slots = pair.follower.link.slots.lock();
        slots.slots.enter(99, 3, TERM).unwrap()
    };
    pair.send(&snapshot);
    eventually("a refusal and another stream", || {
        pair.follower.metrics.snapshots_refused.get() >= 2
    })
    .await;
    assert_eq!(pair.leader.chunks_sent(7), 0);
    pair.follower.link.slots.lock().slots.leave(other);
    pair.arrives(&snapshot).await;
}

#[tokio::test]
async fn many_snapshots_pass_through_few_permits() {
    let mut config = small_config();
    config.snapshot.max_concurrent = 2;
    let mut pair = pair_with(&config, Vec::new()).await;
    let snapshots: Vec<_> = (7..17).map(|id| make(&pair.leader, id, 20)).collect();
    for snapshot in &snapshots {
        pair.send(snapshot);
    }
    for _ in &snapshots {
        assert!(pair.leader.report().await.2);
    }
    for snapshot in &snapshots {
        assert_same(snapshot, &pair.follower.manager);
    }
}

#[tokio::test]
async fn a_later_snapshot_for_the_same_peer_takes_the_place_of_the_earlier() {
    let mut config = small_config();
    config.snapshot.rate_limit = Size(50 * CHUNK);
    let mut pair = pair_with(&config, Vec::new()).await;
    let slow = make(&pair.leader, 7, 5000);
    pair.send(&slow);
    eventually("a chunk was taken", || pair.leader.chunks_sent(7) > 0).await;
    // Raft has given it up, and sends a newer one.
    let small = make(&pair.leader, 7, 10);
    assert_ne!(small.meta().id, slow.meta().id);
    pair.send(&small);
    pair.arrives(&small).await;
    eventually("the earlier one has gone", || {
        pair.leader.link.of_region(7).under_way.is_empty()
    })
    .await;
    assert!(
        pair.leader.reports.try_recv().is_err(),
        "one report for both"
    );
    assert_eq!(pair.follower.manager.list().len(), 1, "its parts are gone");
}

#[tokio::test]
async fn the_rate_limit_holds_over_all_sends() {
    let mut config = small_config();
    config.snapshot.rate_limit = Size(200 * CHUNK);
    let mut pair = pair_with(&config, Vec::new()).await;
    let snapshots: Vec<_> = (7..9).map(|id| make(&pair.leader, id, 100)).collect();
    let begun = Instant::now();
    for snapshot in &snapshots {
        pair.send(snapshot);
    }
    for _ in &snapshots {
        assert!(pair.leader.report().await.2);
    }
    // 200 chunks at 200 a second, less the burst of a tenth.
    assert!(
        begun.elapsed() >= Duration::from_millis(850),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_later_stream_of_the_same_store_takes_the_place_of_a_dead_one() {
    let mut pair = pair().await;
    let snapshot = make(&pair.leader, 7, 20);
    let (frames, mut replies) = raw_stream(&pair).await;
    let offer = snapshot_frame::Frame::Offer(SnapshotOffer {
        message: Some(message(&snapshot)),
    });
    frames.send(frame(offer)).await.unwrap();
    let progress = replies.message().await.unwrap().unwrap().reply;
    assert!(
        matches!(progress, Some(snapshot_reply::Reply::Progress(_))),
        "{progress:?}"
    );
    // It says nothing more, and would only be given up after ten seconds.
    pair.send(&snapshot);
    pair.arrives(&snapshot).await;
    assert_eq!(pair.follower.metrics.snapshots_refused.get(), 1);
    assert!(replies.message().await.unwrap().is_none());
    drop(frames);
}
