//! Requests that cannot be right: each gets a clear answer and changes nothing.

use crate::direct::{get, place, put, region_error, store};
use bytes::Bytes;
use strata_proto::{kvrpcpb, metapb};
use strata_tests::{Cluster, strata};

const KEY: &[u8] = b"a-key";

/// The cluster still writes and reads, and `KEY` holds what it held.
async fn assert_untouched(cluster: &Cluster, value: Option<&[u8]>) {
    let client = cluster.client().await;
    let held = client.get(KEY).await.expect("the cluster reads");
    assert_eq!(held.as_deref(), value);
    client
        .put(b"a-probe", "1")
        .await
        .expect("the cluster writes");
    cluster.assert_replicas_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_empty_key() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let place = place(&cluster, &client, b"").await;
    let mut store = store(&cluster, place.store_id).await;
    let context = &place.context;
    let written = store
        .raw_put(put(context, b"", b"v"))
        .await
        .unwrap()
        .into_inner();
    assert!(!written.error.is_empty(), "{written:?}");
    let read = store.raw_get(get(context, b"")).await.unwrap().into_inner();
    assert!(!read.error.is_empty(), "{read:?}");
    let deleted = kvrpcpb::RawDeleteRequest {
        context: Some(context.clone()),
        ..Default::default()
    };
    let deleted = store.raw_delete(deleted).await.unwrap().into_inner();
    assert!(!deleted.error.is_empty(), "{deleted:?}");
    let pair = |key: &'static [u8]| kvrpcpb::KvPair {
        key: Bytes::from_static(key),
        value: Bytes::from_static(b"v"),
        ..Default::default()
    };
    let batch = kvrpcpb::RawBatchPutRequest {
        context: Some(context.clone()),
        pairs: vec![pair(KEY), pair(b"")],
        ..Default::default()
    };
    let batch = store.raw_batch_put(batch).await.unwrap().into_inner();
    assert!(!batch.error.is_empty(), "{batch:?}");
    // There is no field for an error: a key that cannot exist is absent.
    let many = kvrpcpb::RawBatchGetRequest {
        context: Some(context.clone()),
        keys: vec![Bytes::new()],
        ..Default::default()
    };
    let many = store.raw_batch_get(many).await.unwrap().into_inner();
    assert!(
        many.pairs.is_empty() && many.region_error.is_none(),
        "{many:?}"
    );
    let flag = cluster.endpoints_flag();
    for words in [
        &["kv", "get", ""][..],
        &["kv", "put", "", "v"],
        &["kv", "delete", ""],
    ] {
        strata(&[&["--endpoints", flag.as_str()], words].concat(), b"").expect(3);
    }
    assert_untouched(&cluster, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_oversized_key() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let key = vec![b'a'; (8 << 10) + 1];
    let place = place(&cluster, &client, &key).await;
    let mut store = store(&cluster, place.store_id).await;
    let written = store.raw_put(put(&place.context, &key, b"v")).await;
    let written = written.unwrap().into_inner();
    assert!(
        !written.error.is_empty() && written.region_error.is_none(),
        "{written:?}"
    );
    let read = store
        .raw_get(get(&place.context, &key))
        .await
        .unwrap()
        .into_inner();
    assert!(!read.error.is_empty(), "{read:?}");
    let many = kvrpcpb::RawBatchGetRequest {
        context: Some(place.context.clone()),
        keys: vec![key.clone().into()],
        ..Default::default()
    };
    let many = store.raw_batch_get(many).await.unwrap().into_inner();
    assert!(
        many.pairs.is_empty() && many.region_error.is_none(),
        "{many:?}"
    );
    let longest = &key[1..];
    client.put(longest, "v").await.expect("8 KiB are allowed");
    let word = String::from_utf8(key).unwrap();
    let flag = cluster.endpoints_flag();
    strata(&["--endpoints", &flag, "kv", "put", &word, "v"], b"").expect(3);
    strata(&["--endpoints", &flag, "kv", "get", &word], b"").expect(3);
    assert_untouched(&cluster, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_oversized_value() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    client.put(KEY, "before").await.unwrap();
    let value = vec![7; 8 << 20];
    let place = place(&cluster, &client, KEY).await;
    let mut store = store(&cluster, place.store_id).await;
    let written = store.raw_put(put(&place.context, KEY, &value)).await;
    let error = region_error(written.unwrap().into_inner().region_error);
    let too_large = error.raft_entry_too_large.expect("the entry is too large");
    assert_eq!(too_large.region_id, place.info.region.id);
    assert!(too_large.entry_size as usize > value.len(), "{too_large:?}");
    let swap = kvrpcpb::RawCompareAndSwapRequest {
        context: Some(place.context.clone()),
        key: Bytes::from_static(KEY),
        previous_value: Bytes::from_static(b"before"),
        value: value.clone().into(),
        ..Default::default()
    };
    let swap = store.raw_compare_and_swap(swap).await.unwrap().into_inner();
    assert!(
        region_error(swap.region_error)
            .raft_entry_too_large
            .is_some()
    );
    let flag = cluster.endpoints_flag();
    let ended = strata(&["--endpoints", &flag, "kv", "put", "a-key", "-"], &value).expect(3);
    assert!(ended.stderr.contains("smaller"), "{ended:?}");
    assert_untouched(&cluster, Some(b"before")).await;
    let large = Bytes::from(vec![8; 4 << 20]);
    client
        .put(KEY, large.clone())
        .await
        .expect("half the limit is allowed");
    assert_eq!(client.get(KEY).await.unwrap(), Some(large));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_oversized_batch() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let place = place(&cluster, &client, KEY).await;
    let mut store = store(&cluster, place.store_id).await;
    let keys: Vec<Bytes> = (0..9).map(|i| format!("a-batch-{i}").into()).collect();
    let pairs = keys
        .iter()
        .map(|key| kvrpcpb::KvPair {
            key: key.clone(),
            value: vec![1; 1 << 20].into(),
            ..Default::default()
        })
        .collect();
    let batch = kvrpcpb::RawBatchPutRequest {
        context: Some(place.context.clone()),
        pairs,
        ..Default::default()
    };
    let answer = store.raw_batch_put(batch).await.unwrap().into_inner();
    let error = region_error(answer.region_error);
    assert!(error.raft_entry_too_large.is_some(), "{error:?}");
    assert_eq!(
        client.batch_get(keys).await.unwrap(),
        [],
        "a part of it was written"
    );
    assert_untouched(&cluster, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_wrong_region() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let place = place(&cluster, &client, KEY).await;
    let mut store = store(&cluster, place.store_id).await;
    // No such region, and the scheduler's own, which no client may write.
    for region_id in [987_654, 1] {
        let mut context = place.context.clone();
        context.region_id = region_id;
        let answer = store.raw_put(put(&context, KEY, b"v")).await.unwrap();
        let error = region_error(answer.into_inner().region_error);
        let missing = error.region_not_found.expect("the region is not found");
        assert_eq!(missing.region_id, region_id);
    }
    // A region that does not hold the key.
    let other = place.info.region.end_key.clone();
    let answer = store
        .raw_put(put(&place.context, &other, b"v"))
        .await
        .unwrap();
    let error = region_error(answer.into_inner().region_error);
    let outside = error.key_not_in_region.expect("the key lies outside");
    assert_eq!(outside.key, other);
    assert_eq!(client.get(&other).await.unwrap(), None);
    assert_untouched(&cluster, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_wrong_epoch() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let place = place(&cluster, &client, KEY).await;
    let mut store = store(&cluster, place.store_id).await;
    let epoch = place.info.region.region_epoch.unwrap();
    for version in [epoch.version + 1, epoch.version - 1] {
        let mut context = place.context.clone();
        context.region_epoch = Some(metapb::RegionEpoch { version, ..epoch });
        let answer = store.raw_put(put(&context, KEY, b"v")).await.unwrap();
        let error = region_error(answer.into_inner().region_error);
        let current = error
            .epoch_not_match
            .expect("the epoch differs")
            .current_regions;
        let same = current.iter().find(|region| region.id == context.region_id);
        assert_eq!(same.and_then(|region| region.region_epoch), Some(epoch));
    }
    assert_untouched(&cluster, None).await;
    // Membership is not compared, or every change of it would break clients.
    let mut context = place.context.clone();
    context.region_epoch = Some(metapb::RegionEpoch {
        conf_ver: epoch.conf_ver + 7,
        ..epoch
    });
    let answer = store
        .raw_put(put(&context, KEY, b"v"))
        .await
        .unwrap()
        .into_inner();
    assert!(
        answer.region_error.is_none() && answer.error.is_empty(),
        "{answer:?}"
    );
    assert_untouched(&cluster, Some(b"v")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_wrong_peer() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let place = place(&cluster, &client, KEY).await;
    let mut store = store(&cluster, place.store_id).await;
    let mut context = place.context.clone();
    let right = context.peer.unwrap();
    context.peer = Some(metapb::Peer {
        id: right.id + 5000,
        ..right
    });
    let answer = store.raw_put(put(&context, KEY, b"v")).await.unwrap();
    let error = region_error(answer.into_inner().region_error);
    let mismatch = error.mismatch_peer_id.expect("the peer is another");
    assert_eq!(mismatch.request_peer_id, right.id + 5000);
    assert_eq!(mismatch.store_peer_id, right.id);
    assert_untouched(&cluster, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_wrong_store() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let place = place(&cluster, &client, KEY).await;
    let mut store = store(&cluster, place.store_id).await;
    let mut context = place.context.clone();
    let right = context.peer.unwrap();
    context.peer = Some(metapb::Peer {
        store_id: 77,
        ..right
    });
    let answer = store.raw_put(put(&context, KEY, b"v")).await.unwrap();
    let error = region_error(answer.into_inner().region_error);
    let mismatch = error.store_not_match.expect("the store is another");
    assert_eq!(mismatch.request_store_id, 77);
    assert_eq!(mismatch.actual_store_id, place.store_id);
    assert_untouched(&cluster, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_put_to_follower() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let place = place(&cluster, &client, KEY).await;
    let leader = place.context.peer.unwrap();
    for follower in place
        .info
        .region
        .peers
        .iter()
        .filter(|peer| peer.id != leader.id)
    {
        let mut store = store(&cluster, follower.store_id).await;
        let mut context = place.context.clone();
        context.peer = Some(*follower);
        let answer = store.raw_put(put(&context, KEY, b"v")).await.unwrap();
        let error = region_error(answer.into_inner().region_error);
        let not_leader = error.not_leader.expect("it does not lead");
        assert_eq!(not_leader.region_id, context.region_id);
        assert_eq!(not_leader.leader.map(|peer| peer.id), Some(leader.id));
    }
    assert_untouched(&cluster, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_scan_end_before_start() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    client.put(KEY, "v").await.unwrap();
    let place = place(&cluster, &client, KEY).await;
    let mut store = store(&cluster, place.store_id).await;
    let (low, high) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"));
    // In reverse, the start is the upper bound.
    for (start_key, end_key, reverse) in [(&high, &low, false), (&low, &high, true)] {
        let scan = kvrpcpb::RawScanRequest {
            context: Some(place.context.clone()),
            start_key: start_key.clone(),
            end_key: end_key.clone(),
            limit: 10,
            reverse,
            ..Default::default()
        };
        let answer = store.raw_scan(scan).await.unwrap().into_inner();
        assert!(
            answer.kvs.is_empty() && answer.region_error.is_none(),
            "{answer:?}"
        );
    }
    let scan = kvrpcpb::RawBatchScanRequest {
        context: Some(place.context.clone()),
        ranges: vec![kvrpcpb::KeyRange {
            start_key: high.clone(),
            end_key: low.clone(),
        }],
        each_limit: 10,
        ..Default::default()
    };
    let answer = store.raw_batch_scan(scan).await.unwrap().into_inner();
    assert!(
        answer.kvs.is_empty() && answer.region_error.is_none(),
        "{answer:?}"
    );
    let delete = kvrpcpb::RawDeleteRangeRequest {
        context: Some(place.context.clone()),
        start_key: high,
        end_key: low,
        ..Default::default()
    };
    // Whether it is refused or does nothing: nothing is deleted.
    store.raw_delete_range(delete).await.unwrap();
    let flag = cluster.endpoints_flag();
    for words in [
        &["kv", "scan", "b", "a"][..],
        &["kv", "scan", "b", "a", "--reverse"],
        &["kv", "delete-range", "b", "a"],
    ] {
        strata(&[&["--endpoints", flag.as_str()], words].concat(), b"").expect(3);
    }
    assert_untouched(&cluster, Some(b"v")).await;
}
