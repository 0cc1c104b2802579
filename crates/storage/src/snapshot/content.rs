//! What the files of a snapshot hold: one kind of keys each.

use strata_proto::metapb::Region;

use crate::bootstrap::SYSTEM_REGION_ID;
use crate::engine::Cf;
use crate::keys;

/// What one file of a snapshot holds. Files lie in a snapshot in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// Values of transactions.
    Default,
    /// Locks of transactions.
    Lock,
    /// Commit records of transactions.
    Write,
    /// Raw keys of API v1.
    Raw,
    /// Raw keys of API v2.
    Raw2,
    /// Client sessions.
    Session,
    /// The system region's records.
    System,
}

impl Content {
    /// All of them, in their order.
    pub const ALL: [Self; 7] = [
        Self::Default,
        Self::Lock,
        Self::Write,
        Self::Raw,
        Self::Raw2,
        Self::Session,
        Self::System,
    ];

    /// Its name in descriptions and in names of files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Lock => "lock",
            Self::Write => "write",
            Self::Raw => "raw",
            Self::Raw2 => "raw2",
            Self::Session => "session",
            Self::System => "system",
        }
    }

    /// The content of this name; `None` for any other.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|content| content.name() == name)
    }

    /// The column family of the kv engine that holds it.
    #[must_use]
    pub fn cf(self) -> Cf {
        match self {
            Self::Default => Cf::Default,
            Self::Lock => Cf::Lock,
            Self::Write => Cf::Write,
            Self::Raw => Cf::Raw,
            Self::Raw2 => Cf::Raw2,
            Self::Session | Self::System => Cf::Raft,
        }
    }

    /// The engine keys of a region's share, half-open; `None` if the region cannot have
    /// any. The system region has records instead of a range: its empty boundaries are
    /// not those of all data.
    #[must_use]
    pub fn range(self, region: &Region) -> Option<(Vec<u8>, Vec<u8>)> {
        let system = region.id == SYSTEM_REGION_ID;
        match self {
            Self::Session => Some(keys::session_range(region.id)),
            Self::System => system.then(keys::system_range),
            Self::Default | Self::Lock | Self::Write | Self::Raw | Self::Raw2 => {
                (!system).then(|| keys::data_range(&region.start_key, &region.end_key))
            }
        }
    }
}
