//! What a client of the load does with several keys at once.
//!
//! Each region has a group of keys of its own, which nothing else lies between. A scan, a
//! batch or a removal of a range is one atomic step for each region that it covers, and
//! enters the history as such: with the keys that it found absent. Single reads and writes
//! of the same keys go on beside it.

use super::clients::Client;
use bytes::Bytes;
use rand::Rng;
use std::collections::BTreeMap;
use strata_client::Scan;
use strata_sim::history::{Action, OperationId, Outcome};

impl Client {
    /// One operation on a group, or on two.
    pub(super) async fn use_group(&mut self) {
        let groups = self.common.groups();
        let place = self.random.random_range(0..groups);
        let group = self.common.group(place);
        match self.random.random_range(0..100) {
            0..15 => {
                let key = self.random.random_range(0..group.len());
                self.read(&group[key]).await;
            }
            15..35 => {
                let key = self.random.random_range(0..group.len());
                self.put_one(&group[key]).await;
            }
            35..60 => self.scan(group).await,
            60..75 => {
                let parts = self.parts(group, place, groups);
                self.batch_get(parts).await;
            }
            75..93 => {
                let parts = self.parts(group, place, groups);
                self.batch_put(parts).await;
            }
            _ => self.delete_range(group).await,
        }
    }

    /// The group, in one case of three with that of another region.
    fn parts(&mut self, group: Vec<Bytes>, place: usize, groups: usize) -> Vec<Vec<Bytes>> {
        let mut parts = vec![group];
        if groups > 1 && self.random.random_range(0..3) == 0 {
            let other = (place + self.random.random_range(1..groups)) % groups;
            parts.push(self.common.group(other));
        }
        parts
    }

    fn begin(&self, parts: &[Vec<Bytes>], action: impl Fn(&Bytes) -> Action) -> Vec<OperationId> {
        let steps = parts.iter().map(|keys| {
            let actions = keys.iter().map(|key| (key.clone(), action(key)));
            let recorder = &self.common.recorder;
            recorder.invoke_all(self.number, actions.collect())
        });
        steps.collect()
    }

    async fn scan(&mut self, group: Vec<Bytes>) {
        let ids = self.begin(std::slice::from_ref(&group), |_| Action::Get);
        let (start, end) = range(&group);
        let reverse = self.random.random();
        let limit = match self.random.random_range(0..3) {
            0 => Some(self.random.random_range(1..group.len())),
            _ => None,
        };
        let scan = Scan {
            start,
            end,
            limit,
            reverse,
            ..Scan::default()
        };
        let told = self.client.scan(scan).await.map(|pairs| {
            // Behind its limit it says nothing.
            let last = pairs.last().filter(|_| Some(pairs.len()) == limit);
            let last = last.map(|(key, _)| key.clone());
            let said = |key: &Bytes| match &last {
                None => true,
                Some(last) if reverse => key >= last,
                Some(last) => key <= last,
            };
            vec![values(&group, pairs, said)]
        });
        self.common.recorder.finish(&ids, false, told);
    }

    async fn batch_get(&mut self, parts: Vec<Vec<Bytes>>) {
        let ids = self.begin(&parts, |_| Action::Get);
        let keys = parts.iter().flatten().cloned().collect();
        let told = self.client.batch_get(keys).await.map(|pairs| {
            let of_part = |keys: &Vec<Bytes>| values(keys, pairs.clone(), |_| true);
            parts.iter().map(of_part).collect()
        });
        self.common.recorder.finish(&ids, false, told);
    }

    async fn batch_put(&mut self, parts: Vec<Vec<Bytes>>) {
        // One value for all: it is unlike any other of the run.
        let value = self.value();
        let ids = self.begin(&parts, |_| Action::Put(value.clone()));
        let keys = parts.iter().flatten();
        let pairs = keys.map(|key| (key.clone(), value.clone())).collect();
        let done = self.client.batch_put(pairs, 0).await;
        self.common
            .recorder
            .finish(&ids, true, done.map(|()| all_done(&parts)));
    }

    async fn delete_range(&mut self, group: Vec<Bytes>) {
        let parts = [group];
        let ids = self.begin(&parts, |_| Action::Delete);
        let (start, end) = range(&parts[0]);
        let done = self.client.delete_range(&start, &end).await;
        self.common
            .recorder
            .finish(&ids, true, done.map(|()| all_done(&parts)));
    }
}

/// The range of a group and of nothing else: up to just behind its last key.
fn range(group: &[Bytes]) -> (Bytes, Bytes) {
    let last = &group[group.len() - 1];
    (group[0].clone(), [last, &b"\0"[..]].concat().into())
}

fn all_done(parts: &[Vec<Bytes>]) -> Vec<Vec<Option<Outcome>>> {
    let done = |keys: &Vec<Bytes>| vec![Some(Outcome::Done); keys.len()];
    parts.iter().map(done).collect()
}

/// What an answer says of each key: nothing, absent or a value.
fn values(
    keys: &[Bytes],
    pairs: Vec<(Bytes, Bytes)>,
    said: impl Fn(&Bytes) -> bool,
) -> Vec<Option<Outcome>> {
    let found: BTreeMap<Bytes, Bytes> = pairs.into_iter().collect();
    let of_key = |key: &Bytes| said(key).then(|| Outcome::Value(found.get(key).cloned()));
    keys.iter().map(of_key).collect()
}
