//! Names of snapshot files.
//!
//! ```text
//! gen_7_6_17_0123456789abcdef_default.sst    a table that was made here
//! rev_7_6_17_0123456789abcdef_default.part   a table that is being received
//! rev_7_6_17_0123456789abcdef_default.sst    the same, complete
//! rev_7_6_17_0123456789abcdef.offer          its description, as it was offered
//! rev_7_6_17_0123456789abcdef.progress       how much of it is synced
//! rev_7_6_17_0123456789abcdef.meta           its description, once it is complete
//! tmp_3_default.tmp                          a table that is being made
//! ```
//! The numbers are region, term, index and id. Further endings: `.new` behind a record
//! that is being written, `.ingest` behind a table that RocksDB is taking in.

use strata_proto::stratapb::SnapshotMeta;

use super::content::Content;
use super::files::NEW_ENDING;
use super::meta::{contents, region_of};

/// Ending of the second name through which a table is taken in.
pub(crate) const INGEST_ENDING: &str = ".ingest";
const TEMPORARY_PREFIX: &str = "tmp_";
const TEMPORARY_ENDING: &str = ".tmp";

/// Where a snapshot on this node comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Made here, to be sent.
    Generated,
    /// Received, to be installed.
    Received,
}

/// Names one snapshot on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotKey {
    /// Where it comes from.
    pub origin: Origin,
    /// Its region.
    pub region_id: u64,
    /// Term of the last entry in it.
    pub term: u64,
    /// Index of the last entry in it.
    pub index: u64,
    /// Its id.
    pub id: u64,
}

/// What one file of a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A complete table.
    Table(Content),
    /// A table that is being received.
    Part(Content),
    /// The description of a complete snapshot.
    Meta,
    /// The description of one that is being received.
    Offer,
    /// How much of it is synced.
    Progress,
}

impl SnapshotKey {
    /// The key of a description that passed its check.
    pub(super) fn new(origin: Origin, meta: &SnapshotMeta) -> Self {
        Self {
            origin,
            region_id: region_of(meta).id,
            term: meta.term,
            index: meta.index,
            id: meta.id,
        }
    }

    fn stem(&self) -> String {
        let origin = match self.origin {
            Origin::Generated => "gen",
            Origin::Received => "rev",
        };
        format!(
            "{origin}_{}_{}_{}_{:016x}",
            self.region_id, self.term, self.index, self.id
        )
    }

    /// The name of one of its files; `ending` is that of tables.
    pub(super) fn name(&self, role: Role, ending: &str) -> String {
        let stem = self.stem();
        match role {
            Role::Table(content) => format!("{stem}_{}{ending}", content.name()),
            Role::Part(content) => format!("{stem}_{}.part", content.name()),
            Role::Meta => format!("{stem}.meta"),
            Role::Offer => format!("{stem}.offer"),
            Role::Progress => format!("{stem}.progress"),
        }
    }

    /// All tables of a snapshot as one short text.
    pub(super) fn display(&self, meta: &SnapshotMeta, ending: &str) -> String {
        let names: Vec<_> = contents(meta).map(Content::name).collect();
        format!("{}_({}){ending}", self.stem(), names.join("|"))
    }

    /// Reads a name back; `None` for one that is not of this form.
    pub(super) fn parse(name: &str, ending: &str) -> Option<(Self, Role)> {
        let (stem, last) = name.rsplit_once('.')?;
        let mut parts = stem.split('_');
        let origin = match parts.next()? {
            "gen" => Origin::Generated,
            "rev" => Origin::Received,
            _ => return None,
        };
        let mut number = || parts.next()?.parse().ok();
        let (region_id, term, index) = (number()?, number()?, number()?);
        let id = u64::from_str_radix(parts.next()?, 16).ok()?;
        let content = parts.next().map(Content::from_name);
        let role = match (last, content) {
            ("meta", None) => Role::Meta,
            ("offer", None) => Role::Offer,
            ("progress", None) => Role::Progress,
            ("part", Some(Some(content))) => Role::Part(content),
            (_, Some(Some(content))) if ending.strip_prefix('.') == Some(last) => {
                Role::Table(content)
            }
            _ => return None,
        };
        let key = Self {
            origin,
            region_id,
            term,
            index,
            id,
        };
        // Only the one way of writing it counts.
        (key.name(role, ending) == name).then_some((key, role))
    }
}

/// The name of a table that generation `number` is making.
pub(super) fn temporary(number: u64, content: Content) -> String {
    format!(
        "{TEMPORARY_PREFIX}{number}_{}{TEMPORARY_ENDING}",
        content.name()
    )
}

/// True for files that mean nothing after a start: whatever was being written then is
/// begun again.
pub(super) fn is_leftover(name: &str, ending: &str) -> bool {
    let ours = |stem: &str| SnapshotKey::parse(stem, ending).is_some();
    let behind = |last| name.strip_suffix(last).is_some_and(ours);
    let temporary = name.starts_with(TEMPORARY_PREFIX) && name.ends_with(TEMPORARY_ENDING);
    temporary || behind(NEW_ENDING) || behind(INGEST_ENDING)
}
