//! What a correct cluster of one store would answer: three regions, a key for each letter.

use bytes::Bytes;
use prost::Message;
use strata_proto::stratapb::{self, execute_response, session_answer};
use strata_proto::{kvrpcpb, metapb, pdpb};

/// Where regions begin and end; the first has the id 2.
pub const BOUNDS: [&[u8]; 4] = [b"", b"h", b"p", b""];
pub const STORE: u64 = 7;
pub const CLUSTER: u64 = 9;

pub fn header() -> Option<pdpb::ResponseHeader> {
    Some(pdpb::ResponseHeader {
        cluster_id: CLUSTER,
        error: None,
    })
}

pub fn region(place: usize) -> metapb::Region {
    metapb::Region {
        id: place as u64 + 2,
        start_key: Bytes::from_static(BOUNDS[place]),
        end_key: Bytes::from_static(BOUNDS[place + 1]),
        region_epoch: Some(metapb::RegionEpoch {
            conf_ver: 1,
            version: 5,
        }),
        peers: vec![peer(place)],
        ..Default::default()
    }
}

pub fn peer(place: usize) -> metapb::Peer {
    metapb::Peer {
        id: place as u64 + 20,
        store_id: STORE,
        ..Default::default()
    }
}

pub fn found(place: usize) -> pdpb::GetRegionResponse {
    pdpb::GetRegionResponse {
        header: header(),
        region: Some(region(place)),
        leader: Some(peer(place)),
        ..Default::default()
    }
}

fn place_of(key: &[u8]) -> usize {
    (0..3).rev().find(|place| BOUNDS[*place] <= key).unwrap()
}

pub fn pairs() -> Vec<kvrpcpb::KvPair> {
    (b'a'..=b'z')
        .map(|letter| kvrpcpb::KvPair {
            key: vec![letter].into(),
            value: vec![letter; 3].into(),
            ..Default::default()
        })
        .collect()
}

fn store(address: &str) -> metapb::Store {
    metapb::Store {
        id: STORE,
        address: address.into(),
        ..Default::default()
    }
}

/// The answer to a call, encoded. A request that cannot be read is taken for an empty one.
pub fn answer(address: &str, path: &str, request: Bytes) -> Vec<u8> {
    let (service, call) = path[1..].split_once('/').unwrap();
    match service {
        "pdpb.PD" => scheduler(address, call, request),
        "tikvpb.Tikv" => raw(call, request),
        "stratapb.Clerk" => clerk(call, request),
        _ => strata(address, call),
    }
}

fn scheduler(address: &str, call: &str, request: Bytes) -> Vec<u8> {
    let key = || pdpb::GetRegionRequest::decode(request.clone()).unwrap_or_default();
    match call {
        "GetMembers" => {
            let member = pdpb::Member {
                member_id: STORE,
                client_urls: vec![format!("http://{address}")],
                ..Default::default()
            };
            pdpb::GetMembersResponse {
                header: header(),
                members: vec![member.clone()],
                leader: Some(member),
                ..Default::default()
            }
            .encode_to_vec()
        }
        "GetRegion" => found(place_of(&key().region_key)).encode_to_vec(),
        "GetPrevRegion" => found(place_of(&key().region_key).max(1) - 1).encode_to_vec(),
        "GetRegionByID" => found(0).encode_to_vec(),
        "ScanRegions" => {
            let request = pdpb::ScanRegionsRequest::decode(request).unwrap_or_default();
            let regions = (place_of(&request.start_key)..3).map(|place| pdpb::Region {
                region: Some(region(place)),
                leader: Some(peer(place)),
                ..Default::default()
            });
            pdpb::ScanRegionsResponse {
                header: header(),
                regions: regions.collect(),
                ..Default::default()
            }
            .encode_to_vec()
        }
        "GetStore" => pdpb::GetStoreResponse {
            header: header(),
            store: Some(store(address)),
            ..Default::default()
        }
        .encode_to_vec(),
        "GetAllStores" => pdpb::GetAllStoresResponse {
            header: header(),
            stores: vec![store(address)],
        }
        .encode_to_vec(),
        "AllocID" => pdpb::AllocIdResponse {
            header: header(),
            id: 1000,
            count: 1,
        }
        .encode_to_vec(),
        "Tso" => {
            let request = pdpb::TsoRequest::decode(request).unwrap_or_default();
            pdpb::TsoResponse {
                header: header(),
                count: request.count,
                timestamp: Some(pdpb::Timestamp {
                    physical: 1_700_000_000_000,
                    logical: i64::from(request.count),
                    ..Default::default()
                }),
            }
            .encode_to_vec()
        }
        other => panic!("no client calls {other}"),
    }
}

