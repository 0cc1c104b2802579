//! Raw calls as requests of the store.
//!
//! Pure functions: what a message asks, or the refusal that it gets before the store is
//! bothered. The store itself checks keys, epochs and sizes.

use bytes::Bytes;
use std::time::Duration;
use strata_proto::kvrpcpb::{self, ApiVersion, Context, KeyRange, KvPair};
use strata_proto::stratapb::{
    CompareAndSwapCommand, DataCommand, DeleteRangeCommand, Mutation, RawSpace, WriteCommand,
    data_command::Body,
};
use strata_raftstore::RequestHeader;

use super::refusal::Refusal;

/// Length of mode and keyspace before each key of API v2.
const V2_PREFIX_BYTES: usize = 4;
/// First byte of raw keys in API v2.
const V2_RAW_MODE: u8 = b'r';

/// Whom a call addresses; `deadline` on the store's clock.
pub(crate) fn header(context: Option<&Context>, deadline: Duration) -> RequestHeader {
    let Some(context) = context else {
        // Region 0 is on no store: the answer is RegionNotFound.
        return RequestHeader {
            deadline,
            ..Default::default()
        };
    };
    RequestHeader {
        region_id: context.region_id,
        peer: context.peer,
        epoch: context.region_epoch,
        term: context.term,
        replica_read: context.replica_read,
        deadline,
    }
}

/// Where a call's keys live.
pub(crate) fn space(context: Option<&Context>, cf: &str) -> Result<RawSpace, Refusal> {
    // `lock` and `write` would reach transactional data.
    if !matches!(cf, "" | "default") {
        return Err(Refusal::text(format!(
            "raw calls reach the column family default only, not {cf}"
        )));
    }
    let version = context.map_or(0, |context| context.api_version);
    match ApiVersion::try_from(version) {
        Ok(ApiVersion::V1 | ApiVersion::V1ttl) => Ok(RawSpace::RawV1),
        Ok(ApiVersion::V2) => Ok(RawSpace::RawV2),
        _ => Err(Refusal::text(format!(
            "API version {version} is not served; use V1 or V2"
        ))),
    }
}

/// False for a key that no value can have: calls without an error field answer it as
/// absent.
pub(crate) fn can_exist(space: RawSpace, key: &[u8], max_key_bytes: usize) -> bool {
    if key.is_empty() || key.len() > max_key_bytes {
        return false;
    }
    match space {
        RawSpace::RawV1 => true,
        RawSpace::RawV2 => key.len() >= V2_PREFIX_BYTES && key[0] == V2_RAW_MODE,
    }
}

/// True if a range as the wire has it holds no key whatever the data is: its end lies
/// before its start. In reverse `start` is the upper bound.
pub(crate) fn is_inverted(start: &[u8], end: &[u8], reverse: bool) -> bool {
    let (lower, upper) = if reverse { (end, start) } else { (start, end) };
    !upper.is_empty() && lower > upper
}

/// The ranges of a batch scan without the inverted ones, which answer no pairs.
pub(crate) fn scan_ranges(ranges: Vec<KeyRange>, reverse: bool) -> Vec<(Bytes, Bytes)> {
    ranges
        .into_iter()
        .map(|range| (range.start_key, range.end_key))
        .filter(|(start, end)| !is_inverted(start, end, reverse))
        .collect()
}

/// One put or delete as a command.
pub(crate) fn write(space: RawSpace, mutations: Vec<Mutation>) -> DataCommand {
    command(Body::Write(WriteCommand {
        space: space.into(),
        mutations,
    }))
}

/// A key with its new value.
pub(crate) fn put(key: Bytes, value: Bytes, ttl_seconds: u64) -> Mutation {
    Mutation {
        key,
        value: Some(value),
        ttl_seconds,
    }
}

/// A key to delete.
pub(crate) fn delete(key: Bytes) -> Mutation {
    Mutation {
        key,
        value: None,
        ttl_seconds: 0,
    }
}

/// The puts of a batch; `ttls` has no entry, one for all, or one for each pair. `ttl` is
/// the older form of one for all.
pub(crate) fn batch_put(
    pairs: Vec<KvPair>,
    ttls: &[u64],
    ttl: u64,
) -> Result<Vec<Mutation>, Refusal> {
    let life = |place: usize| match ttls {
        [] => ttl,
        [all] => *all,
        each => each[place],
    };
    if ttls.len() > 1 && ttls.len() != pairs.len() {
        return Err(Refusal::text(format!(
            "{} ttls for {} pairs; send none, one, or one for each",
            ttls.len(),
            pairs.len()
        )));
    }
    Ok(pairs
        .into_iter()
        .enumerate()
        .map(|(place, pair)| put(pair.key, pair.value, life(place)))
        .collect())
}

/// A delete of a range, clipped to the region when it is applied.
pub(crate) fn delete_range(
    space: RawSpace,
    start_key: Bytes,
    end_key: Bytes,
) -> Result<DataCommand, Refusal> {
    if is_inverted(&start_key, &end_key, false) {
        return Err(Refusal::text("the end of the range lies before its start"));
    }
    Ok(command(Body::DeleteRange(DeleteRangeCommand {
        space: space.into(),
        start_key,
        end_key,
    })))
}

