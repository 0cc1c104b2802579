//! A server that answers PD look-ups, RawPut and RawGet from constants.
//!
//! It shows what client, gRPC and this machine can do at best: the same load generator,
//! the same connections, the port served by the same code with the same settings as a
//! node's, and no store behind it. It runs as a child of its own, as nodes do, and ends
//! with its parent.

use crate::args::NoopServerArgs;
use crate::exit::{Failure, Outcome};
use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use strata_proto::pdpb::pd_server::{Pd, PdServer};
use strata_proto::tikvpb::tikv_server::{Tikv, TikvServer};
use strata_proto::{kvrpcpb, metapb, pdpb};
use strata_server::config::Config;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

/// Regions that the server claims to have, as a new cluster has.
const REGIONS: u64 = 6;

/// The value that every get answers.
pub fn constant(value_size: usize) -> Bytes {
    vec![0x5a; value_size].into()
}

/// The server as a process.
pub struct Child {
    /// Where it listens.
    pub address: String,
    process: std::process::Child,
}

impl Child {
    /// Starts it and waits until it says where it listens. Must be called on the main
    /// thread: the child is killed when the thread that made it ends.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(value_size: u64) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["noop-server", "--value-size", &value_size.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        // SAFETY: between fork and exec only one system call is made.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let mut process = command.spawn()?;
        let mut address = String::new();
        if let Some(output) = process.stdout.take() {
            BufReader::new(output).read_line(&mut address)?;
        }
        let child = Self {
            address: address.trim().to_string(),
            process,
        };
        if child.address.is_empty() {
            return Err(Failure::error("the noop server did not start"));
        }
        Ok(child)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.process.id() as i32), Signal::SIGKILL);
        let _ = self.process.wait();
    }
}

/// Serves until killed; the first line on stdout is the address.
pub fn run(args: NoopServerArgs) -> Outcome {
    let (config, _) =
        Config::load(None, std::env::vars()).map_err(|error| Failure::error(error.to_string()))?;
    // As a node.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(strata_server::network_threads(&config))
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        println!("{address}");
        std::io::stdout().flush()?;
        let noop = Noop {
            address: Arc::from(address.as_str()),
            value: constant(args.value_size as usize),
        };
        let limit = config.server.max_message_size.bytes();
        let tikv = TikvServer::new(noop.clone()).max_decoding_message_size(limit);
        let routes = Routes::new(PdServer::new(noop).max_decoding_message_size(limit));
        // Until killed.
        strata_server::serve_port(&config, listener, tikv, routes, std::future::pending()).await;
        Ok(())
    })
}

#[derive(Clone)]
struct Noop {
    address: Arc<str>,
    value: Bytes,
}

fn header() -> Option<pdpb::ResponseHeader> {
    Some(pdpb::ResponseHeader {
        cluster_id: 1,
        error: None,
    })
}

/// Region `place` of equal parts of the key space by first byte.
fn region(place: u64) -> metapb::Region {
    let bound = |place: u64| match place {
        0 | REGIONS => Bytes::new(),
        place => vec![(place * 256 / REGIONS) as u8].into(),
    };
    metapb::Region {
        id: place + 2,
        start_key: bound(place),
        end_key: bound(place + 1),
        region_epoch: Some(metapb::RegionEpoch {
            conf_ver: 1,
            version: 1,
        }),
        peers: vec![peer(place)],
        ..Default::default()
    }
}

fn peer(place: u64) -> metapb::Peer {
    metapb::Peer {
        id: place + 100,
        store_id: 1,
        ..Default::default()
    }
}

fn place_of(key: &[u8]) -> u64 {
    (0..REGIONS)
        .rev()
        .find(|place| region(*place).start_key <= key)
        .unwrap_or(0)
}

fn found(place: u64) -> pdpb::GetRegionResponse {
    pdpb::GetRegionResponse {
        header: header(),
        region: Some(region(place)),
        leader: Some(peer(place)),
        ..Default::default()
    }
}

impl Noop {
    fn member(&self) -> pdpb::Member {
        pdpb::Member {
            name: "noop".into(),
            member_id: 1,
            client_urls: vec![format!("http://{}", self.address)],
            ..Default::default()
        }
    }

