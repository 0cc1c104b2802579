//! Raw calls on ranges, which walk over regions.
//!
//! A forward walk goes from region to region by end keys; a reverse walk asks for the
//! region just below the bound it has reached, so descending order holds over regions too
//! (a walk upwards would hand out each region's part in the wrong place). Each request is
//! clipped to its region. A page is sized by the rows seen so far, and the walk goes on
//! after its last key, so no answer has to be large. A page that outgrows what a store or
//! this client allows for one answer is asked for again with half its rows.

use crate::attempt::{Call, Kind};
use crate::budget::Budget;
use crate::scheduler::timed;
use crate::{Error, RawClient, Result, Route};
use bytes::Bytes;
use std::sync::Arc;
use strata_proto::kvrpcpb;

/// Rows in the first page of a client's first scan.
const PAGE_ROWS_FIRST: usize = 64;
/// Most rows in the first page of its later scans, which go by the rows of the one before.
const PAGE_ROWS_BY_MEMORY: usize = 1024;
/// Most rows in a page.
const PAGE_ROWS_MAX: usize = 4096;
/// Bytes that a page aims at.
const PAGE_BYTES: usize = 1 << 20;

/// What to scan: the pairs with start ≤ key < end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// First key of the range.
    pub start: Bytes,
    /// First key behind the range; empty: no upper bound.
    pub end: Bytes,
    /// Most pairs to return; `None`: all.
    pub limit: Option<usize>,
    /// Descending order, from the end.
    pub reverse: bool,
    /// Leave the values empty.
    pub keys_only: bool,
}

/// The sum over a range, the same in whatever order it is added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checksum {
    /// CRC-64/XZ over key then value of each pair, XORed over all pairs.
    pub crc64: u64,
    /// Number of pairs.
    pub pairs: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
}

/// The smaller upper bound, where empty means none.
fn lower_end(one: &Bytes, other: &Bytes) -> Bytes {
    if one.is_empty() || (!other.is_empty() && other < one) {
        other.clone()
    } else {
        one.clone()
    }
}

/// Refuses a range whose end lies before its start.
fn check_range(start: &Bytes, end: &Bytes) -> Result<()> {
    if !end.is_empty() && end < start {
        return Err(Error::InvalidArgument(
            "the end of the range lies before its start: swap them".into(),
        ));
    }
    Ok(())
}

/// Rows of the next page, from what the rows so far weighed; for the first page from what a row
/// of an earlier scan weighed, where there was one.
fn page_rows(rows: usize, bytes: usize, remembered: Option<usize>) -> usize {
    let fitting = |row_bytes: usize| PAGE_BYTES / row_bytes.max(1);
    match (rows, remembered) {
        (0, None) => PAGE_ROWS_FIRST,
        (0, Some(row_bytes)) => fitting(row_bytes).clamp(1, PAGE_ROWS_BY_MEMORY),
        _ => fitting(bytes / rows).clamp(1, PAGE_ROWS_MAX),
    }
}

impl RawClient {
    /// The pairs of a range in order, over as many regions as it takes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an inverted range, [`Error::Exhausted`] without an
    /// answer in time.
    pub async fn scan(&self, scan: Scan) -> Result<Vec<(Bytes, Bytes)>> {
        let mut found = Vec::new();
        self.scan_each(scan, |key, value| found.push((key, value)))
            .await?;
        Ok(found)
    }

