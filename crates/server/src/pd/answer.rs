//! Answers of PD's protocol, in the forms that published clients can take.
//!
//! Clients unwrap the header of every answer, and take a header with any error in it, even
//! one of type OK, for a failure. So headers are made here and nowhere else.

use strata_proto::metapb::{Peer, Region, Store};
use strata_proto::pdpb::{
    self, Error, ErrorType, GetRegionResponse, Member, RegionHeartbeatRequest, RequestHeader,
    ResponseHeader, ScanRegionsResponse,
};
use tonic::Status;

/// The header of a successful answer.
pub(super) fn header(cluster_id: u64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        cluster_id,
        error: None,
    })
}

/// The header of an answer that says what is wrong.
pub(super) fn error_header(
    cluster_id: u64,
    kind: ErrorType,
    message: String,
) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        cluster_id,
        error: Some(Error {
            r#type: kind.into(),
            message,
        }),
    })
}

/// Refuses a call that was meant for another cluster. A call without a header or without
/// a cluster id is taken.
pub(super) fn check_header(header: Option<&RequestHeader>, cluster_id: u64) -> Result<(), Status> {
    match header.map_or(0, |header| header.cluster_id) {
        0 => Ok(()),
        asked if asked == cluster_id => Ok(()),
        asked => Err(Status::failed_precondition(format!(
            "the call is for cluster {asked}, this is cluster {cluster_id}"
        ))),
    }
}

/// One node as a member. The same node is always told in the same words, because clients
/// compare members.
pub(super) fn member(store_id: u64, address: &str) -> Member {
    let url = format!("http://{address}");
    Member {
        name: format!("store-{store_id}"),
        member_id: store_id,
        peer_urls: vec![url.clone()],
        client_urls: vec![url],
        ..Default::default()
    }
}

/// The answer to a look-up of one region; no region leaves the fields unset.
pub(super) fn region(
    cluster_id: u64,
    found: Option<(Region, Option<Peer>)>,
    report: Option<RegionHeartbeatRequest>,
) -> GetRegionResponse {
    let (region, leader) = match found {
        Some((region, leader)) => (Some(region), leader),
        None => (None, None),
    };
    let report = report.unwrap_or_default();
    GetRegionResponse {
        header: header(cluster_id),
        region,
        leader,
        down_peers: report.down_peers,
        pending_peers: report.pending_peers,
    }
}

/// The answer to a scan, in the old parallel arrays and in the new form. A region without
/// a leader has an empty peer in the old one.
pub(super) fn regions(cluster_id: u64, found: Vec<(Region, Option<Peer>)>) -> ScanRegionsResponse {
    let (region_metas, leaders) = found
        .iter()
        .map(|(region, leader)| (region.clone(), leader.unwrap_or_default()))
        .unzip();
    let regions = found
        .into_iter()
        .map(|(region, leader)| pdpb::Region {
            region: Some(region),
            leader,
            ..Default::default()
        })
        .collect();
    ScanRegionsResponse {
        header: header(cluster_id),
        region_metas,
        leaders,
        regions,
    }
}

/// The store with an id, or the header that says there is none.
pub(super) fn store(
    cluster_id: u64,
    stores: Vec<Store>,
    store_id: u64,
) -> (Option<ResponseHeader>, Option<Store>) {
    match stores.into_iter().find(|store| store.id == store_id) {
        Some(store) => (header(cluster_id), Some(store)),
        None => (
            error_header(
                cluster_id,
                ErrorType::EntryNotFound,
                format!("there is no store {store_id}"),
            ),
            None,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successful_header_carries_no_error() {
        let header = header(9).unwrap();
        assert_eq!((header.cluster_id, header.error), (9, None));
    }

    #[test]
    fn a_foreign_cluster_is_refused_and_no_header_is_taken() {
        let asked = |cluster_id| RequestHeader {
            cluster_id,
            ..Default::default()
        };
        assert!(check_header(None, 9).is_ok());
        assert!(check_header(Some(&asked(0)), 9).is_ok());
        assert!(check_header(Some(&asked(9)), 9).is_ok());
        assert!(check_header(Some(&asked(8)), 9).is_err());
    }

    #[test]
    fn an_unknown_store_is_an_error_in_the_header() {
        let known = Store {
            id: 1,
            ..Default::default()
        };
        let (header, found) = store(9, vec![known.clone()], 1);
        assert_eq!((header.unwrap().error, found), (None, Some(known)));
        let (header, found) = store(9, Vec::new(), 1);
        assert!(header.unwrap().error.is_some() && found.is_none());
    }

    #[test]
    fn scans_fill_both_forms_alike() {
        let region = |id| Region {
            id,
            ..Default::default()
        };
        let leader = Peer {
            id: 5,
            store_id: 1,
            ..Default::default()
        };
        let answer = regions(9, vec![(region(2), Some(leader)), (region(3), None)]);
        assert_eq!(answer.region_metas.len(), 2);
        assert_eq!(answer.leaders, [leader, Peer::default()]);
        assert_eq!(answer.regions[0].leader, Some(leader));
        assert_eq!(answer.regions[1].leader, None);
    }
}
