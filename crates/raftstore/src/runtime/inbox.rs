//! The way into a shard.
//!
//! Counted   Requests and messages from outside, and reads that ask for a clock entry: refused
//!           where as much waits as `store.inbox-capacity` allows.
//! Uncounted Answers of this store's own threads, which credits bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use strata_proto::raft_serverpb::RaftMessage;

use super::mailbox::{MailReceiver, MailSender, mailbox};
use crate::error::Error;
use crate::shard::ShardEvent;
use crate::task::{PendingRequest, ReadTask};

/// Bytes that count as much as a request without any.
const WEIGHT_BYTES: usize = 4 << 10;

/// What arrives in a shard's inbox.
pub(super) enum ShardMail {
    /// Raft messages from outside; counted with this weight.
    Messages(usize, Vec<RaftMessage>),
    /// A request from outside; counted by [`request_weight`].
    Request(Box<PendingRequest>),
    /// A read that asks for a clock entry; counts one.
    ClockWanted(Box<ReadTask>),
    /// Answers and orders from this store; bounded by credits, and progress within applied
    /// work by the entries of that work.
    Event(ShardEvent),
    /// Ends the shard's task.
    Stop,
}

/// What a request counts in an inbox.
pub(super) fn request_weight(pending: &PendingRequest) -> usize {
    1 + pending.bytes / WEIGHT_BYTES
}

/// What a raft message counts in an inbox.
pub(super) fn message_weight(message: &RaftMessage) -> usize {
    let entries = message.message.iter().flat_map(|inner| &inner.entries);
    1 + entries.map(|entry| entry.data.len()).sum::<usize>() / WEIGHT_BYTES
}

/// The way into a shard.
#[derive(Clone)]
pub(super) struct Inbox {
    pub sender: MailSender<ShardMail>,
    /// Weight of the counted mails that wait.
    pub waiting: Arc<AtomicUsize>,
    pub capacity: usize,
    /// Whether the shard waits for what the log writer has to tell.
    pub waits_for_log: Arc<AtomicBool>,
}

impl Inbox {
    /// An empty inbox, and its end at the shard.
    pub fn new(capacity: usize) -> (Self, MailReceiver<ShardMail>) {
        let (sender, receiver) = mailbox();
        let inbox = Inbox {
            sender,
            waiting: Arc::default(),
            capacity,
            waits_for_log: Arc::default(),
        };
        (inbox, receiver)
    }

    /// Puts counted mail in; gives it back where there is no room or the shard has ended.
    pub fn offer(&self, weight: usize, mail: ShardMail) -> Result<(), ShardMail> {
        if self.waiting.fetch_add(weight, Ordering::Relaxed) >= self.capacity {
            self.waiting.fetch_sub(weight, Ordering::Relaxed);
            return Err(mail);
        }
        self.sender.send(mail)
    }

    /// Tells the shard how far its log is on the disk, and wakes it if it waits for that.
    pub fn log_event(&self, event: ShardEvent) {
        // As in `event`.
        let _ = self.sender.send_without_wake(ShardMail::Event(event));
        // After the mail is in: the shard says that it waits, and looks for mail after that.
        // One of the two sees the other.
        if self.waits_for_log.load(Ordering::SeqCst) {
            self.sender.wake();
        }
    }

    /// Puts an event of this store in. It is lost where the store is stopping.
    pub fn event(&self, event: ShardEvent) {
        // A closed channel means that the shard has ended: nobody needs the event.
        let _ = self.sender.send(ShardMail::Event(event));
    }
}

/// Hands a read that asks for a clock entry to its shard, or refuses it where the inbox is
/// full: every client that reads an expired value comes this way.
pub(super) fn want_clock(inbox: &Inbox, task: ReadTask) {
    let mail = ShardMail::ClockWanted(Box::new(task));
    if let Err(ShardMail::ClockWanted(task)) = inbox.offer(1, mail) {
        task.reply.deliver(Err(Error::ServerIsBusy {
            reason: "the inbox of the shard is full",
            backoff_ms: 100,
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::sync::mpsc::channel;
    use std::task::{Context, Waker};
    use std::time::Duration;

    use super::super::mailbox::Wakes;
    use super::*;
    use crate::request::{Answer, Cancellation, ReadCommand, Reply};
    use crate::task::{Expiry, ReadBody};

    fn read(reply: Reply) -> ReadTask {
        ReadTask {
            region: Arc::default(),
            shard: 0,
            body: ReadBody::Raw(ReadCommand::BatchGet {
                space: Default::default(),
                keys: Vec::new(),
            }),
            expiry: Expiry::RegionClock,
            answer_bytes_max: 0,
            deadline: Duration::ZERO,
            cancellation: Cancellation::default(),
            view: Arc::default(),
            data_epoch: 0,
            reply,
        }
    }

    #[test]
    fn a_synced_log_wakes_the_shard_that_waits_for_it() {
        let (inbox, mails) = Inbox::new(2);
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let sleep = || {
            let mut arrival = pin!(mails.arrival());
            arrival.as_mut().poll(&mut Context::from_waker(&waker))
        };
        assert!(sleep().is_pending());
        inbox.log_event(ShardEvent::LogPersisted { number: 1 });
        assert_eq!(wakes.count(), 0, "nobody waits");
        assert!(sleep().is_ready(), "it is there for who looks");
        let mut taken = Vec::new();
        mails.take(&mut taken);
        assert_eq!(taken.len(), 1);
        inbox.waits_for_log.store(true, Ordering::SeqCst);
        assert!(sleep().is_pending());
        inbox.log_event(ShardEvent::LogPersisted { number: 2 });
        assert_eq!(wakes.count(), 1);
    }

    #[test]
    fn reads_that_ask_for_a_clock_are_bounded_by_the_inbox() {
        let (inbox, mails) = Inbox::new(2);
        let (results, answers) = channel::<Result<Answer, Error>>();
        for _ in 0..3 {
            let results = results.clone();
            let reply = Reply::new(move |result| drop(results.send(result)));
            want_clock(&inbox, read(reply));
        }
        let mut taken = Vec::new();
        mails.take(&mut taken);
        assert_eq!(taken.len(), 2);
        let refused = answers.try_recv().unwrap().unwrap_err();
        assert!(matches!(refused, Error::ServerIsBusy { .. }), "{refused}");
        assert!(answers.try_recv().is_err(), "the others wait");
    }
}
