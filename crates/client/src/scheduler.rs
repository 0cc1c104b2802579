//! Calls to the scheduler, through any node.
//!
//! Every node answers the PD protocol; those that do not lead forward. So a call goes to
//! the node that answered last, and on to the next one when it fails. GetMembers adds the
//! nodes that the caller did not name.
//!
//! Invariants
//! * Each request carries the cluster id that the first GetMembers named, so that a
//!   client never mixes two clusters whose nodes changed ports.

use crate::budget::Budget;
use crate::channels::{self, Channels};
use crate::{Connection, Error, Options, Result};
use bytes::Bytes;
use parking_lot::RwLock;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use strata_proto::pdpb::pd_client::PdClient;
use strata_proto::{metapb, pdpb};

/// Nodes forward for at most half a second; a little more covers the way.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(1500);
/// Most nodes that are asked: those that members name beyond are left out.
const ENDPOINTS_MAX: usize = 1024;
/// Longest line of a server's words, in characters.
const LINE_CHARS_MAX: usize = 500;

/// A region as the scheduler knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct RegionInfo {
    /// Id, range, epoch and peers.
    pub region: metapb::Region,
    /// The peer that leads, if one is known.
    pub leader: Option<metapb::Peer>,
}

/// A handle on the scheduler; clones share connections.
#[derive(Clone)]
pub struct Scheduler {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    channels: Channels,
    endpoints: RwLock<Endpoints>,
    cluster_id: AtomicU64,
    operations: AtomicU64,
}

/// Nodes to ask; `preferred` is the place of the one that answered last.
struct Endpoints {
    addresses: Vec<String>,
    preferred: usize,
}

/// What all answers of the PD service have.
trait Answer {
    fn header(&self) -> Option<&pdpb::ResponseHeader>;
}

macro_rules! answers {
    ($($name:ident),*) => {
        $(impl Answer for pdpb::$name {
            fn header(&self) -> Option<&pdpb::ResponseHeader> {
                self.header.as_ref()
            }
        })*
    };
}

answers!(
    GetMembersResponse,
    GetRegionResponse,
    ScanRegionsResponse,
    GetStoreResponse,
    GetAllStoresResponse,
    AllocIdResponse
);

impl Scheduler {
    /// Connects to a cluster through one or more of its nodes, `HOST:PORT` each.
    ///
    /// # Errors
    /// [`Error::BadEndpoint`] for a wrong list, [`Error::Exhausted`] when no node answers.
    pub async fn connect<S: AsRef<str>>(endpoints: &[S], options: Options) -> Result<Self> {
        let addresses = endpoints
            .iter()
            .map(|endpoint| channels::normalize(endpoint.as_ref()))
            .collect::<Result<Vec<_>>>()?;
        if addresses.is_empty() {
            return Err(Error::BadEndpoint {
                endpoint: String::new(),
                reason: "the list of endpoints is empty".into(),
            });
        }
        let scheduler = Self {
            shared: Arc::new(Shared {
                channels: Channels::new(&options),
                options,
                endpoints: RwLock::new(Endpoints {
                    addresses,
                    preferred: 0,
                }),
                cluster_id: AtomicU64::new(0),
                operations: AtomicU64::new(0),
            }),
        };
        scheduler.members().await?;
        Ok(scheduler)
    }

    /// The settings that the client was made with.
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> u64 {
        self.shared.cluster_id.load(Ordering::Relaxed)
    }

    /// The nodes that are asked, those that the caller named first.
    pub fn endpoints(&self) -> Vec<String> {
        self.shared.endpoints.read().addresses.clone()
    }

    pub(crate) fn channels(&self) -> &Channels {
        &self.shared.channels
    }

    /// A budget for one operation.
    pub(crate) fn budget(&self) -> Budget {
        Budget::start(self.options(), self.next_operation())
    }

