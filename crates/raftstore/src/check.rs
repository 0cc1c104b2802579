//! Is this request for us, and can it be served at all?
//!
//! Two kinds of checks. Those of form need only the request and the limits; they run once,
//! at the gate. Those of address compare the request with the region's peer; they run at
//! the gate with what the peer last published, and again in the shard, which knows.
//!
//! Order of the address checks, which clients rely on: store, region, leader, peer, term,
//! epoch, key.

use bytes::Bytes;
use prost::Message as _;
use strata_proto::metapb::{Peer, Region};
use strata_proto::stratapb::{DataCommand, RawSpace, SessionOperation, data_command::Body};
use strata_storage::{keys, raw_value};

use crate::change_peers::check_changes;
use crate::directory::SYSTEM_REGION_ID;
use crate::error::{Error, InvalidRequest};
use crate::options::StoreOptions;
use crate::request::{ReadCommand, RequestBody, RequestHeader};
use crate::stamp::stamp_bytes;

/// Bytes of an entry beside its commands: clock, epoch and field headers.
const ENTRY_OVERHEAD_BYTES: usize = 64;
/// Mode byte and keyspace id in front of every key of API v2.
const V2_PREFIX_BYTES: usize = 4;

/// What the address checks compare a request with.
pub(crate) struct PeerFacts<'a> {
    pub region: &'a Region,
    pub peer_id: u64,
    pub term: u64,
    /// The leader that the peer knows.
    pub leader: Option<Peer>,
}

impl PeerFacts<'_> {
    fn leads(&self) -> bool {
        self.leader
            .as_ref()
            .is_some_and(|leader| leader.id == self.peer_id)
    }
}

/// What the address checks say of a request that is not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The peer may serve it.
    Here,
    /// No leader is known; the request waits for one.
    NoLeader,
}

/// Checks the form of a request and returns the encoded size of its commands.
pub(crate) fn check_form(
    options: &StoreOptions,
    header: &RequestHeader,
    body: &RequestBody,
) -> Result<usize, Error> {
    let of_system = header.region_id == SYSTEM_REGION_ID;
    match body {
        RequestBody::Read(command) => {
            refuse_system(of_system, header)?;
            check_read(options, command)?;
            Ok(0)
        }
        RequestBody::Write(commands) => {
            refuse_system(of_system, header)?;
            check_write(options, header.region_id, commands)
        }
        RequestBody::TransferLeader { .. } => Ok(0),
        RequestBody::ChangePeers { changes } => {
            let region_id = header.region_id;
            check_changes(changes)
                .map_err(|fault| InvalidRequest::PeerChange { region_id, fault })?;
            Ok(0)
        }
        RequestBody::SystemRead | RequestBody::SystemWrite(_) if !of_system => {
            Err(InvalidRequest::WrongKindOfRegion.into())
        }
        RequestBody::SystemRead => Ok(0),
        RequestBody::SystemWrite(request) => {
            check_entry_size(options, header.region_id, request.len())?;
            Ok(request.len())
        }
    }
}

/// Clients must not see region 1, whatever they ask of it.
fn refuse_system(of_system: bool, header: &RequestHeader) -> Result<(), Error> {
    if of_system {
        return Err(Error::RegionNotFound {
            region_id: header.region_id,
        });
    }
    Ok(())
}

fn check_read(options: &StoreOptions, command: &ReadCommand) -> Result<(), InvalidRequest> {
    match command {
        ReadCommand::Get { space, key } | ReadCommand::Ttl { space, key } => {
            check_key(options, *space, key)
        }
        ReadCommand::BatchGet { space, keys } => keys
            .iter()
            .try_for_each(|key| check_key(options, *space, key)),
        ReadCommand::Scan {
            start,
            end,
            reverse,
            ..
        } => check_range(start, end, *reverse),
        ReadCommand::BatchScan {
            ranges, reverse, ..
        } => ranges
            .iter()
            .try_for_each(|(start, end)| check_range(start, end, *reverse)),
        ReadCommand::Checksum { ranges, .. } => ranges
            .iter()
            .try_for_each(|(start, end)| check_range(start, end, false)),
    }
}

