//! One snapshot: whole, broken off, frozen, of no use any more.

use super::*;

#[tokio::test]
async fn a_snapshot_travels_over_its_own_stream() {
    let mut pair = pair().await;
    let snapshot = make(&pair.leader, 7, 50);
    pair.send(&snapshot);
    pair.arrives(&snapshot).await;
    let sent = pair.leader.link.of_region(7);
    assert_eq!((sent.sent, sent.received), (1, 0));
    assert_eq!(sent.chunks_sent, chunks_of(&snapshot));
    assert_eq!(pair.leader.metrics.snapshots_sent.get(), 1);
    let received = pair.follower.link.of_region(7);
    assert_eq!((received.sent, received.received), (0, 1));
    // Offered again it is there already: no chunk travels.
    pair.send(&snapshot);
    pair.arrives(&snapshot).await;
    assert_eq!(pair.leader.chunks_sent(7), chunks_of(&snapshot));
    eventually("nothing is under way", || {
        pair.leader.link.of_region(7).under_way.is_empty()
            && pair.follower.link.of_region(7).under_way.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_broken_connection_resumes_at_what_was_synced() {
    let half = 100 * CHUNK as usize;
    let faults = vec![(half, Fault::Cut), (half / 2, Fault::Cut)];
    let mut pair = pair_with(&small_config(), faults).await;
    let snapshot = make(&pair.leader, 7, 200);
    pair.send(&snapshot);
    pair.arrives(&snapshot).await;
    assert_eq!(pair.wire.connections.load(Ordering::Relaxed), 3);
    // Of each broken stream only what was under way is sent again.
    let (sent, all) = (pair.leader.chunks_sent(7), chunks_of(&snapshot));
    assert!(
        (all + 1..=all + 2 * (WINDOW_CHUNKS + 1)).contains(&sent),
        "{sent} of {all}"
    );
    assert_eq!(pair.leader.metrics.snapshot_streams_broken.get(), 2);
}

#[tokio::test]
async fn a_restarted_receiver_resumes_at_what_was_synced() {
    let config = small_config();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Behind the first sync of 16 MiB.
    let wire = Wire::to(address, vec![(17 << 20, Fault::Freeze)]).await;
    let addresses = ["127.0.0.1:1", &wire.address];
    let mut leader = Node::new(&config, LEADER, &MemFiles::new(), addresses);
    let files = MemFiles::new();
    let first = Node::new(&config, FOLLOWER, &files, addresses);
    let serving = first.serve(listener);
    let snapshot = make(&leader, 7, 5_000);
    leader.link.clone().send(FOLLOWER, message(&snapshot));
    eventually("the wire is frozen", || {
        wire.faults.load(Ordering::Relaxed) == 1
    })
    .await;
    // What is on the wire has arrived when 16.5 MiB have; none of it is answered any more.
    eventually("more than 16 MiB arrived", || {
        let held = first.link.of_region(7).under_way;
        held.iter().any(|transfer| transfer.held_bytes > 33 << 19)
    })
    .await;
    // A power cut: what was not synced is gone, and nothing is closed in order.
    let files = files.crash_hard();
    drop((serving, first));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut second = Node::new(&config, FOLLOWER, &files, addresses);
    let _serving = second.serve(listener);
    leader.link.cluster.set_address(FOLLOWER, &address);
    drop(wire);
    assert_eq!(second.delivered().await, message(&snapshot));
    assert!(leader.report().await.2);
    assert_same(&snapshot, &second.manager);
    let (sent, all) = (leader.chunks_sent(7), chunks_of(&snapshot));
    let again = sent - all;
    // Between the synced 16 MiB and the 17 MiB and a window that had left.
    assert!(
        (1..=256 + WINDOW_CHUNKS + 1).contains(&again),
        "{again} chunks again"
    );
}

#[tokio::test]
async fn a_frozen_stream_is_given_up_and_holds_a_window_at_most() {
    let mut config = small_config();
    config.snapshot.stall_time = Duration::from_millis(300);
    config.snapshot.send_timeout = Duration::from_secs(2);
    config.snapshot.max_waiting = 1;
    let frozen = (40 * CHUNK as usize, Fault::Freeze);
    // Frozen before the greeting is answered from the second connection on.
    let mut faults = vec![(100, Fault::Freeze); 100];
    faults[0] = frozen;
    let mut pair = pair_with(&config, faults).await;
    let snapshot = make(&pair.leader, 7, 200);
    pair.send(&snapshot);
    // There is no place for another one to wait.
    pair.send(&make(&pair.leader, 8, 1));
    assert_eq!(pair.leader.report().await, (8, 82, false));
    assert_eq!(pair.leader.report().await, (7, 72, false));
    let sent = pair.leader.chunks_sent(7);
    assert!(sent <= 40 + WINDOW_CHUNKS, "{sent} chunks left");
    assert_eq!(pair.leader.metrics.snapshots_send_failed.get(), 2);
    // The receiver has let the parts go, and kept what it had.
    eventually("the receiver gives the stream up", || {
        let listed = pair.follower.manager.list();
        listed.len() == 1 && listed[0].uses == 0 && !listed[0].complete
    })
    .await;
    eventually("its slot is free", || {
        pair.follower.link.slots.lock().slots.in_use() == 0
    })
    .await;
}

#[tokio::test]
async fn a_store_that_leads_no_more_stops_sending() {
    let config = {
        let mut config = small_config();
        // Slow enough to be seen under way.
        config.snapshot.rate_limit = Size(50 * CHUNK);
        config
    };
    let mut pair = pair_with(&config, Vec::new()).await;
    let snapshot = make(&pair.leader, 7, 1000);
    pair.send(&snapshot);
    eventually("a chunk was taken", || {
        let under_way = pair.follower.link.of_region(7).under_way;
        under_way.iter().any(|transfer| transfer.held_bytes > 0)
    })
    .await;
    pair.leader.store.leads.store(false, Ordering::Relaxed);
    assert_eq!(pair.leader.report().await, (7, 72, false));
    assert!(pair.leader.chunks_sent(7) < 900);
    pair.send(&snapshot);
    assert_eq!(pair.leader.report().await, (7, 72, false));
}

#[tokio::test]
async fn a_snapshot_whose_files_are_gone_is_reported_as_failed() {
    let mut pair = pair().await;
    let snapshot = make(&pair.leader, 7, 5);
    let message = message(&snapshot);
    drop(snapshot);
    assert_eq!(pair.leader.manager.retain(|_| false).unwrap().len(), 1);
    pair.leader.link.clone().send(FOLLOWER, message);
    assert_eq!(pair.leader.report().await, (7, 72, false));
    assert_eq!(pair.wire.connections.load(Ordering::Relaxed), 0);
}
