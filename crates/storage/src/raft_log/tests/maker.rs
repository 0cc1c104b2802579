//! Random batches such as peers write them, and others that nobody writes.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::batch::WriteBatch;
use crate::engine::Cf;
use crate::keys;

const REGIONS: [u64; 5] = [0, 1, 2, 9, u64::MAX];
/// Indexes of most entries.
const INDEXES: u64 = 40;

/// Makes batches; no two puts have the same value, unless it is very short.
pub struct Maker {
    made: u64,
    /// Some values are longer than a file.
    has_large: bool,
}

impl Maker {
    /// Has made nothing yet.
    pub fn new(has_large: bool) -> Self {
        Self { made: 0, has_large }
    }

    /// The next batch; it may be empty.
    pub fn batch(&mut self, rng: &mut ChaCha8Rng) -> WriteBatch {
        let mut batch = WriteBatch::new();
        for _ in 0..rng.random_range(0..5) {
            self.change(&mut batch, rng);
        }
        batch
    }

    fn change(&mut self, batch: &mut WriteBatch, rng: &mut ChaCha8Rng) {
        let region_id = region(rng);
        match rng.random_range(0..16) {
            0..6 => self.append(batch, region_id, rng),
            6..9 => {
                let value = self.value(rng, 60);
                batch.put(Cf::RaftLog, keys::raft_state(region_id), value);
            }
            9..11 => {
                let (key, value) = (key(rng), self.value(rng, 200));
                batch.put(Cf::RaftLog, key, value);
            }
            11 => batch.delete(Cf::RaftLog, key(rng)),
            12 => batch.delete_range(Cf::RaftLog, key(rng), key(rng)),
            13 => {
                let (start, end) = keys::region_raft_range(region_id);
                batch.delete_range(Cf::RaftLog, start, end);
            }
            // The log is cut at its front.
            _ => {
                let (start, _) = keys::raft_log_range(region_id);
                let end = keys::raft_log(region_id, index(rng));
                batch.delete_range(Cf::RaftLog, start, end);
            }
        }
    }

    /// Entries from any index on, in place of those that are there, some of them with holes.
    fn append(&mut self, batch: &mut WriteBatch, region_id: u64, rng: &mut ChaCha8Rng) {
        let mut at = index(rng);
        if rng.random_bool(0.5) {
            let (_, end) = keys::raft_log_range(region_id);
            batch.delete_range(Cf::RaftLog, keys::raft_log(region_id, at), end);
        }
        let step = if rng.random_bool(0.2) { 3 } else { 1 };
        for _ in 0..rng.random_range(1..8) {
            let value = self.value(rng, 600);
            batch.put(Cf::RaftLog, keys::raft_log(region_id, at), value);
            at = at.saturating_add(step);
        }
    }

    fn value(&mut self, rng: &mut ChaCha8Rng, longest: usize) -> Vec<u8> {
        self.made += 1;
        let length = match rng.random_range(0..200) {
            0..10 => 0,
            10 => 5_000,
            11 if self.has_large => 40_000,
            _ => rng.random_range(8..longest),
        };
        let name = self.made.to_le_bytes();
        name.into_iter().cycle().take(length).collect()
    }
}

fn region(rng: &mut ChaCha8Rng) -> u64 {
    REGIONS[rng.random_range(0..REGIONS.len())]
}

fn index(rng: &mut ChaCha8Rng) -> u64 {
    match rng.random_range(0..20) {
        0 => u64::MAX - rng.random_range(0..3),
        _ => rng.random_range(0..INDEXES),
    }
}

/// Any key, most of them near those of entries.
pub fn key(rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut key = match rng.random_range(0..10) {
        0 => return vec![0, 1, 2, 3, b'z', 0xff][..rng.random_range(0..=6)].to_vec(),
        1 => return keys::store_ident(),
        2 => keys::raft_state(region(rng)),
        3 => keys::raft_log_range(region(rng)).0,
        4 => keys::region_raft_range(region(rng)).1,
        _ => keys::raft_log(region(rng), index(rng)),
    };
    match rng.random_range(0..6) {
        0 => key.truncate(rng.random_range(0..=key.len())),
        1 => key.push(rng.random_range(0..3)),
        _ => {}
    }
    key
}
