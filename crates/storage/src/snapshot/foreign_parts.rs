//! A planted fault: what was received of one snapshot is taken for the beginning of another.
//!
//! Crash rule 11 says that another id discards the parts. Here they get the names of the new
//! snapshot, and the progress its id, before the old ones are removed.

use strata_proto::stratapb::{SnapshotMeta, SnapshotPart, SnapshotProgress};
use strata_raft::planted;

use super::error::SnapshotError;
use super::files::{FileStore, read_record, write_record};
use super::meta::contents;
use super::name::{Role, SnapshotKey};
use crate::record::RecordKind;

/// Hands the parts of `old` over to the snapshot `key` that is offered now.
pub(super) fn adopt<F: FileStore, M: AsRef<SnapshotMeta>>(
    files: &F,
    old: Option<&(SnapshotKey, M)>,
    key: SnapshotKey,
    meta: &SnapshotMeta,
) -> Result<(), SnapshotError> {
    let Some((old_key, old_meta)) = old.filter(|_| planted!(ResumeOntoForeignParts)) else {
        return Ok(());
    };
    let name = old_key.name(Role::Progress, F::ENDING);
    let noted = read_record::<F, SnapshotProgress>(files, RecordKind::SnapshotProgress, &name);
    let Ok(Some(noted)) = noted else {
        return Ok(());
    };
    let mut progress = SnapshotProgress {
        id: key.id,
        parts: Vec::new(),
    };
    for (content, file) in contents(meta).zip(&meta.files) {
        let place = contents(old_meta.as_ref()).position(|other| other == content);
        let part = place.and_then(|place| noted.parts.get(place)).copied();
        let part = part.filter(|part| 0 < part.synced && part.synced <= file.length);
        if part.is_some() {
            let from = old_key.name(Role::Part(content), F::ENDING);
            files.rename(&from, &key.name(Role::Part(content), F::ENDING))?;
        }
        progress.parts.push(part.unwrap_or(SnapshotPart::default()));
    }
    write_record(files, &key.name(Role::Progress, F::ENDING), &progress)
}
