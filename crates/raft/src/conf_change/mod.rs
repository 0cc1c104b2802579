//! Membership changes: how they are written in entries, checked and carried out.
//!
//! An entry holds one change, in the single form or the general one. When it is applied,
//! `changer` makes the next membership out of the present one; nothing is in force before.

mod changer;
mod membership;

pub(crate) use changer::change_membership;
pub use membership::Membership;

use prost::Message as _;
use strata_proto::eraftpb::{ConfChange, ConfChangeSingle, ConfChangeV2, Entry, EntryType};

use crate::error::ConfChangeError;

/// The single change `change` in the general form.
pub fn conf_change_to_v2(change: ConfChange) -> ConfChangeV2 {
    ConfChangeV2 {
        changes: vec![ConfChangeSingle {
            change_type: change.change_type,
            node_id: change.node_id,
        }],
        context: change.context,
        ..ConfChangeV2::default()
    }
}

/// The membership change that `entry` holds, in either of its two forms; `None` if the
/// entry is an ordinary one.
pub fn conf_change_of(entry: &Entry) -> Result<Option<ConfChangeV2>, ConfChangeError> {
    match EntryType::try_from(entry.entry_type) {
        Ok(EntryType::EntryNormal) => Ok(None),
        Ok(EntryType::EntryConfChange) => ConfChange::decode(entry.data.clone())
            .map(|change| Some(conf_change_to_v2(change)))
            .map_err(|_| ConfChangeError::Undecodable),
        Ok(EntryType::EntryConfChangeV2) => ConfChangeV2::decode(entry.data.clone())
            .map(Some)
            .map_err(|_| ConfChangeError::Undecodable),
        Err(_) => Err(ConfChangeError::Undecodable),
    }
}