    fn store(&self) -> metapb::Store {
        metapb::Store {
            id: 1,
            address: self.address.to_string(),
            ..Default::default()
        }
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

fn not_here<T>() -> Answer<T> {
    Err(Status::unimplemented(
        "the noop server answers look-ups, RawPut and RawGet alone",
    ))
}

#[tonic::async_trait]
impl Pd for Noop {
    async fn get_members(
        &self,
        _: Request<pdpb::GetMembersRequest>,
    ) -> Answer<pdpb::GetMembersResponse> {
        answer(pdpb::GetMembersResponse {
            header: header(),
            members: vec![self.member()],
            leader: Some(self.member()),
            ..Default::default()
        })
    }

    type TsoStream = tokio_stream::Empty<Result<pdpb::TsoResponse, Status>>;

    async fn tso(&self, _: Request<Streaming<pdpb::TsoRequest>>) -> Answer<Self::TsoStream> {
        not_here()
    }

    async fn alloc_id(&self, _: Request<pdpb::AllocIdRequest>) -> Answer<pdpb::AllocIdResponse> {
        not_here()
    }

    async fn get_store(&self, _: Request<pdpb::GetStoreRequest>) -> Answer<pdpb::GetStoreResponse> {
        answer(pdpb::GetStoreResponse {
            header: header(),
            store: Some(self.store()),
            ..Default::default()
        })
    }

    async fn get_all_stores(
        &self,
        _: Request<pdpb::GetAllStoresRequest>,
    ) -> Answer<pdpb::GetAllStoresResponse> {
        answer(pdpb::GetAllStoresResponse {
            header: header(),
            stores: vec![self.store()],
        })
    }

    async fn get_region(
        &self,
        request: Request<pdpb::GetRegionRequest>,
    ) -> Answer<pdpb::GetRegionResponse> {
        answer(found(place_of(&request.get_ref().region_key)))
    }

    async fn get_prev_region(
        &self,
        request: Request<pdpb::GetRegionRequest>,
    ) -> Answer<pdpb::GetRegionResponse> {
        answer(found(
            place_of(&request.get_ref().region_key).saturating_sub(1),
        ))
    }

    async fn get_region_by_id(
        &self,
        request: Request<pdpb::GetRegionByIdRequest>,
    ) -> Answer<pdpb::GetRegionResponse> {
        let place = request.get_ref().region_id.wrapping_sub(2);
        if place >= REGIONS {
            return answer(pdpb::GetRegionResponse {
                header: header(),
                ..Default::default()
            });
        }
        answer(found(place))
    }

    async fn scan_regions(
        &self,
        request: Request<pdpb::ScanRegionsRequest>,
    ) -> Answer<pdpb::ScanRegionsResponse> {
        let regions = (place_of(&request.get_ref().start_key)..REGIONS)
            .map(|place| pdpb::Region {
                region: Some(region(place)),
                leader: Some(peer(place)),
                ..Default::default()
            })
            .collect();
        answer(pdpb::ScanRegionsResponse {
            header: header(),
            regions,
            ..Default::default()
        })
    }

    async fn get_cluster_info(
        &self,
        _: Request<pdpb::GetClusterInfoRequest>,
    ) -> Answer<pdpb::GetClusterInfoResponse> {
        not_here()
    }
}

#[tonic::async_trait]
impl Tikv for Noop {
    async fn raw_get(&self, _: Request<kvrpcpb::RawGetRequest>) -> Answer<kvrpcpb::RawGetResponse> {
        answer(kvrpcpb::RawGetResponse {
            value: self.value.clone(),
            ..Default::default()
        })
    }

    async fn raw_put(&self, _: Request<kvrpcpb::RawPutRequest>) -> Answer<kvrpcpb::RawPutResponse> {
        answer(kvrpcpb::RawPutResponse::default())
    }

    async fn raw_batch_get(
        &self,
        _: Request<kvrpcpb::RawBatchGetRequest>,
    ) -> Answer<kvrpcpb::RawBatchGetResponse> {
        not_here()
    }

    async fn raw_get_key_ttl(
        &self,
        _: Request<kvrpcpb::RawGetKeyTtlRequest>,
    ) -> Answer<kvrpcpb::RawGetKeyTtlResponse> {
        not_here()
    }

    async fn raw_batch_put(
        &self,
        _: Request<kvrpcpb::RawBatchPutRequest>,
    ) -> Answer<kvrpcpb::RawBatchPutResponse> {
        not_here()
    }

    async fn raw_delete(
        &self,
        _: Request<kvrpcpb::RawDeleteRequest>,
    ) -> Answer<kvrpcpb::RawDeleteResponse> {
        not_here()
    }

    async fn raw_batch_delete(
        &self,
        _: Request<kvrpcpb::RawBatchDeleteRequest>,
    ) -> Answer<kvrpcpb::RawBatchDeleteResponse> {
        not_here()
    }

    async fn raw_delete_range(
        &self,
        _: Request<kvrpcpb::RawDeleteRangeRequest>,
    ) -> Answer<kvrpcpb::RawDeleteRangeResponse> {
        not_here()
    }

    async fn raw_scan(
        &self,
        _: Request<kvrpcpb::RawScanRequest>,
    ) -> Answer<kvrpcpb::RawScanResponse> {
        not_here()
    }

    async fn raw_batch_scan(
        &self,
        _: Request<kvrpcpb::RawBatchScanRequest>,
    ) -> Answer<kvrpcpb::RawBatchScanResponse> {
        not_here()
    }

    async fn raw_compare_and_swap(
        &self,
        _: Request<kvrpcpb::RawCompareAndSwapRequest>,
    ) -> Answer<kvrpcpb::RawCompareAndSwapResponse> {
        not_here()
    }

    async fn raw_checksum(
        &self,
        _: Request<kvrpcpb::RawChecksumRequest>,
    ) -> Answer<kvrpcpb::RawChecksumResponse> {
        not_here()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_claimed_regions_cover_every_key_once() {
        for first in 0..=255u8 {
            let key = [first, 1, 2];
            let holders = (0..REGIONS)
                .filter(|place| {
                    let region = region(*place);
                    region.start_key <= key[..]
                        && (region.end_key.is_empty() || region.end_key > key[..])
                })
                .collect::<Vec<_>>();
            assert_eq!(holders, [place_of(&key)]);
        }
    }
}
