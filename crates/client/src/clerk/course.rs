//! What a clerk sends next, and what an answer means: the decisions, and nothing else.
//!
//! Begin    An operation begins. It is not bound to a session yet.
//! Next     To the region that holds the key now: open a session if there is none, else
//!          execute the operation with the session's next number.
//! Met      Refused: nothing happened; ask for the next step again. Lost: it may have
//!          happened; from now on only the same session and number may be sent, for only
//!          they are the same operation. Executed: done.
//! Expired  The session is gone. If the operation was never sent before, nothing happened,
//!          and a new session takes it. If it was, nobody can tell any more: unknown.
//!
//! Invariants
//! * An operation has one session and number from the moment at which it may have been
//!   executed, whatever becomes of regions and leaders.
//! * A number is never used for two operations: the session of an operation that was given
//!   up in doubt is given up with it.
//! * A session is used on with the next number only in the region that has executed the
//!   last one: of the copies that a split leaves, no other knows of it.
//!
//! It is stepped, without time and network, and so the same code runs in [`super::Clerk`]
//! and in the simulator.

use bytes::Bytes;
use std::collections::BTreeMap;

/// Most sessions that one clerk keeps, one for each region that it wrote to. The one used
/// longest ago is forgotten; the store lets it expire.
const SESSIONS_MAX: usize = 1024;

/// What a clerk sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Open a session in the region. Sending this twice does no harm.
    Open,
    /// Execute the operation.
    Execute {
        /// The session.
        session_id: Bytes,
        /// The operation's number in it.
        sequence: u64,
    },
}

/// What sending [`Step::Execute`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    /// The operation was executed, now or before; its answer is here.
    Executed,
    /// This request was not executed and never will be.
    Refused,
    /// Nobody can tell whether this request was or will be executed.
    Lost,
    /// The session is not known; this request was not executed.
    Expired,
    /// The number does not follow the session's last one; this request was not executed.
    OutOfOrder,
}

/// How an operation goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// It is done.
    Done,
    /// Ask for the next step, after a pause where the network asks for one.
    Again,
    /// It ends here, and nobody can tell whether it was or will be executed.
    Unknown,
    /// It ends here without having been executed: the store and the clerk do not agree on
    /// the session, which a correct pair never does.
    Broken,
}

#[derive(Debug, Clone)]
struct Session {
    id: Bytes,
    /// Number of the last operation that was executed or is under way.
    last_sequence: u64,
    /// When it was used last, in operations of this clerk.
    used: u64,
}

/// An operation under way in a session.
#[derive(Debug, Clone)]
struct Bound {
    /// The region whose session it is; it may have been split since.
    region_id: u64,
    session_id: Bytes,
    sequence: u64,
}

/// The sessions of one clerk and the operation that it is at.
#[derive(Debug, Default)]
pub struct Sessions {
    by_region: BTreeMap<u64, Session>,
    operations: u64,
    bound: Option<Bound>,
    /// The operation may have been executed.
    in_doubt: bool,
    /// The region that a request is under way to; without an answer to it the operation is
    /// in doubt.
    sent_to: Option<u64>,
}

impl Sessions {
    /// Begins an operation. One that was left in the middle is given up.
    pub fn begin(&mut self) {
        self.give_up();
        self.operations += 1;
    }

    /// What to send to the region that holds the operation's key.
    pub fn next(&mut self, region_id: u64) -> Step {
        if !self.in_doubt {
            self.bound = self.by_region.get(&region_id).map(|session| Bound {
                region_id,
                session_id: session.id.clone(),
                sequence: session.last_sequence + 1,
            });
        }
        match &self.bound {
            None => Step::Open,
            Some(bound) => {
                self.sent_to = Some(region_id);
                Step::Execute {
                    session_id: bound.session_id.clone(),
                    sequence: bound.sequence,
                }
            }
        }
    }

    /// A region opened a session.
    pub fn on_opened(&mut self, region_id: u64, id: Bytes) {
        if self.by_region.len() >= SESSIONS_MAX
            && let Some(oldest) = self
                .by_region
                .iter()
                .min_by_key(|(_, session)| session.used)
                .map(|(region_id, _)| *region_id)
        {
            self.by_region.remove(&oldest);
        }
        let session = Session {
            id,
            last_sequence: 0,
            used: self.operations,
        };
        self.by_region.insert(region_id, session);
    }