fn check_write(
    options: &StoreOptions,
    region_id: u64,
    commands: &[DataCommand],
) -> Result<usize, Error> {
    if commands.is_empty() {
        return Err(InvalidRequest::NoCommand.into());
    }
    let mut bytes = 0;
    for command in commands {
        check_command(options, command)?;
        bytes += command_bytes(command);
    }
    check_entry_size(options, region_id, bytes)?;
    Ok(bytes)
}

/// Size of a command within an entry, with what its leader adds.
pub(crate) fn command_bytes(command: &DataCommand) -> usize {
    let length = command.encoded_len() + stamp_bytes(command);
    length + 1 + prost::length_delimiter_len(length)
}

fn check_entry_size(options: &StoreOptions, region_id: u64, bytes: usize) -> Result<(), Error> {
    let entry_bytes = bytes + ENTRY_OVERHEAD_BYTES;
    if entry_bytes > options.max_entry_bytes {
        return Err(Error::RaftEntryTooLarge {
            region_id,
            entry_bytes: entry_bytes as u64,
            limit_bytes: options.max_entry_bytes as u64,
        });
    }
    Ok(())
}

fn check_command(options: &StoreOptions, command: &DataCommand) -> Result<(), InvalidRequest> {
    if let Some(operation) = &command.session {
        check_session(operation, command)?;
    }
    match &command.body {
        None => Err(InvalidRequest::NoCommand),
        Some(Body::Write(write)) => write.mutations.iter().try_for_each(|mutation| {
            check_key(options, write.space(), &mutation.key)?;
            check_ttl(mutation.ttl_seconds)
        }),
        Some(Body::DeleteRange(range)) => check_range(&range.start_key, &range.end_key, false),
        Some(Body::CompareAndSwap(cas)) => {
            check_key(options, cas.space(), &cas.key)?;
            check_ttl(cas.ttl_seconds)
        }
        Some(Body::Append(append)) => check_key(options, append.space(), &append.key),
        Some(Body::OpenSession(_)) => Ok(()),
        Some(Body::System(_)) => Err(InvalidRequest::WrongKindOfRegion),
    }
}

/// The form of a session's operation; only the log knows whether the session is open.
fn check_session(
    operation: &SessionOperation,
    command: &DataCommand,
) -> Result<(), InvalidRequest> {
    let bytes = operation.session_id.len();
    if bytes != keys::SESSION_ID_BYTES {
        return Err(InvalidRequest::MalformedSession { bytes });
    }
    if operation.sequence == 0 {
        return Err(InvalidRequest::SequenceZero);
    }
    if matches!(command.body, Some(Body::OpenSession(_))) {
        return Err(InvalidRequest::NotForSessions);
    }
    Ok(())
}

fn check_ttl(seconds: u64) -> Result<(), InvalidRequest> {
    if seconds > raw_value::TTL_SECONDS_MAX {
        return Err(InvalidRequest::TtlTooLong {
            seconds,
            limit_seconds: raw_value::TTL_SECONDS_MAX,
        });
    }
    Ok(())
}

fn check_key(options: &StoreOptions, space: RawSpace, key: &Bytes) -> Result<(), InvalidRequest> {
    if key.is_empty() {
        return Err(InvalidRequest::EmptyKey);
    }
    if key.len() > options.max_key_bytes {
        return Err(InvalidRequest::KeyTooLarge {
            bytes: key.len(),
            limit_bytes: options.max_key_bytes,
        });
    }
    if space == RawSpace::RawV2 && (key.len() < V2_PREFIX_BYTES || key[0] != b'r') {
        return Err(InvalidRequest::NotAVersion2Key);
    }
    Ok(())
}

/// Reverse ranges name their upper bound first; an empty upper bound is unbounded.
fn check_range(start: &Bytes, end: &Bytes, reverse: bool) -> Result<(), InvalidRequest> {
    let (lower, upper) = if reverse { (end, start) } else { (start, end) };
    if !upper.is_empty() && lower > upper {
        return Err(InvalidRequest::RangeInverted);
    }
    Ok(())
}

