//! Writes that were acknowledged, each to a key of its own: all must be present.

use bytes::Bytes;
use std::collections::BTreeMap;
use strata_client::RawClient;

/// Keys and values whose puts were acknowledged.
#[derive(Debug, Clone, Default)]
pub struct Acknowledged {
    pairs: BTreeMap<Bytes, Bytes>,
}

impl Acknowledged {
    /// Notes an acknowledged put. No key is put twice.
    ///
    /// # Panics
    /// When the key was noted before.
    pub fn note(&mut self, key: Bytes, value: Bytes) {
        let before = self.pairs.insert(key, value);
        assert!(before.is_none(), "a key was put twice");
    }

    /// Takes in what another client was acknowledged.
    pub fn extend(&mut self, other: Acknowledged) {
        for (key, value) in other.pairs {
            self.note(key, value);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The key noted for the smallest name.
    pub fn first(&self) -> Option<&Bytes> {
        self.pairs.keys().next()
    }

    /// Reads all of them back; those that are missing or hold something else.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn missing(&self, client: &RawClient) -> Result<Vec<Bytes>, strata_client::Error> {
        let keys: Vec<Bytes> = self.pairs.keys().cloned().collect();
        let mut missing = Vec::new();
        for part in keys.chunks(4096) {
            let found: BTreeMap<Bytes, Bytes> =
                client.batch_get(part.to_vec()).await?.into_iter().collect();
            missing.extend(
                part.iter()
                    .filter(|key| found.get(*key) != self.pairs.get(*key))
                    .cloned(),
            );
        }
        Ok(missing)
    }

    /// Checks that all are present.
    ///
    /// # Panics
    /// When one is not, or none was noted, or the cluster does not answer in time.
    pub async fn assert_present(&self, client: &RawClient) {
        assert!(
            !self.is_empty(),
            "nothing was acknowledged, so nothing is shown"
        );
        let missing = crate::eventually("acknowledged writes to be read", || self.missing(client));
        let missing = missing.await;
        assert!(
            missing.is_empty(),
            "{} of {} acknowledged writes are missing, among them {:?}",
            missing.len(),
            self.len(),
            &missing[..missing.len().min(5)]
        );
    }
}
