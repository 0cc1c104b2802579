//! Whether a snapshot whose stream ended is sent over another one, and when.
//!
//! A fault that may pass (a broken connection, a full receiver, a damaged frame) is worth
//! another stream after a pause, as long as the snapshot gets on. What the receiver does
//! not want, and what this store cannot read, is given up at once: Raft is told, and comes
//! back with a newer snapshot if one is still needed.

use std::time::Duration;

use strata_proto::stratapb::SnapshotRefusalKind;

use super::TransferOptions;
use super::sender::SendFault;

/// Decides about the streams of one snapshot to one peer.
#[derive(Debug)]
pub struct SendRetry {
    pause_min: Duration,
    pause_max: Duration,
    timeout: Duration,
    pause: Duration,
    /// When something new arrived, or the first stream began.
    got_on: Duration,
    /// Most bytes that the receiver has said to hold.
    held_bytes: u64,
}

impl SendRetry {
    /// Begins at `now`, with the first stream.
    #[must_use]
    pub fn new(options: &TransferOptions, now: Duration) -> Self {
        SendRetry {
            pause_min: options.retry_pause_min,
            pause_max: options.retry_pause_max,
            timeout: options.send_timeout,
            pause: options.retry_pause_min,
            got_on: now,
            held_bytes: 0,
        }
    }

    /// Notes how many bytes the receiver holds. A stream that gets on is never given up.
    pub fn on_held(&mut self, now: Duration, held_bytes: u64) {
        if held_bytes > self.held_bytes {
            self.held_bytes = held_bytes;
            self.got_on = now;
            self.pause = self.pause_min;
        }
    }

    /// The host let the snapshot wait for others for so long: that is not the receiver's
    /// fault.
    pub fn on_waited(&mut self, time: Duration) {
        self.got_on += time;
    }

    /// The pause before the next stream; `None` gives the snapshot up.
    pub fn on_fault(&mut self, now: Duration, fault: &SendFault) -> Option<Duration> {
        let passes = match fault {
            SendFault::Refused { kind, .. } => match kind {
                SnapshotRefusalKind::Busy
                | SnapshotRefusalKind::DamagedFrame
                | SnapshotRefusalKind::DamagedFile => true,
                SnapshotRefusalKind::UnspecifiedRefusal
                | SnapshotRefusalKind::Unwanted
                | SnapshotRefusalKind::Malformed
                | SnapshotRefusalKind::Failed => false,
            },
            SendFault::Unexpected(_) | SendFault::Stalled { .. } | SendFault::Broken(_) => true,
            SendFault::Files(_) | SendFault::Gone | SendFault::Outdated { .. } => false,
        };
        let pause = self.pause;
        if !passes || now + pause >= self.got_on + self.timeout {
            return None;
        }
        self.pause = (pause * 2).min(self.pause_max);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn options() -> TransferOptions {
        TransferOptions {
            retry_pause_min: SECOND,
            retry_pause_max: SECOND * 4,
            send_timeout: SECOND * 20,
            ..TransferOptions::default()
        }
    }

    fn broken() -> SendFault {
        SendFault::Broken("connection reset".to_owned())
    }

    fn refused(kind: SnapshotRefusalKind) -> SendFault {
        SendFault::Refused {
            kind,
            reason: String::new(),
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_end() {
        let mut retry = SendRetry::new(&options(), SECOND);
        let mut now = SECOND;
        let mut pauses = Vec::new();
        while let Some(pause) = retry.on_fault(now, &broken()) {
            pauses.push(pause.as_secs());
            now += pause;
            assert!(now < SECOND * 21, "tried at {now:?}, given up at 21 s");
        }
        assert_eq!(pauses, [1, 2, 4, 4, 4, 4]);
    }

    #[test]
    fn a_stream_that_gets_on_begins_the_pauses_again() {
        let mut retry = SendRetry::new(&options(), Duration::ZERO);
        for second in 1..100 {
            let now = SECOND * second;
            retry.on_held(now, u64::from(second));
            assert_eq!(retry.on_fault(now, &broken()), Some(SECOND));
        }
        // Bytes that were there before are nothing new.
        retry.on_held(SECOND * 200, 99);
        assert_eq!(retry.on_fault(SECOND * 200, &broken()), None);
    }

    #[test]
    fn waiting_for_others_is_not_held_against_a_receiver() {
        let mut retry = SendRetry::new(&options(), Duration::ZERO);
        retry.on_waited(SECOND * 30);
        assert_eq!(retry.on_fault(SECOND * 40, &broken()), Some(SECOND));
        assert_eq!(retry.on_fault(SECOND * 48, &broken()), None);
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for (kind, again) in [
            (SnapshotRefusalKind::Busy, true),
            (SnapshotRefusalKind::DamagedFrame, true),
            (SnapshotRefusalKind::DamagedFile, true),
            (SnapshotRefusalKind::Unwanted, false),
            (SnapshotRefusalKind::Malformed, false),
            (SnapshotRefusalKind::Failed, false),
            (SnapshotRefusalKind::UnspecifiedRefusal, false),
        ] {
            let mut retry = SendRetry::new(&options(), Duration::ZERO);
            let pause = retry.on_fault(Duration::ZERO, &refused(kind));
            assert_eq!(pause.is_some(), again, "{kind:?}");
        }
        let mut retry = SendRetry::new(&options(), Duration::ZERO);
        let outdated = SendFault::Outdated { term: 6 };
        assert_eq!(retry.on_fault(Duration::ZERO, &outdated), None);
    }
}