    /// A number that no other operation of this client has.
    pub(crate) fn next_operation(&self) -> u64 {
        self.shared.operations.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn header(&self) -> pdpb::RequestHeader {
        pdpb::RequestHeader {
            cluster_id: self.cluster_id(),
            ..Default::default()
        }
    }

    /// The members and the one that leads, and takes their addresses in.
    ///
    /// # Errors
    /// [`Error::Exhausted`] when no node answers.
    pub async fn members(&self) -> Result<pdpb::GetMembersResponse> {
        let mut budget = self.budget();
        let answer = self
            .unary(&mut budget, |mut client, header, time| async move {
                let request = pdpb::GetMembersRequest {
                    header: Some(header),
                };
                client.get_members(timed(request, time)).await
            })
            .await?;
        self.check_cluster(&answer)?;
        let mut endpoints = self.shared.endpoints.write();
        for url in answer.members.iter().flat_map(|member| &member.client_urls) {
            if endpoints.addresses.len() >= ENDPOINTS_MAX {
                break;
            }
            if let Ok(address) = channels::normalize(url)
                && !endpoints.addresses.contains(&address)
            {
                endpoints.addresses.push(address);
            }
        }
        drop(endpoints);
        Ok(answer)
    }

    /// Takes the cluster's id from the first answer, and refuses another one later.
    fn check_cluster(&self, answer: &pdpb::GetMembersResponse) -> Result<()> {
        let named = answer.header.as_ref().map_or(0, |header| header.cluster_id);
        if named == 0 {
            return Err(Error::Malformed("members of no cluster".into()));
        }
        let (new, order) = (named, Ordering::Relaxed);
        match (self.shared.cluster_id).compare_exchange(0, new, order, order) {
            Err(known) if known != named => Err(Error::Malformed(format!(
                "members of cluster {named}, not of {known}"
            ))),
            _ => Ok(()),
        }
    }

    /// The region that holds `key`, as plain bytes.
    ///
    /// # Errors
    /// [`Error::Exhausted`] when no node answers, [`Error::Scheduler`] for a refusal.
    pub async fn region(&self, key: &[u8]) -> Result<RegionInfo> {
        self.region_within(key, &mut self.budget()).await
    }

    pub(crate) async fn region_within(
        &self,
        key: &[u8],
        budget: &mut Budget,
    ) -> Result<RegionInfo> {
        let answer = self
            .unary(budget, |mut client, header, time| {
                let request = region_request(header, key);
                async move { client.get_region(timed(request, time)).await }
            })
            .await?;
        region_info(answer, || format!("a region for key {key:02x?}"))
    }

    /// The region just left of the one that holds `key`.
    ///
    /// # Errors
    /// [`Error::NotFound`] when that is the first region; else as [`Self::region`].
    pub async fn previous_region(&self, key: &[u8]) -> Result<RegionInfo> {
        self.previous_region_within(key, &mut self.budget()).await
    }

    pub(crate) async fn previous_region_within(
        &self,
        key: &[u8],
        budget: &mut Budget,
    ) -> Result<RegionInfo> {
        let answer = self
            .unary(budget, |mut client, header, time| {
                let request = region_request(header, key);
                async move { client.get_prev_region(timed(request, time)).await }
            })
            .await?;
        region_info(answer, || format!("a region left of key {key:02x?}"))
    }

    /// One region by its id.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such region; else as [`Self::region`].
    pub async fn region_by_id(&self, region_id: u64) -> Result<RegionInfo> {
        let answer = self
            .unary(&mut self.budget(), |mut client, header, time| async move {
                let request = pdpb::GetRegionByIdRequest {
                    header: Some(header),
                    region_id,
                    ..Default::default()
                };
                client.get_region_by_id(timed(request, time)).await
            })
            .await?;
        region_info(answer, || format!("region {region_id}"))
    }

    /// Regions in key order from the one that holds `start`, up to `end` (empty: all), at
    /// most `limit`.
    ///
    /// # Errors
    /// As [`Self::region`].
    pub async fn scan_regions(
        &self,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<RegionInfo>> {
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        let answer = self
            .unary(&mut self.budget(), |mut client, header, time| {
                let request = pdpb::ScanRegionsRequest {
                    header: Some(header),
                    start_key: Bytes::copy_from_slice(start),
                    limit,
                    end_key: Bytes::copy_from_slice(end),
                };
                async move { client.scan_regions(timed(request, time)).await }
            })
            .await?;
        answer
            .regions
            .into_iter()
            .map(|found| {
                let region = found
                    .region
                    .ok_or_else(|| Error::Malformed("a region without its record".into()))?;
                Ok(RegionInfo {
                    region,
                    leader: known_peer(found.leader),
                })
            })
            .collect()
    }

    /// All regions in key order, read in pages.
    ///
    /// # Errors
    /// As [`Self::region`].
    pub async fn all_regions(&self) -> Result<Vec<RegionInfo>> {
        const PAGE: usize = 1024;
        let mut all: Vec<RegionInfo> = Vec::new();
        let mut start = Bytes::new();
        loop {
            let page = self.scan_regions(&start, b"", PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(all);
            };
            let next = last.region.end_key.clone();
            all.extend(page);
            if next.is_empty() {
                return Ok(all);
            }
            if next <= start {
                return Err(Error::Malformed("regions are not in key order".into()));
            }
            start = next;
        }
    }

    /// One store by its id.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such store; else as [`Self::region`].
    pub async fn store(&self, store_id: u64) -> Result<metapb::Store> {
        self.store_within(store_id, &mut self.budget()).await
    }

    pub(crate) async fn store_within(
        &self,
        store_id: u64,
        budget: &mut Budget,
    ) -> Result<metapb::Store> {
        let answer = self
            .unary(budget, |mut client, header, time| async move {
                let request = pdpb::GetStoreRequest {
                    header: Some(header),
                    store_id,
                };
                client.get_store(timed(request, time)).await
            })
            .await?;
        answer
            .store
            .filter(|store| store.id == store_id)
            .ok_or_else(|| Error::NotFound(format!("store {store_id}")))
    }

    /// All stores.
    ///
    /// # Errors
    /// As [`Self::region`].
    pub async fn all_stores(&self) -> Result<Vec<metapb::Store>> {
        let answer = self
            .unary(&mut self.budget(), |mut client, header, time| async move {
                let request = pdpb::GetAllStoresRequest {
                    header: Some(header),
                    exclude_tombstone_stores: false,
                };
                client.get_all_stores(timed(request, time)).await
            })
            .await?;
        Ok(answer.stores)
    }

    /// `count` ids that were never given out before; the answer is the highest of them,
    /// the others are those just below it.
    ///
    /// # Errors
    /// As [`Self::region`]. A lost answer only wastes ids.
    pub async fn alloc_ids(&self, count: u32) -> Result<u64> {
        let answer = self
            .unary(&mut self.budget(), |mut client, header, time| async move {
                let request = pdpb::AllocIdRequest {
                    header: Some(header),
                    count,
                };
                client.alloc_id(timed(request, time)).await
            })
            .await?;
        Ok(answer.id)
    }

    /// Calls nodes in turn until one answers or the budget ends.
    async fn unary<T, F, Fut>(&self, budget: &mut Budget, call: F) -> Result<T>
    where
        T: Answer,
        F: Fn(PdClient<Connection>, pdpb::RequestHeader, Duration) -> Fut,
        Fut: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    {
        let mut failures = 0;
        loop {
            let time = budget.next_attempt(ATTEMPT_TIMEOUT)?;
            let (place, address, nodes) = self.preferred();
            let client = PdClient::new(self.channels().to(&address)?)
                .max_decoding_message_size(channels::MESSAGE_BYTES_MAX);
            let answer = tokio::time::timeout(time, call(client, self.header(), time)).await;
            match answer {
                Ok(Ok(answer)) => {
                    let answer = answer.into_inner();
                    match answer.header().and_then(|header| header.error.as_ref()) {
                        None => return Ok(answer),
                        Some(error) if is_passing(error) => {
                            budget.note(format!("{address}: {}", first_line(&error.message)));
                        }
                        Some(error) => {
                            return Err(Error::Scheduler {
                                kind: error.r#type,
                                message: first_line(&error.message),
                            });
                        }
                    }
                }
                Ok(Err(status)) if is_final(&status) => {
                    return Err(Error::Scheduler {
                        kind: pdpb::ErrorType::Unknown as i32,
                        message: channels::describe(&status),
                    });
                }
                Ok(Err(status)) => {
                    budget.note(format!("{address}: {}", channels::describe(&status)));
                }
                Err(_) => budget.note(format!("{address}: no answer in {time:?}")),
            }
            self.prefer_next(place);
            failures += 1;
            if failures % nodes == 0 {
                budget.pause(Duration::ZERO).await;
            }
        }
    }

    /// Place and address of the node to ask, and how many there are.
    fn preferred(&self) -> (usize, String, usize) {
        let endpoints = self.shared.endpoints.read();
        let place = endpoints.preferred;
        let nodes = endpoints.addresses.len();
        (place, endpoints.addresses[place].clone(), nodes)
    }

    /// Turns to the node after `place`, unless another call did so already.
    fn prefer_next(&self, place: usize) {
        let mut endpoints = self.shared.endpoints.write();
        if endpoints.preferred == place {
            endpoints.preferred = (place + 1) % endpoints.addresses.len();
        }
    }
}

/// A request that carries its own time limit.
pub(crate) fn timed<T>(message: T, time: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(time);
    request
}

fn region_request(header: pdpb::RequestHeader, key: &[u8]) -> pdpb::GetRegionRequest {
    pdpb::GetRegionRequest {
        header: Some(header),
        region_key: Bytes::copy_from_slice(key),
        ..Default::default()
    }
}

fn region_info(answer: pdpb::GetRegionResponse, what: impl Fn() -> String) -> Result<RegionInfo> {
    let region = answer.region.ok_or_else(|| Error::NotFound(what()))?;
    Ok(RegionInfo {
        region,
        leader: known_peer(answer.leader),
    })
}

/// A peer that is named; the protocol also writes "none" as a peer of zeros.
fn known_peer(peer: Option<metapb::Peer>) -> Option<metapb::Peer> {
    peer.filter(|peer| peer.id != 0)
}

/// True for a refusal that ends by itself: the cluster is starting.
fn is_passing(error: &pdpb::Error) -> bool {
    error.r#type == pdpb::ErrorType::NotBootstrapped as i32
}

/// True when no other node would answer otherwise. A call that was broken off has no answer.
pub(crate) fn is_final(status: &tonic::Status) -> bool {
    use tonic::Code;
    let final_code = matches!(
        status.code(),
        Code::InvalidArgument
            | Code::Unimplemented
            | Code::NotFound
            | Code::OutOfRange
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::ResourceExhausted
    );
    final_code && !channels::was_broken_off(status)
}

/// A server's words as a part of one line: the first of theirs, not longer than a reader
/// wants it, and nothing in it that a terminal would obey.
pub(crate) fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.chars()
        .take(LINE_CHARS_MAX)
        .map(|char| {
            if char.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                char
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_was_given_up_is_no_answer() {
        for reason in [
            h2::Reason::ENHANCE_YOUR_CALM,
            h2::Reason::INADEQUATE_SECURITY,
            h2::Reason::CANCEL,
        ] {
            let status = tonic::Status::from_error(h2::Error::from(reason).into());
            assert!(!is_final(&status), "{status:?}");
        }
        assert!(is_final(&tonic::Status::resource_exhausted("too large")));
        assert!(is_final(&tonic::Status::permission_denied("not here")));
        assert!(!is_final(&tonic::Status::unavailable("later")));
    }
}