    /// As [`Self::scan`], handing each pair to `visit` as it arrives. The time budget is
    /// one page's.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub async fn scan_each(
        &self,
        scan: Scan,
        mut visit: impl FnMut(Bytes, Bytes) + Send,
    ) -> Result<()> {
        check_range(&scan.start, &scan.end)?;
        let mut left = scan.limit.unwrap_or(usize::MAX);
        let (mut start, mut end) = (scan.start, scan.end);
        let (mut rows, mut bytes) = (0, 0);
        let remembered = self.core.row_bytes(scan.keys_only);
        let mut rows_max = PAGE_ROWS_MAX;
        while left > 0 && (end.is_empty() || start < end) {
            let mut budget = self.scheduler().budget();
            let mut limit = page_rows(rows, bytes, remembered).min(rows_max).min(left);
            let (route, page) = loop {
                let route = if scan.reverse {
                    self.core.route_below(&end, &mut budget).await?
                } else {
                    self.core.route(&start, &mut budget).await?
                };
                let request = page_request(&route, &start, &end, limit, scan.reverse);
                let request = kvrpcpb::RawScanRequest {
                    key_only: scan.keys_only,
                    ..request
                };
                match self.page(&route, request, &mut budget).await {
                    Ok(Some(page)) => break (route, page),
                    Ok(None) => {}
                    Err(Error::AnswerTooLarge { .. }) if limit > 1 => {
                        // What was remembered of other rows is of no use; then step by step.
                        limit = (limit / 2).min(PAGE_ROWS_FIRST);
                        rows_max = limit;
                    }
                    Err(error) => return Err(error),
                }
            };
            // Large rows may be few: the limit is lifted again step by step.
            rows_max = (2 * rows_max).min(PAGE_ROWS_MAX);
            let full = page.len() >= limit;
            let edge = page.last().map(|pair| pair.key.clone());
            for pair in page {
                rows += 1;
                left -= 1;
                bytes += pair.key.len() + pair.value.len();
                visit(pair.key, pair.value);
            }
            if let Some(row_bytes) = bytes.checked_div(rows) {
                self.core.remember_row_bytes(scan.keys_only, row_bytes);
            }
            match (scan.reverse, full, edge) {
                (false, true, Some(last)) => start = successor(&last),
                (true, true, Some(last)) => end = last,
                (false, _, _) => {
                    start = route.region.end_key.clone();
                    if start.is_empty() {
                        return Ok(());
                    }
                }
                (true, _, _) => {
                    end = route.region.start_key.clone();
                    if end.is_empty() {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    async fn page(
        &self,
        route: &Arc<Route>,
        request: kvrpcpb::RawScanRequest,
        budget: &mut Budget,
    ) -> Result<Option<Vec<kvrpcpb::KvPair>>> {
        let limit = request.limit as usize;
        let (reverse, range) = (
            request.reverse,
            (request.start_key.clone(), request.end_key.clone()),
        );
        let answer = self
            .core
            .attempt(route, Kind::Read, budget, |mut call: Call| async move {
                let request = kvrpcpb::RawScanRequest {
                    context: Some(call.context),
                    ..request
                };
                call.client.raw_scan(timed(request, call.time)).await
            })
            .await?;
        match answer {
            Some(answer) if answer.kvs.len() > limit => Err(Error::Malformed(format!(
                "{} pairs for a limit of {limit}",
                answer.kvs.len()
            ))),
            Some(answer) if !is_page(&answer.kvs, reverse, &range) => Err(Error::Malformed(
                "pairs of a scan are outside of its range, or not in order".into(),
            )),
            Some(answer) => Ok(Some(answer.kvs)),
            None => Ok(None),
        }
    }

    /// Removes all keys with start ≤ key < end (empty: no upper bound), region by region.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an inverted range; else as [`Self::put`]. After an
    /// error the range may be removed in part.
    pub async fn delete_range(&self, start: &[u8], end: &[u8]) -> Result<()> {
        let mut start = Bytes::copy_from_slice(start);
        let end = Bytes::copy_from_slice(end);
        check_range(&start, &end)?;
        while end.is_empty() || start < end {
            let mut budget = self.scheduler().budget();
            let route = loop {
                let route = self.core.route(&start, &mut budget).await?;
                let request = kvrpcpb::RawDeleteRangeRequest {
                    start_key: start.clone(),
                    end_key: lower_end(&end, &route.region.end_key),
                    ..Default::default()
                };
                let sent = self
                    .core
                    .attempt(
                        &route,
                        self.repeatable(),
                        &mut budget,
                        |mut call| async move {
                            let request = kvrpcpb::RawDeleteRangeRequest {
                                context: Some(call.context),
                                ..request
                            };
                            call.client
                                .raw_delete_range(timed(request, call.time))
                                .await
                        },
                    )
                    .await?;
                if sent.is_some() {
                    break route;
                }
            };
            start = route.region.end_key.clone();
            if start.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// The sum over all pairs with start ≤ key < end (empty: no upper bound). One
    /// consistent state per region.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub async fn checksum(&self, start: &[u8], end: &[u8]) -> Result<Checksum> {
        let mut start = Bytes::copy_from_slice(start);
        let end = Bytes::copy_from_slice(end);
        check_range(&start, &end)?;
        let mut sum = Checksum::default();
        while end.is_empty() || start < end {
            let mut budget = self.scheduler().budget();
            let (route, part) = loop {
                let route = self.core.route(&start, &mut budget).await?;
                let range = kvrpcpb::KeyRange {
                    start_key: start.clone(),
                    end_key: lower_end(&end, &route.region.end_key),
                };
                let part = self
                    .core
                    .attempt(
                        &route,
                        Kind::Read,
                        &mut budget,
                        |mut call: Call| async move {
                            let request = kvrpcpb::RawChecksumRequest {
                                context: Some(call.context),
                                algorithm: kvrpcpb::ChecksumAlgorithm::Crc64Xor as i32,
                                ranges: vec![range],
                            };
                            call.client.raw_checksum(timed(request, call.time)).await
                        },
                    )
                    .await?;
                if let Some(part) = part {
                    break (route, part);
                }
            };
            sum.crc64 ^= part.checksum;
            sum.pairs = sum.pairs.saturating_add(part.total_kvs);
            sum.bytes = sum.bytes.saturating_add(part.total_bytes);
            start = route.region.end_key.clone();
            if start.is_empty() {
                break;
            }
        }
        Ok(sum)
    }
}

/// One page of the part of start ≤ key < end that lies in the route's region.
fn page_request(
    route: &Route,
    start: &Bytes,
    end: &Bytes,
    limit: usize,
    reverse: bool,
) -> kvrpcpb::RawScanRequest {
    let low = start.max(&route.region.start_key).clone();
    let high = lower_end(end, &route.region.end_key);
    let (start_key, end_key) = if reverse { (high, low) } else { (low, high) };
    kvrpcpb::RawScanRequest {
        start_key,
        end_key,
        limit: u32::try_from(limit).unwrap_or(u32::MAX),
        reverse,
        ..Default::default()
    }
}

/// True when each pair lies in the range that was asked for (start above end for a reverse
/// page; an empty upper bound is none) and behind the one before it. A walk goes on behind
/// the last pair, so that one out of place could send it round for ever.
fn is_page(pairs: &[kvrpcpb::KvPair], reverse: bool, (start, end): &(Bytes, Bytes)) -> bool {
    let (low, high) = if reverse { (end, start) } else { (start, end) };
    let mut before: Option<&Bytes> = None;
    pairs.iter().all(|pair| {
        let in_order = match before.replace(&pair.key) {
            None => true,
            Some(before) if reverse => pair.key < before,
            Some(before) => pair.key > before,
        };
        in_order && pair.key >= low && (high.is_empty() || pair.key < high)
    })
}

/// The first key behind `key`.
fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_with_small_rows_and_shrink_with_large_ones() {
        assert_eq!(page_rows(0, 0, None), PAGE_ROWS_FIRST);
        for remembered in [None, Some(1)] {
            assert_eq!(page_rows(64, 64 * 16, remembered), PAGE_ROWS_MAX);
            assert_eq!(page_rows(64, 64 << 20, remembered), 1);
            assert_eq!(page_rows(10, 10 << 10, remembered), 1024);
        }
    }

    #[test]
    fn the_first_page_goes_by_the_scan_before() {
        assert_eq!(page_rows(0, 0, Some(0)), PAGE_ROWS_BY_MEMORY);
        assert_eq!(page_rows(0, 0, Some(4 << 10)), 256);
        assert_eq!(page_rows(0, 0, Some(64 << 20)), 1);
    }

    #[test]
    fn a_page_is_clipped_to_its_region_in_both_directions() {
        let route = Route {
            region: strata_proto::metapb::Region {
                start_key: Bytes::from_static(b"f"),
                end_key: Bytes::from_static(b"m"),
                ..Default::default()
            },
            leader: Default::default(),
        };
        let (start, end) = (Bytes::from_static(b"a"), Bytes::new());
        let forward = page_request(&route, &start, &end, 5, false);
        assert_eq!(
            (&forward.start_key[..], &forward.end_key[..]),
            (&b"f"[..], &b"m"[..])
        );
        let reverse = page_request(&route, &start, &end, 5, true);
        assert_eq!(
            (&reverse.start_key[..], &reverse.end_key[..]),
            (&b"m"[..], &b"f"[..])
        );
        let inner = page_request(
            &route,
            &Bytes::from_static(b"g"),
            &Bytes::from_static(b"h"),
            5,
            true,
        );
        assert_eq!(
            (&inner.start_key[..], &inner.end_key[..]),
            (&b"h"[..], &b"g"[..])
        );
    }

    #[test]
    fn an_empty_end_is_no_bound() {
        let (none, some) = (Bytes::new(), Bytes::from_static(b"k"));
        assert_eq!(lower_end(&none, &some), some);
        assert_eq!(lower_end(&some, &none), some);
        assert!(lower_end(&none, &none).is_empty());
        assert!(check_range(&some, &none).is_ok());
        assert!(check_range(&some, &Bytes::from_static(b"a")).is_err());
    }
}