    /// What sending the operation came to.
    ///
    /// # Panics
    /// If nothing was sent.
    pub fn on_met(&mut self, met: Met) -> Course {
        let Some(sent_to) = self.sent_to.take() else {
            panic!("{met:?} answers an operation that was not sent");
        };
        match met {
            Met::Executed => {
                self.settle(sent_to);
                Course::Done
            }
            Met::Refused => Course::Again,
            Met::Lost => {
                self.in_doubt = true;
                Course::Again
            }
            Met::Expired | Met::OutOfOrder => {
                let in_doubt = self.in_doubt;
                self.drop_session();
                match met {
                    _ if in_doubt => Course::Unknown,
                    Met::Expired => Course::Again,
                    _ => Course::Broken,
                }
            }
        }
    }

    /// Ends the operation without an answer. True: it may have been executed, or may be
    /// later; its session is given up, so that its number is not used again.
    pub fn give_up(&mut self) -> bool {
        let in_doubt = self.in_doubt || self.sent_to.is_some();
        if in_doubt {
            self.drop_session();
        }
        self.bound = None;
        in_doubt
    }

    /// Regions in which a session is open, as far as the clerk knows.
    #[must_use]
    pub fn count(&self) -> usize {
        self.by_region.len()
    }

    /// The operation was executed in a region.
    fn settle(&mut self, executed_in: u64) {
        let home = self.bound.as_ref().map(|bound| bound.region_id);
        if home != Some(executed_in) {
            self.drop_session();
            return;
        }
        self.in_doubt = false;
        let Some(bound) = self.bound.take() else {
            return;
        };
        if let Some(session) = self.by_region.get_mut(&bound.region_id)
            && session.id == bound.session_id
        {
            session.last_sequence = bound.sequence;
            session.used = self.operations;
        }
    }