/// A compare-and-swap.
pub(crate) fn compare_and_swap(
    space: RawSpace,
    request: kvrpcpb::RawCompareAndSwapRequest,
) -> DataCommand {
    command(Body::CompareAndSwap(CompareAndSwapCommand {
        space: space.into(),
        key: request.key,
        expected: (!request.previous_not_exist).then_some(request.previous_value),
        value: (!request.delete).then_some(request.value),
        ttl_seconds: request.ttl,
    }))
}

fn command(body: Body) -> DataCommand {
    DataCommand {
        session: None,
        body: Some(body),
    }
}

/// Pairs as the wire has them.
pub(crate) fn pairs(pairs: Vec<(Bytes, Bytes)>) -> Vec<KvPair> {
    pairs
        .into_iter()
        .map(|(key, value)| KvPair {
            key,
            value,
            ..Default::default()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(api_version: i32) -> Context {
        Context {
            region_id: 7,
            api_version,
            ..Default::default()
        }
    }

    fn text(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn column_family_and_api_version_choose_the_space() {
        assert_eq!(space(None, ""), Ok(RawSpace::RawV1));
        assert_eq!(space(Some(&context(0)), "default"), Ok(RawSpace::RawV1));
        assert_eq!(space(Some(&context(1)), ""), Ok(RawSpace::RawV1));
        assert_eq!(space(Some(&context(2)), ""), Ok(RawSpace::RawV2));
        assert!(space(Some(&context(3)), "").is_err());
        assert!(space(Some(&context(99)), "").is_err());
        for cf in ["lock", "write", "raft", "DEFAULT"] {
            assert!(space(None, cf).is_err(), "{cf}");
        }
    }

    #[test]
    fn a_call_without_context_addresses_no_region() {
        assert_eq!(header(None, Duration::ZERO).region_id, 0);
        assert_eq!(header(Some(&context(0)), Duration::ZERO).region_id, 7);
    }

    #[test]
    fn keys_that_cannot_exist_are_known() {
        assert!(can_exist(RawSpace::RawV1, b"k", 8));
        assert!(!can_exist(RawSpace::RawV1, b"", 8));
        assert!(!can_exist(RawSpace::RawV1, b"123456789", 8));
        assert!(can_exist(RawSpace::RawV2, b"r\0\0\0k", 8));
        assert!(!can_exist(RawSpace::RawV2, b"x\0\0\0k", 8));
        assert!(!can_exist(RawSpace::RawV2, b"r\0", 8));
    }

    #[test]
    fn inverted_ranges_are_known_in_both_directions() {
        assert!(is_inverted(b"b", b"a", false));
        assert!(!is_inverted(b"a", b"b", false));
        assert!(!is_inverted(b"b", b"", false), "unbounded");
        assert!(!is_inverted(b"b", b"a", true));
        assert!(is_inverted(b"a", b"b", true));
        assert!(!is_inverted(b"", b"b", true), "unbounded");
        let range = |start, end| KeyRange {
            start_key: text(start),
            end_key: text(end),
        };
        assert_eq!(
            scan_ranges(vec![range("a", "b"), range("d", "c")], false),
            [(text("a"), text("b"))]
        );
        assert!(delete_range(RawSpace::RawV1, text("b"), text("a")).is_err());
    }

    #[test]
    fn ttls_are_none_one_or_one_for_each() {
        let pair = |key| KvPair {
            key: text(key),
            ..Default::default()
        };
        let lives = |ttls: &[u64], ttl| -> Result<Vec<u64>, Refusal> {
            let mutations = batch_put(vec![pair("a"), pair("b")], ttls, ttl)?;
            Ok(mutations.iter().map(|put| put.ttl_seconds).collect())
        };
        assert_eq!(lives(&[], 0), Ok(vec![0, 0]));
        assert_eq!(lives(&[], 9), Ok(vec![9, 9]));
        assert_eq!(lives(&[5], 0), Ok(vec![5, 5]));
        assert_eq!(lives(&[5, 6], 0), Ok(vec![5, 6]));
        assert!(lives(&[5, 6, 7], 0).is_err());
    }

    #[test]
    fn absence_and_an_empty_value_differ_in_compare_and_swap() {
        let request = |previous_not_exist, delete| kvrpcpb::RawCompareAndSwapRequest {
            key: text("k"),
            previous_not_exist,
            delete,
            ..Default::default()
        };
        let body = |command: DataCommand| match command.body {
            Some(Body::CompareAndSwap(body)) => body,
            other => panic!("{other:?}"),
        };
        let absent = body(compare_and_swap(RawSpace::RawV1, request(true, false)));
        assert_eq!((absent.expected, absent.value), (None, Some(Bytes::new())));
        let empty = body(compare_and_swap(RawSpace::RawV1, request(false, true)));
        assert_eq!((empty.expected, empty.value), (Some(Bytes::new()), None));
    }
}