fn raw(call: &str, request: Bytes) -> Vec<u8> {
    match call {
        "RawGet" => kvrpcpb::RawGetResponse {
            value: Bytes::from_static(b"v"),
            ..Default::default()
        }
        .encode_to_vec(),
        "RawScan" => {
            let request = kvrpcpb::RawScanRequest::decode(request).unwrap_or_default();
            let (low, high) = match request.reverse {
                true => (&request.end_key, &request.start_key),
                false => (&request.start_key, &request.end_key),
            };
            let mut kvs = pairs();
            kvs.retain(|pair| pair.key >= low && (high.is_empty() || pair.key < high));
            if request.reverse {
                kvs.reverse();
            }
            kvs.truncate(request.limit as usize);
            kvrpcpb::RawScanResponse {
                kvs,
                ..Default::default()
            }
            .encode_to_vec()
        }
        "RawBatchGet" => kvrpcpb::RawBatchGetResponse {
            pairs: pairs(),
            ..Default::default()
        }
        .encode_to_vec(),
        "RawChecksum" => kvrpcpb::RawChecksumResponse {
            checksum: 1,
            total_kvs: 2,
            total_bytes: 3,
            ..Default::default()
        }
        .encode_to_vec(),
        "RawCompareAndSwap" => kvrpcpb::RawCompareAndSwapResponse {
            succeed: true,
            previous_not_exist: true,
            ..Default::default()
        }
        .encode_to_vec(),
        "RawGetKeyTTL" => kvrpcpb::RawGetKeyTtlResponse {
            ttl: 60,
            ..Default::default()
        }
        .encode_to_vec(),
        // Writes are answered by nothing but an error.
        _ => Vec::new(),
    }
}

fn clerk(call: &str, request: Bytes) -> Vec<u8> {
    if call == "OpenSession" {
        return stratapb::OpenSessionResponse {
            session_id: vec![1; 20].into(),
            ..Default::default()
        }
        .encode_to_vec();
    }
    let request = stratapb::ExecuteRequest::decode(request).unwrap_or_default();
    let is_swap = matches!(
        request.command.and_then(|command| command.body),
        Some(stratapb::data_command::Body::CompareAndSwap(_))
    );
    let outcome = if is_swap {
        session_answer::Outcome::CompareAndSwap(Default::default())
    } else {
        session_answer::Outcome::Executed(Default::default())
    };
    stratapb::ExecuteResponse {
        outcome: Some(execute_response::Outcome::Answer(stratapb::SessionAnswer {
            outcome: Some(outcome),
        })),
        ..Default::default()
    }
    .encode_to_vec()
}

fn strata(address: &str, call: &str) -> Vec<u8> {
    match call {
        "Status" => stratapb::StatusResponse {
            cluster_id: CLUSTER,
            scheduler_store_id: STORE,
            stores: vec![stratapb::StoreStatus {
                store: Some(store(address)),
                ..Default::default()
            }],
        }
        .encode_to_vec(),
        "WatchRegions" => stratapb::WatchRegionsResponse::default().encode_to_vec(),
        _ => Vec::new(),
    }
}