/// Checks that a request is for the peer described by `facts`.
pub(crate) fn check_address(
    store_id: u64,
    header: &RequestHeader,
    body: &RequestBody,
    facts: &PeerFacts<'_>,
) -> Result<Standing, Error> {
    let region_id = header.region_id;
    check_store(store_id, header)?;
    if !facts.leads() {
        let replica_read = header.replica_read && matches!(body, RequestBody::Read(_));
        match &facts.leader {
            None => return Ok(Standing::NoLeader),
            Some(_) if replica_read => {}
            Some(leader) => {
                return Err(Error::NotLeader {
                    region_id,
                    leader: Some(*leader),
                });
            }
        }
    }
    if let Some(peer) = &header.peer
        && peer.id != facts.peer_id
    {
        return Err(Error::MismatchPeerId {
            requested: peer.id,
            actual: facts.peer_id,
        });
    }
    if header.term != 0 && header.term.saturating_add(1) < facts.term {
        return Err(Error::StaleCommand { region_id });
    }
    check_epoch(header, body, facts.region)?;
    check_keys(body, facts.region)?;
    Ok(Standing::Here)
}

/// Checks that a request is for this store.
pub(crate) fn check_store(store_id: u64, header: &RequestHeader) -> Result<(), Error> {
    match &header.peer {
        Some(peer) if peer.store_id != store_id => Err(Error::StoreNotMatch {
            requested: peer.store_id,
            actual: store_id,
        }),
        _ => Ok(()),
    }
}

/// Clients may work with an older membership; who changes the membership may not.
pub(crate) fn check_epoch(
    header: &RequestHeader,
    body: &RequestBody,
    region: &Region,
) -> Result<(), Error> {
    let known = region.region_epoch.unwrap_or_default();
    let of_peers = matches!(body, RequestBody::ChangePeers { .. });
    match &header.epoch {
        Some(epoch)
            if epoch.version != known.version || (of_peers && epoch.conf_ver != known.conf_ver) =>
        {
            Err(Error::EpochNotMatch {
                region_id: region.id,
                current: vec![region.clone()],
            })
        }
        _ => Ok(()),
    }
}

/// Single keys must lie in the region; ranges are clipped, never refused.
fn check_keys(body: &RequestBody, region: &Region) -> Result<(), Error> {
    match body {
        RequestBody::Read(ReadCommand::Get { space, key } | ReadCommand::Ttl { space, key }) => {
            check_in_region(region, *space, key)
        }
        RequestBody::Read(ReadCommand::BatchGet { space, keys }) => keys
            .iter()
            .try_for_each(|key| check_in_region(region, *space, key)),
        RequestBody::Write(commands) => commands
            .iter()
            .try_for_each(|command| check_command_keys(region, command)),
        RequestBody::Read(_)
        | RequestBody::TransferLeader { .. }
        | RequestBody::ChangePeers { .. }
        | RequestBody::SystemRead
        | RequestBody::SystemWrite(_) => Ok(()),
    }
}

fn check_command_keys(region: &Region, command: &DataCommand) -> Result<(), Error> {
    match &command.body {
        Some(Body::Write(write)) => write
            .mutations
            .iter()
            .try_for_each(|mutation| check_in_region(region, write.space(), &mutation.key)),
        Some(Body::CompareAndSwap(cas)) => check_in_region(region, cas.space(), &cas.key),
        Some(Body::Append(append)) => check_in_region(region, append.space(), &append.key),
        Some(Body::DeleteRange(_) | Body::OpenSession(_) | Body::System(_)) | None => Ok(()),
    }
}

/// Checks that a key lies in a region.
pub(crate) fn check_in_region(region: &Region, space: RawSpace, key: &Bytes) -> Result<(), Error> {
    let compared = keys::compared_form(space, key);
    if keys::range_contains(&region.start_key, &region.end_key, &compared) {
        return Ok(());
    }
    Err(Error::KeyNotInRegion {
        key: key.clone(),
        region_id: region.id,
        start_key: region.start_key.clone(),
        end_key: region.end_key.clone(),
    })
}
