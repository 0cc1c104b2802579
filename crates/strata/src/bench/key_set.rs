//! A set of the numbers of keys, shared by all clients of a load: a bit for each key.

use std::sync::atomic::{AtomicU64, Ordering};

const BITS: u64 = u64::BITS as u64;

/// Numbers below a bound that is given when it is made.
#[derive(Debug)]
pub struct KeySet {
    words: Box<[AtomicU64]>,
}

impl KeySet {
    /// An empty set for numbers below `keys`.
    pub fn new(keys: u64) -> Self {
        let words = keys.div_ceil(BITS);
        Self {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Adds a number; one at or above the bound is left out.
    pub fn insert(&self, index: u64) {
        if let Some(word) = self.words.get((index / BITS) as usize) {
            word.fetch_or(1 << (index % BITS), Ordering::Relaxed);
        }
    }

    /// The numbers in ascending order.
    pub fn to_vec(&self) -> Vec<u64> {
        let mut found = Vec::new();
        for (place, word) in (0u64..).zip(self.words.iter()) {
            let word = word.load(Ordering::Relaxed);
            let set = (0..BITS).filter(|bit| (word >> bit) & 1 == 1);
            found.extend(set.map(|bit| place * BITS + bit));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_there_once_and_in_order() {
        let set = KeySet::new(130);
        assert!(set.to_vec().is_empty());
        for index in [129, 0, 64, 63, 0, 5_000] {
            set.insert(index);
        }
        assert_eq!(set.to_vec(), [0, 63, 64, 129]);
    }
}
