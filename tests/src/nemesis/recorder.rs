//! What all clients of a nemesis test write down.

use crate::Acknowledged;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;
use strata_client::Error;
use strata_sim::history::{Action, History, OperationId, Outcome};

/// Texts of errors that are kept.
const UNEXPECTED_MAX: usize = 16;

/// The history of a run, and the writes that must be present at its end.
#[derive(Debug)]
pub(super) struct Recorder {
    begun: Instant,
    history: Mutex<History>,
    acknowledged: Mutex<Acknowledged>,
    unexpected: Mutex<Vec<String>>,
    errors: Mutex<BTreeMap<&'static str, usize>>,
    answers: AtomicUsize,
    several: AtomicUsize,
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panicked with it")
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            history: Mutex::default(),
            acknowledged: Mutex::default(),
            unexpected: Mutex::default(),
            errors: Mutex::default(),
            answers: AtomicUsize::new(0),
            several: AtomicUsize::new(0),
        }
    }

    /// Milliseconds since the beginning, for display.
    pub(super) fn at(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    pub(super) fn answers(&self) -> usize {
        self.answers.load(Ordering::Relaxed)
    }

    pub(super) fn invoke(&self, client: u64, key: &Bytes, action: Action) -> OperationId {
        hold(&self.history).invoke(client, key.clone(), action, self.at())
    }

    /// Enters a step on several keys of one region.
    pub(super) fn invoke_all(&self, client: u64, actions: Vec<(Bytes, Action)>) -> OperationId {
        hold(&self.history).invoke_all(client, actions, self.at())
    }

    /// Enters what a call on several keys came to: for each of its steps what it says of
    /// each key. A read that failed says nothing. A write that failed had no effect where
    /// the error says so and there was one step; of several some may have been executed.
    pub(super) fn finish(
        &self,
        ids: &[OperationId],
        writes: bool,
        told: Result<Vec<Vec<Option<Outcome>>>, Error>,
    ) {
        let error = match told {
            Ok(told) => {
                for (id, outcomes) in ids.iter().zip(told) {
                    hold(&self.history).complete_all(*id, outcomes, self.at());
                }
                self.answers.fetch_add(1, Ordering::Relaxed);
                self.several.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Err(error) => error,
        };
        self.failed(None, &error);
        let unknown = matches!(error, Error::Unknown { .. });
        if !writes || (ids.len() == 1 && !unknown) {
            ids.iter().for_each(|id| self.retract(*id));
        }
    }

    /// Calls on several keys that were answered.
    pub(super) fn several(&self) -> usize {
        self.several.load(Ordering::Relaxed)
    }

    pub(super) fn complete(&self, id: OperationId, outcome: Outcome) {
        hold(&self.history).complete(id, outcome, self.at());
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// It said nothing, and never will.
    pub(super) fn retract(&self, id: OperationId) {
        hold(&self.history).retract(id);
    }

    /// An operation's error: of unknown outcome it stays open, else it had no effect.
    pub(super) fn failed(&self, id: Option<OperationId>, error: &Error) {
        let name = match error {
            Error::Unknown { .. } => "unknown",
            Error::Exhausted { .. } => "exhausted",
            // A nearly full disk refuses writes.
            Error::Refused { message } if message.contains("nearly full") => "disk nearly full",
            other => {
                let mut unexpected = hold(&self.unexpected);
                if unexpected.len() < UNEXPECTED_MAX {
                    unexpected.push(other.to_string());
                }
                "unexpected"
            }
        };
        *hold(&self.errors).entry(name).or_default() += 1;
        if let Some(id) = id
            && !matches!(error, Error::Unknown { .. })
        {
            self.retract(id);
        }
    }

    pub(super) fn acknowledge(&self, key: Bytes, value: Bytes) {
        hold(&self.acknowledged).note(key, value);
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// Something that no error of the network explains.
    pub(super) fn complain(&self, what: String) {
        hold(&self.unexpected).push(what);
    }

    pub(super) fn history(&self) -> History {
        hold(&self.history).clone()
    }

    pub(super) fn acknowledged(&self) -> Acknowledged {
        hold(&self.acknowledged).clone()
    }

    pub(super) fn unexpected(&self) -> Vec<String> {
        hold(&self.unexpected).clone()
    }

    pub(super) fn errors(&self) -> BTreeMap<&'static str, usize> {
        hold(&self.errors).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(recorder: &Recorder, keys: &[&'static str], action: &Action) -> OperationId {
        let keys = keys.iter().map(|key| (Bytes::from(*key), action.clone()));
        recorder.invoke_all(1, keys.collect())
    }

    #[test]
    fn nemesis_calls_on_several_keys_stay_open_where_a_part_may_have_been_executed() {
        let exhausted = || Error::Exhausted {
            attempts: 1,
            waited: std::time::Duration::ZERO,
            last: "no leader".into(),
        };
        let unknown = || Error::Unknown { last: "cut".into() };
        let put = Action::Put("1".into());
        // Steps, whether it writes, how it ended, operations that stay without an answer.
        for (steps, writes, error, open) in [
            (1, false, unknown(), 0),
            (2, false, exhausted(), 0),
            (1, true, exhausted(), 0),
            (1, true, unknown(), 1),
            (2, true, exhausted(), 2),
            (2, true, unknown(), 2),
        ] {
            let recorder = Recorder::new();
            let action = if writes { &put } else { &Action::Get };
            let keys = [["a", "b"], ["x", "y"]];
            let ids: Vec<_> = keys[..steps]
                .iter()
                .map(|keys| begin(&recorder, keys, action))
                .collect();
            recorder.finish(&ids, writes, Err(error.clone()));
            assert_eq!(recorder.history().len(), open, "{steps} {writes} {error}");
            assert_eq!(recorder.several(), 0);
        }
        let recorder = Recorder::new();
        let id = begin(&recorder, &["a", "b"], &Action::Get);
        let seen = vec![Some(Outcome::Value(None)), None];
        recorder.finish(&[id], false, Ok(vec![seen]));
        assert_eq!((recorder.several(), recorder.answers()), (1, 1));
        let history = recorder.history();
        let read = history.operations().next().expect("one operation");
        assert_eq!(read.touches.len(), 1, "nothing was said of the other key");
    }
}
