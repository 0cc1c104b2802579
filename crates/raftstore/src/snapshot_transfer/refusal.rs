//! What the sender of a refused snapshot is told.

use strata_proto::stratapb::{
    SnapshotRefusal, SnapshotRefusalKind, SnapshotReply, snapshot_reply::Reply,
};
use strata_storage::snapshot::SnapshotError;

/// Bytes of the longest reason that is sent.
const REASON_BYTES_MAX: usize = 512;

/// The last reply of a stream that `error` ends.
#[must_use]
pub fn refusal(error: &SnapshotError) -> SnapshotReply {
    let mut reason = error.to_string().replace('\n', " ");
    let end = (0..=REASON_BYTES_MAX.min(reason.len()))
        .rev()
        .find(|end| reason.is_char_boundary(*end));
    reason.truncate(end.unwrap_or(0));
    SnapshotReply {
        reply: Some(Reply::Refused(SnapshotRefusal {
            kind: kind_of(error).into(),
            reason,
        })),
    }
}

fn kind_of(error: &SnapshotError) -> SnapshotRefusalKind {
    match error {
        SnapshotError::Busy { .. }
        | SnapshotError::TooMuch { .. }
        | SnapshotError::TooMany { .. } => SnapshotRefusalKind::Busy,
        SnapshotError::ForeignId { .. }
        | SnapshotError::UnknownFile { .. }
        | SnapshotError::Gap { .. }
        | SnapshotError::Overlap { .. }
        | SnapshotError::BeyondEnd { .. }
        | SnapshotError::ChunkSize { .. }
        | SnapshotError::ChunkChecksum { .. }
        | SnapshotError::Incomplete { .. }
        | SnapshotError::OutOfTurn { .. }
        | SnapshotError::Stalled { .. } => SnapshotRefusalKind::DamagedFrame,
        SnapshotError::FileChecksum { .. } | SnapshotError::FileLength { .. } => {
            SnapshotRefusalKind::DamagedFile
        }
        SnapshotError::NoSuchRegion { .. }
        | SnapshotError::NotServing { .. }
        | SnapshotError::Overlapping { .. }
        | SnapshotError::Stale { .. }
        | SnapshotError::StaleEpoch { .. }
        | SnapshotError::NotForHere { .. }
        | SnapshotError::TermBehind { .. } => SnapshotRefusalKind::Unwanted,
        SnapshotError::BadMeta(_) => SnapshotRefusalKind::Malformed,
        SnapshotError::Storage(_)
        | SnapshotError::DiskFull { .. }
        | SnapshotError::SyncFailed { .. }
        | SnapshotError::File { .. }
        | SnapshotError::Table { .. }
        | SnapshotError::Crashed
        | SnapshotError::InstallRecord { .. }
        | SnapshotError::FilesMissing { .. } => SnapshotRefusalKind::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let error = SnapshotError::File {
            path: "ä".repeat(REASON_BYTES_MAX),
            action: "open",
            detail: "x\ny".to_owned(),
        };
        let Some(Reply::Refused(refused)) = refusal(&error).reply else {
            panic!("a refusal was made");
        };
        assert_eq!(refused.kind(), SnapshotRefusalKind::Failed);
        assert_eq!(refused.reason, "ä".repeat(REASON_BYTES_MAX / 2));
    }
}
