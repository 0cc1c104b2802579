//! Writing and reading what makes a folder a store's.

use std::ops::ControlFlow;

use strata_proto::eraftpb::HardState;
use strata_proto::metapb::Region;
use strata_proto::raft_serverpb::{PeerState, RaftLocalState, RegionLocalState};
use strata_proto::stratapb::{RaftApplyState, StoreIdent};

use super::{BOOTSTRAP_INDEX, BOOTSTRAP_TERM};
use crate::batch::WriteBatch;
use crate::engine::{Cf, Direction, Durability, Engine, EngineKind, Engines, ReadView};
use crate::error::{Error, IdentFault};
use crate::keys;
use crate::record::{self, RecordKind};
use crate::region_records::{write_apply_state, write_raft_state, write_region_state};

/// Writes the identity and this store's share of `regions` into new engines. Both writes
/// are synced, the raft engine first: a crash between them leaves a kv engine without
/// identity, the folder still counts as new, and the call is repeated.
///
/// A store that joins later passes no regions.
///
/// # Errors
/// Errors of the engines; `Ident` if the engines are not those of a new folder.
pub fn write_bootstrap<E: Engine>(
    engines: &Engines<E>,
    ident: &StoreIdent,
    regions: &[Region],
) -> Result<(), Error> {
    if read_ident(engines)?.is_some() {
        return Err(Error::Ident(IdentFault::NotNew));
    }
    let mut raft = WriteBatch::new();
    let mut kv = WriteBatch::new();
    // An interrupted bootstrap may have left another command line's regions.
    let (start, end) = keys::all_region_raft_range();
    raft.delete_range(Cf::RaftLog, start, end);
    for region in regions {
        if region.peers.iter().any(|p| p.store_id == ident.store_id) {
            write_first_state(region, &mut raft, &mut kv);
        }
    }
    write_ident(&mut raft, EngineKind::Raft, ident);
    write_ident(&mut kv, EngineKind::Kv, ident);
    engines.raft.write(&raft, Durability::Synced)?;
    engines.kv.write(&kv, Durability::Synced)?;
    Ok(())
}

/// Records that every other initial store knows this folder's incarnation: from now on
/// the store may vote, campaign and acknowledge. Synced in both engines.
///
/// # Errors
/// Errors of the engines; `Ident` if the folder has no identity.
pub fn mark_admitted<E: Engine>(engines: &Engines<E>) -> Result<StoreIdent, Error> {
    let mut ident = read_ident(engines)?.ok_or(Error::Ident(IdentFault::Missing {
        engine: EngineKind::Kv,
    }))?;
    ident.admitted = true;
    // The kv engine's flag counts; it is the last to be written.
    for (engine, kind) in [
        (&engines.raft, EngineKind::Raft),
        (&engines.kv, EngineKind::Kv),
    ] {
        let mut batch = WriteBatch::new();
        write_ident(&mut batch, kind, &ident);
        engine.write(&batch, Durability::Synced)?;
    }
    Ok(ident)
}

/// Reads the folder's identity from both engines; `None` for a new folder, also for one
/// whose bootstrap was interrupted.
///
/// # Errors
/// `Ident` if one engine lost it, or the two belong to different folders;
/// `CorruptRecord`, errors of the engines.
pub fn read_ident<E: ReadView>(engines: &Engines<E>) -> Result<Option<StoreIdent>, Error> {
    let kv = read_one(&engines.kv, EngineKind::Kv)?;
    let raft = read_one(&engines.raft, EngineKind::Raft)?;
    match (kv, raft) {
        (None, None) => Ok(None),
        // An interrupted bootstrap was never admitted and has no log; anything more
        // means that the kv engine was there and is lost.
        (None, Some(ident)) if ident.admitted || has_log(&engines.raft)? => {
            Err(Error::Ident(IdentFault::Missing {
                engine: EngineKind::Kv,
            }))
        }
        (None, Some(_)) => Ok(None),
        (Some(_), None) => Err(Error::Ident(IdentFault::Missing {
            engine: EngineKind::Raft,
        })),
        (Some(kv), Some(raft)) => {
            let key = |ident: &StoreIdent| (ident.cluster_id, ident.store_id, ident.incarnation);
            if key(&kv) == key(&raft) {
                Ok(Some(kv))
            } else {
                Err(Error::Ident(IdentFault::Differ {
                    kv: key(&kv),
                    raft: key(&raft),
                }))
            }
        }
    }
}

fn has_log(raft: &impl ReadView) -> Result<bool, Error> {
    let (start, end) = keys::all_region_raft_range();
    let mut found = false;
    let mut visit = |key: &[u8], _: &[u8]| {
        found = keys::parse_raft_log(key).is_some();
        if found {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    raft.scan(
        Cf::RaftLog,
        &start,
        Some(&end),
        Direction::Forward,
        &mut visit,
    )?;
    Ok(found)
}

fn ident_cf(kind: EngineKind) -> Cf {
    match kind {
        EngineKind::Kv => Cf::Raft,
        EngineKind::Raft => Cf::RaftLog,
    }
}

fn read_one(engine: &impl ReadView, kind: EngineKind) -> Result<Option<StoreIdent>, Error> {
    let key = keys::store_ident();
    record::get(engine, ident_cf(kind), RecordKind::StoreIdent, &key)
}

fn write_ident(batch: &mut WriteBatch, kind: EngineKind, ident: &StoreIdent) {
    record::put(batch, ident_cf(kind), keys::store_ident(), ident);
}

/// The state of a replica that has applied nothing but the bootstrap itself.
fn write_first_state(region: &Region, raft: &mut WriteBatch, kv: &mut WriteBatch) {
    let raft_state = RaftLocalState {
        hard_state: Some(HardState {
            term: BOOTSTRAP_TERM,
            vote: 0,
            commit: BOOTSTRAP_INDEX,
        }),
        last_index: BOOTSTRAP_INDEX,
    };
    let apply_state = RaftApplyState {
        applied_index: BOOTSTRAP_INDEX,
        applied_term: BOOTSTRAP_TERM,
        truncated_index: BOOTSTRAP_INDEX,
        truncated_term: BOOTSTRAP_TERM,
        region_clock_ms: 0,
    };
    let region_state = RegionLocalState {
        state: PeerState::Normal.into(),
        region: Some(region.clone()),
        merge_state: None,
    };
    write_raft_state(raft, region.id, &raft_state);
    write_apply_state(kv, region.id, &apply_state);
    write_region_state(kv, &region_state);
}
