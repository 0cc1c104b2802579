//! Calls of tools: status, leader transfer, watching regions.

use crate::channels;
use crate::scheduler::{first_line, is_final, timed};
use crate::timestamps::leader_address;
use crate::{Connection, Error, Result, Scheduler};
use std::time::Duration;
use strata_proto::stratapb;
use strata_proto::stratapb::strata_client::StrataClient;

/// A handle on StrataKV's own service; clones share connections.
#[derive(Clone)]
pub struct Admin {
    scheduler: Scheduler,
}

impl Admin {
    /// A handle over an open connection.
    pub fn new(scheduler: Scheduler) -> Self {
        Self { scheduler }
    }

    /// The scheduler of the same cluster.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    fn client(&self, address: &str) -> Result<StrataClient<Connection>> {
        let channel = self.scheduler.channels().to(address)?;
        Ok(StrataClient::new(channel).max_decoding_message_size(channels::MESSAGE_BYTES_MAX))
    }

    /// The node that leads region 1 first, then all others.
    async fn nodes(&self) -> Vec<String> {
        let mut nodes = Vec::new();
        if let Ok(members) = self.scheduler.members().await {
            nodes.extend(leader_address(&members));
        }
        for address in self.scheduler.endpoints() {
            if !nodes.contains(&address) {
                nodes.push(address);
            }
        }
        nodes
    }

    /// Stores with their statistics, and who leads region 1.
    ///
    /// # Errors
    /// [`Error::Exhausted`] when no node answers in time.
    pub async fn status(&self) -> Result<stratapb::StatusResponse> {
        let mut budget = self.scheduler.budget();
        loop {
            for address in self.nodes().await {
                let time = budget.next_attempt(self.scheduler.options().attempt_timeout)?;
                let mut client = self.client(&address)?;
                let request = timed(stratapb::StatusRequest {}, time);
                // The node may hang without closing its connection.
                match tokio::time::timeout(time, client.status(request)).await {
                    Ok(Ok(answer)) => return Ok(answer.into_inner()),
                    Ok(Err(status)) => {
                        budget.note(format!("{address}: {}", channels::describe(&status)));
                    }
                    Err(_) => budget.note(format!("{address}: no status in {time:?}")),
                }
            }
            budget.pause(Duration::ZERO).await;
        }
    }

    /// Moves the leadership of a region to its peer on a store, and waits until the
    /// scheduler says so.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown region, [`Error::InvalidArgument`] for a store
    /// that has no voter of it, [`Error::Exhausted`] when it did not move in time.
    pub async fn transfer_leader(&self, region_id: u64, to_store_id: u64) -> Result<()> {
        let mut budget = self.scheduler.budget();
        loop {
            let info = self.scheduler.region_by_id(region_id).await?;
            if !info
                .region
                .peers
                .iter()
                .any(|peer| peer.store_id == to_store_id)
            {
                return Err(Error::InvalidArgument(format!(
                    "region {region_id} has no replica on store {to_store_id}: \
                     choose one of its stores (`strata region show {region_id}`)"
                )));
            }
            let leader = info.leader.map(|leader| leader.store_id);
            if leader == Some(to_store_id) {
                return Ok(());
            }
            let time = budget.next_attempt(self.scheduler.options().attempt_timeout)?;
            match leader {
                None => budget.note(format!("region {region_id} has no leader")),
                Some(store_id) => {
                    let store = self.scheduler.store(store_id).await?;
                    let address = channels::normalize(&store.address)?;
                    let request = stratapb::TransferLeaderRequest {
                        region_id,
                        to_store_id,
                    };
                    let mut client = self.client(&address)?;
                    let moving = client.transfer_leader(timed(request, time));
                    match tokio::time::timeout(time, moving).await {
                        Err(_) => budget.note(format!("{address}: no answer in {time:?}")),
                        Ok(Ok(_)) => budget.note(format!(
                            "region {region_id} is still led by store {store_id}"
                        )),
                        Ok(Err(status)) if is_refusal(&status) => {
                            return Err(Error::Refused {
                                message: first_line(status.message()),
                            });
                        }
                        Ok(Err(status)) => budget.note(channels::describe(&status)),
                    }
                }
            }
            budget.pause(Duration::from_millis(20)).await;
        }
    }

    /// The heartbeats of all regions as they reach the scheduler's leader, those known
    /// already first. Ends when that leader changes or stops; call again to go on.
    ///
    /// # Errors
    /// [`Error::Exhausted`] when no node serves the stream in time.
    pub async fn watch_regions(&self) -> Result<tonic::Streaming<stratapb::WatchRegionsResponse>> {
        let mut budget = self.scheduler.budget();
        loop {
            for address in self.nodes().await {
                let time = budget.next_attempt(self.scheduler.options().attempt_timeout)?;
                let mut client = self.client(&address)?;
                let opening = client.watch_regions(stratapb::WatchRegionsRequest {});
                match tokio::time::timeout(time, opening).await {
                    Ok(Ok(stream)) => return Ok(stream.into_inner()),
                    Ok(Err(status)) => {
                        budget.note(format!("{address}: {}", channels::describe(&status)));
                    }
                    Err(_) => budget.note(format!("{address}: no stream in {time:?}")),
                }
            }
            budget.pause(Duration::ZERO).await;
        }
    }
}

/// True when the leader will not move whoever asks again. A leader that has just moved
/// answers FailedPrecondition, so that one is tried again.
fn is_refusal(status: &tonic::Status) -> bool {
    is_final(status)
        && status.code() != tonic::Code::FailedPrecondition
        && status.code() != tonic::Code::NotFound
}
