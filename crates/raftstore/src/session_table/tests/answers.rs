//! What one operation is answered: first, again, out of order, too late.

use super::*;

#[test]
fn session_id_is_the_place_of_its_command() {
    let mut replica = Replica::new();
    let put = DataCommand {
        session: None,
        body: Some(append_body("k", "x")),
    };
    let outcomes = replica.apply(1, vec![open(4), put, open(4)]);
    let id = |place: u8| {
        let mut id = vec![0; 20];
        (id[7], id[15], id[19]) = (REGION as u8, 6, place);
        CommandOutcome::SessionOpened(id.into())
    };
    assert_eq!(outcomes, [id(0), CommandOutcome::Done, id(2)]);
}

#[test]
fn session_replayed_is_answered_from_table() {
    let mut replica = Replica::new();
    let session = replica.open(1);
    let verdict = |succeeded, previous: Option<&str>| CommandOutcome::CompareAndSwap {
        succeeded,
        previous: previous.map(text),
    };
    // In one entry, so that the answer comes from the batch under construction.
    let outcomes = replica.apply(2, vec![append(&session, 1, "a"), append(&session, 1, "a")]);
    assert_eq!(outcomes, [CommandOutcome::Done, CommandOutcome::Done]);
    assert_eq!(replica.value("k").as_deref(), Some("a"));
    // The whole answer is kept: that of a swap names the value seen before.
    let first = replica.one(3, swap(&session, 2, Some("a"), "b"));
    assert_eq!(first, verdict(true, Some("a")));
    let again = replica.one(4, swap(&session, 2, Some("a"), "b"));
    assert_eq!(again, first);
    // Also where it failed, and though it would succeed by now.
    let failed = replica.one(5, swap(&session, 3, Some("c"), "d"));
    assert_eq!(failed, verdict(false, Some("b")));
    let put = DataCommand {
        session: None,
        body: Some(append_body("k", "")),
    };
    replica.one(6, put);
    let mut replica = replica.restart();
    assert_eq!(replica.one(7, swap(&session, 3, Some("b"), "d")), failed);
    assert_eq!(replica.value("k").as_deref(), Some("b"));
    assert_eq!(replica.metrics.session_repeats.get(), 1);
}

#[test]
fn bad_input_another_operation_under_the_number_of_a_swap_gets_no_verdict() {
    let mut replica = Replica::new();
    let session = replica.open(1);
    let first = replica.one(2, swap(&session, 1, None, "a"));
    let other = replica.one(3, append(&session, 1, "x"));
    let mismatch = CommandOutcome::SequenceMismatch {
        sequence: 1,
        last_sequence: 1,
    };
    assert_eq!(other, mismatch);
    assert_eq!(replica.value("k").as_deref(), Some("a"));
    assert_eq!(replica.one(4, swap(&session, 1, None, "a")), first);
}

#[test]
fn session_unknown_is_refused() {
    let mut replica = Replica::new();
    let session = replica.open(1);
    let mut other = session.to_vec();
    other[19] += 1;
    let other = Bytes::from(other);
    let outcomes = replica.apply(2, vec![append(&other, 1, "a"), append(&session, 1, "b")]);
    assert_eq!(
        outcomes,
        [CommandOutcome::SessionExpired, CommandOutcome::Done]
    );
    assert_eq!(replica.value("k").as_deref(), Some("b"));
    // Refused, it leaves nothing behind, and never becomes known.
    assert_eq!(replica.sessions(), 1);
    assert_eq!(
        replica.one(3, append(&other, 1, "a")),
        CommandOutcome::SessionExpired
    );
}

#[test]
fn bad_input_sequence_goes_back() {
    let mut replica = Replica::new();
    let session = replica.open(1);
    for sequence in 1..=3 {
        let outcome = replica.one(1 + sequence, append(&session, sequence, "a"));
        assert_eq!(outcome, CommandOutcome::Done);
    }
    for sequence in [2, 1, 0, 5, u64::MAX] {
        let outcome = replica.one(10, append(&session, sequence, "x"));
        let refused = CommandOutcome::SequenceMismatch {
            sequence,
            last_sequence: 3,
        };
        assert_eq!(outcome, refused);
    }
    // None of them moved the session.
    assert_eq!(
        replica.one(11, append(&session, 3, "a")),
        CommandOutcome::Done
    );
    assert_eq!(
        replica.one(12, append(&session, 4, "b")),
        CommandOutcome::Done
    );
    assert_eq!(replica.value("k").as_deref(), Some("aaab"));
    // A fresh session has no last answer to repeat.
    let fresh = replica.open(13);
    assert!(matches!(
        replica.one(14, append(&fresh, 0, "x")),
        CommandOutcome::SequenceMismatch {
            last_sequence: 0,
            ..
        }
    ));
}

#[test]
fn refused_operation_may_be_sent_again() {
    let mut replica = Replica::new();
    let session = replica.open(1);
    let outside = within(&session, 1, append_body("y", "a"));
    assert!(matches!(
        replica.one(2, outside),
        CommandOutcome::KeyNotInRegion { .. }
    ));
    let stale = replica.apply_at_version(2, 3, vec![append(&session, 1, "a")]);
    assert!(matches!(
        stale,
        Err(crate::error::Error::EpochNotMatch { .. })
    ));
    let nested = within(&session, 1, open(4).body.unwrap());
    assert_eq!(replica.one(4, nested), CommandOutcome::Refused);
    assert_eq!(
        replica.one(5, append(&session, 1, "a")),
        CommandOutcome::Done
    );
    assert_eq!(replica.value("k").as_deref(), Some("a"));
}

#[test]
fn value_that_would_grow_too_large_is_a_verdict() {
    let mut replica = Replica::new();
    let session = replica.open(1);
    assert_eq!(
        replica.one(2, append(&session, 1, "123456")),
        CommandOutcome::Done
    );
    let too_large = CommandOutcome::ValueTooLarge {
        bytes: 13,
        limit_bytes: 12,
    };
    assert_eq!(replica.one(3, append(&session, 2, "7654321")), too_large);
    // As every verdict it uses up its number: sent again, it stays what it was.
    let delete = within(&session, 3, Body::Write(deletion("k")));
    assert_eq!(replica.one(4, append(&session, 2, "7654321")), too_large);
    assert_eq!(replica.one(5, delete), CommandOutcome::Done);
    assert_eq!(
        replica.one(6, append(&session, 4, "7654321")),
        CommandOutcome::Done
    );
    assert_eq!(replica.value("k").as_deref(), Some("7654321"));
}
