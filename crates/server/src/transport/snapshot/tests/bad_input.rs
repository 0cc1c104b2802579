//! Strangers, streams that nobody wants, and damaged files.

use super::*;

#[tokio::test]
async fn bad_input_stream_of_an_absent_region_is_refused_before_a_chunk() {
    let mut pair = pair().await;
    let snapshot = make(&pair.leader, 7, 50);
    *pair.follower.store.wanted.lock() = Err(SnapshotError::NoSuchRegion { region_id: 7 });
    pair.send(&snapshot);
    assert_eq!(pair.leader.report().await, (7, 72, false));
    assert_eq!(pair.leader.chunks_sent(7), 0);
    assert!(pair.follower.manager.list().is_empty());
    assert_eq!(pair.follower.metrics.snapshots_refused.get(), 1);
    assert_eq!(
        pair.wire.connections.load(Ordering::Relaxed),
        1,
        "not tried again"
    );
}

#[tokio::test]
async fn bad_input_damaged_own_file_is_found_and_made_anew() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (config, files) = (small_config(), MemFiles::new());
    let addresses = ["127.0.0.1:1", &address];
    let mut leader = Node::new(&config, LEADER, &files, addresses);
    let mut follower = Node::new(&config, FOLLOWER, &MemFiles::new(), addresses);
    let _serving = follower.serve(listener);
    let snapshot = make(&leader, 7, 5);
    let names = strata_storage::snapshot::FileStore::list(&files).unwrap();
    assert_eq!(names.len(), 1, "{names:?}");
    files.flip_bit(&names[0].0, 999);
    leader.link.clone().send(FOLLOWER, message(&snapshot));
    assert_eq!(leader.report().await, (7, 72, false));
    assert!(follower.manager.find_received(7, INDEX, TERM).is_err());
    assert!(leader.manager.find_generated(snapshot.meta()).is_none());
    // The same snapshot made again is whole.
    drop(snapshot);
    let again = make(&leader, 7, 5);
    leader.link.clone().send(FOLLOWER, message(&again));
    assert_eq!(leader.report().await, (7, 72, true));
    follower.delivered().await;
    assert_same(&again, &follower.manager);
}

#[tokio::test]
async fn bad_input_stranger_sends_a_snapshot() {
    let pair = pair().await;
    let address = format!("http://{}", pair.wire.address);
    let greeting = |change: &dyn Fn(&mut StoreHello)| {
        let mut hello = greet::hello(&pair.leader.link.cluster, FOLLOWER);
        change(&mut hello);
        frame(snapshot_frame::Frame::Hello(hello))
    };
    let offer = frame(snapshot_frame::Frame::Offer(SnapshotOffer::default()));
    for (first, code) in [
        (
            greeting(&|h| h.cluster_id = 8),
            tonic::Code::FailedPrecondition,
        ),
        (
            greeting(&|h| h.store_id = 5),
            tonic::Code::FailedPrecondition,
        ),
        (
            greeting(&|h| h.to_store_id = 1),
            tonic::Code::FailedPrecondition,
        ),
        (offer, tonic::Code::InvalidArgument),
        (SnapshotFrame::default(), tonic::Code::InvalidArgument),
    ] {
        let mut client = StoreTransportClient::connect(address.clone())
            .await
            .unwrap();
        let stream = tokio_stream::once(first);
        let refused = client.send_snapshot(stream).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
    }
    assert!(pair.follower.manager.list().is_empty());
}

#[tokio::test]
async fn bad_input_stream_that_never_greets_is_let_go() {
    let pair = pair().await;
    let address = format!("http://{}", pair.wire.address);
    let mut client = StoreTransportClient::connect(address).await.unwrap();
    let refused = client.send_snapshot(tokio_stream::pending()).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::DeadlineExceeded);
}