    fn drop_session(&mut self) {
        (self.in_doubt, self.sent_to) = (false, None);
        let Some(bound) = self.bound.take() else {
            return;
        };
        if self
            .by_region
            .get(&bound.region_id)
            .is_some_and(|session| session.id == bound.session_id)
        {
            self.by_region.remove(&bound.region_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(mark: u8) -> Bytes {
        vec![mark; 20].into()
    }

    fn execute(mark: u8, sequence: u64) -> Step {
        Step::Execute {
            session_id: id(mark),
            sequence,
        }
    }

    /// Sessions with one open in region 2, and an operation begun.
    fn opened() -> Sessions {
        let mut sessions = Sessions::default();
        sessions.begin();
        assert_eq!(sessions.next(2), Step::Open);
        assert_eq!(sessions.next(2), Step::Open, "an answer may be lost");
        sessions.on_opened(2, id(1));
        sessions
    }

    #[test]
    fn each_region_has_a_session_whose_numbers_follow_each_other() {
        let mut sessions = opened();
        for sequence in 1..=3 {
            assert_eq!(sessions.next(2), execute(1, sequence));
            assert_eq!(sessions.on_met(Met::Executed), Course::Done);
            sessions.begin();
        }
        assert_eq!(sessions.next(3), Step::Open);
        sessions.on_opened(3, id(2));
        assert_eq!(sessions.next(3), execute(2, 1));
        assert_eq!(sessions.on_met(Met::Executed), Course::Done);
        sessions.begin();
        assert_eq!(sessions.next(2), execute(1, 4));
    }

    #[test]
    fn operation_in_doubt_keeps_session_and_number_in_any_region() {
        let mut sessions = opened();
        for met in [Met::Refused, Met::Lost, Met::Refused] {
            assert_eq!(sessions.next(2), execute(1, 1));
            assert_eq!(sessions.on_met(met), Course::Again);
        }
        // The region was split; both sides know the session.
        assert_eq!(sessions.next(7), execute(1, 1));
        assert_eq!(sessions.on_met(Met::Executed), Course::Done);
    }

    /// The first attempts never arrived. The region's own copy still waits for number 1, and
    /// would refuse number 2 for ever.
    #[test]
    fn session_is_not_used_on_where_its_last_operation_was_not_executed() {
        let mut sessions = opened();
        assert_eq!(sessions.next(2), execute(1, 1));
        assert_eq!(sessions.on_met(Met::Lost), Course::Again);
        assert_eq!(sessions.next(7), execute(1, 1));
        assert_eq!(sessions.on_met(Met::Executed), Course::Done);
        sessions.begin();
        assert_eq!(sessions.next(2), Step::Open);
        assert_eq!(sessions.next(7), Step::Open);
    }

    /// A full disk, for example: the caller is told, and what it tries next takes the number.
    #[test]
    fn operation_that_was_refused_for_good_leaves_its_session() {
        let mut sessions = opened();
        assert_eq!(sessions.next(2), execute(1, 1));
        assert_eq!(sessions.on_met(Met::Refused), Course::Again);
        assert!(!sessions.give_up(), "nothing is in doubt");
        sessions.begin();
        assert_eq!(sessions.next(2), execute(1, 1));
    }

    #[test]
    fn operation_that_was_only_refused_may_go_to_another_region() {
        let mut sessions = opened();
        assert_eq!(sessions.next(2), execute(1, 1));
        assert_eq!(sessions.on_met(Met::Refused), Course::Again);
        assert_eq!(sessions.next(7), Step::Open);
        sessions.on_opened(7, id(7));
        assert_eq!(sessions.next(7), execute(7, 1));
        assert_eq!(sessions.on_met(Met::Executed), Course::Done);
        sessions.begin();
        // The number was never taken.
        assert_eq!(sessions.next(2), execute(1, 1));
    }

    #[test]
    fn expired_session_is_opened_anew_unless_the_operation_is_in_doubt() {
        let mut sessions = opened();
        assert_eq!(sessions.next(2), execute(1, 1));
        assert_eq!(sessions.on_met(Met::Expired), Course::Again);
        assert_eq!(sessions.next(2), Step::Open);
        sessions.on_opened(2, id(2));
        assert_eq!(sessions.next(2), execute(2, 1));
        assert_eq!(sessions.on_met(Met::Lost), Course::Again);
        assert_eq!(sessions.next(2), execute(2, 1));
        assert_eq!(sessions.on_met(Met::Expired), Course::Unknown);
        sessions.begin();
        assert_eq!(sessions.next(2), Step::Open);
    }

    #[test]
    fn number_of_an_abandoned_operation_is_never_used_again() {
        let mut sessions = opened();
        // Dropped in the middle: the request is on its way.
        assert_eq!(sessions.next(2), execute(1, 1));
        sessions.begin();
        assert_eq!(sessions.next(2), Step::Open);
        sessions.on_opened(2, id(2));
        assert_eq!(sessions.next(2), execute(2, 1));
        assert_eq!(sessions.on_met(Met::Lost), Course::Again);
        assert!(sessions.give_up());
        sessions.begin();
        assert_eq!(sessions.next(2), Step::Open);
        sessions.on_opened(2, id(3));
        // One that was refused has used nothing up.
        assert_eq!(sessions.next(2), execute(3, 1));
        assert_eq!(sessions.on_met(Met::Refused), Course::Again);
        assert!(!sessions.give_up());
        sessions.begin();
        assert_eq!(sessions.next(2), execute(3, 1));
    }

    #[test]
    fn session_that_the_store_sees_otherwise_is_given_up() {
        let mut sessions = opened();
        assert_eq!(sessions.next(2), execute(1, 1));
        assert_eq!(sessions.on_met(Met::OutOfOrder), Course::Broken);
        assert_eq!(sessions.count(), 0);
    }

    #[test]
    fn sessions_are_bounded() {
        let mut sessions = Sessions::default();
        for region_id in 1..=SESSIONS_MAX as u64 + 10 {
            sessions.begin();
            assert_eq!(sessions.next(region_id), Step::Open);
            sessions.on_opened(region_id, id(1));
        }
        assert_eq!(sessions.count(), SESSIONS_MAX);
        sessions.begin();
        assert_eq!(sessions.next(10), Step::Open);
        assert_eq!(sessions.next(11), execute(1, 1));
    }
}
