//! The layout byte for byte, and its order against a plain model.

use proptest::prelude::*;

use super::*;

#[test]
fn keys_have_the_documented_bytes() {
    assert_eq!(store_ident(), [1, 1]);
    assert_eq!(
        raft_log(2, 3),
        [1, 2, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 3]
    );
    assert_eq!(raft_state(2), [1, 2, 0, 0, 0, 0, 0, 0, 0, 2, 2]);
    assert_eq!(apply_state(2), [1, 2, 0, 0, 0, 0, 0, 0, 0, 2, 3]);
    assert_eq!(raft_state_copy(2), [1, 2, 0, 0, 0, 0, 0, 0, 0, 2, 4]);
    assert_eq!(region_state(2), [1, 3, 0, 0, 0, 0, 0, 0, 0, 2, 1]);
    let mut expected = vec![1, 4, 0, 0, 0, 0, 0, 0, 0, 2];
    expected.extend([7; SESSION_ID_BYTES]);
    assert_eq!(session(2, &[7; SESSION_ID_BYTES]), expected);
    assert_eq!(system(b"ab"), [1, 5, b'a', b'b']);
    assert_eq!(store_incarnation(258), [1, 6, 0, 0, 0, 0, 0, 0, 1, 2]);
    assert_eq!(raw_key(RawSpace::RawV1, b"ab"), b"zab");
    assert_eq!(
        raw_key(RawSpace::RawV2, b"r\0\0\x01k"),
        b"zr\0\0\x01k\0\0\0\xfc"
    );
    assert_eq!(
        mvcc_key(b"k", ApiVersion::V2, Some(1)),
        b"zk\0\0\0\0\0\0\0\xf8\x02\xff\xff\xff\xff\xff\xff\xff\xfe"
    );
}

#[test]
fn keys_ranges_cover_exactly_one_region() {
    for region_id in [0, 1, 255, 256, u64::MAX - 1, u64::MAX] {
        let (start, end) = region_raft_range(region_id);
        for key in [
            raft_log(region_id, 0),
            raft_log(region_id, u64::MAX),
            raft_state(region_id),
            apply_state(region_id),
            raft_state_copy(region_id),
        ] {
            assert!(start <= key && key < end, "{region_id}");
        }
        let (log_start, log_end) = raft_log_range(region_id);
        assert!(log_start <= raft_log(region_id, 0));
        assert!(raft_log(region_id, u64::MAX) < log_end);
        assert!(log_end <= raft_state(region_id));
        if let Some(next) = region_id.checked_add(1) {
            assert!(end <= raft_log(next, 0));
        }
        let (start, end) = session_range(region_id);
        let key = session(region_id, &[0xff; SESSION_ID_BYTES]);
        assert!(start <= key && key < end);
    }
}

#[test]
fn keys_data_range_ends() {
    assert_eq!(data_range(b"", b""), (b"z".to_vec(), b"{".to_vec()));
    assert_eq!(data_range(b"a", b"b"), (b"za".to_vec(), b"zb".to_vec()));
    assert!(range_contains(b"", b"", b""));
    assert!(range_contains(b"a", b"b", b"a"));
    assert!(!range_contains(b"a", b"b", b"b"));
    assert!(!range_contains(b"b", b"", b"a"));
}

fn user_keys() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(
        prop_oneof![Just(0u8), Just(b'r'), Just(0xff), any::<u8>()],
        0..18,
    )
}

fn spaces() -> impl Strategy<Value = RawSpace> {
    prop_oneof![Just(RawSpace::RawV1), Just(RawSpace::RawV2)]
}

proptest! {
    /// The model is the order of the plain keys.
    #[test]
    fn key_encoding_order_of_engine_keys(space in spaces(), a in user_keys(), b in user_keys()) {
        prop_assert_eq!(raw_key(space, &a).cmp(&raw_key(space, &b)), a.cmp(&b));
        let back = parse_raw_key(space, &raw_key(space, &a)).unwrap().into_owned();
        prop_assert_eq!(back, a);
    }

    /// Whether a key is in a region by its boundaries, and whether its engine key is in
    /// the region's slice of the column family, is one question.
    #[test]
    fn key_encoding_order_agrees_with_boundaries(
        space in spaces(), start in user_keys(), end in user_keys(), key in user_keys(),
        timestamp: Option<u64>,
    ) {
        let start = memcomparable::encode(&start);
        let end = if end.is_empty() { end } else { memcomparable::encode(&end) };
        let (from, to) = data_range(&start, &end);
        let inside = |engine_key: Vec<u8>| from <= engine_key && engine_key < to;
        prop_assert_eq!(
            inside(raw_key(space, &key)),
            range_contains(&start, &end, &compared_form(space, &key))
        );
        prop_assert_eq!(
            inside(mvcc_key(&key, ApiVersion::V1, timestamp)),
            range_contains(&start, &end, &memcomparable::encode(&key))
        );
    }

    #[test]
    fn key_encoding_order_of_versions(key in user_keys(), a: u64, b: u64) {
        let of = |timestamp| mvcc_key(&key, ApiVersion::V1, Some(timestamp));
        prop_assert_eq!(of(a).cmp(&of(b)), b.cmp(&a));
    }

    #[test]
    fn keys_local_round_trip(region_id: u64, index: u64) {
        prop_assert_eq!(parse_raft_log(&raft_log(region_id, index)), Some((region_id, index)));
        prop_assert_eq!(parse_raft_state(&raft_state(region_id)), Some(region_id));
        prop_assert_eq!(parse_region_state(&region_state(region_id)), Some(region_id));
        prop_assert_eq!(parse_raft_log(&raft_state(region_id)), None);
        prop_assert_eq!(parse_region_state(&raft_state(region_id)), None);
    }

    #[test]
    fn keys_parsing_never_panics(space in spaces(), mut key in user_keys(), local: bool) {
        if local && key.len() > 1 {
            key[0] = LOCAL;
            key[1] %= 8;
        }
        let _ = parse_raft_log(&key);
        let _ = parse_raft_state(&key);
        let _ = parse_region_state(&key);
        let _ = parse_system(&key);
        let _ = parse_data_key(&key);
        let _ = parse_raw_key(space, &key);
    }
}
