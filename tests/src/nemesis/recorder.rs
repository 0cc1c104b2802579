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
