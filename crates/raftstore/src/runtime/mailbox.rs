//! Queues into the runtime's threads and tasks.
//!
//! What a thread or a task has to do comes in bursts, so the receiving side takes all that waits
//! at once, and sleeps at once where nothing does: neither spinning nor yielding, which costs the
//! threads that have work their processor.
//!
//! Send     From any thread. Wakes the receiver only if it sleeps.
//! Receive  One receiver, a thread ([`MailReceiver::wait`]) or a task ([`MailReceiver::arrival`]).
//! Close    When the last sender goes, the receiver learns it after the last mail. When the
//!          receiver goes, what waits is dropped, and senders get their mail back.
//!
//! Bounds are the callers': the weight of what comes from outside, credits for the rest.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::{Condvar, Mutex};

/// Who waits for mail.
#[derive(Debug)]
enum Waiting {
    Nobody,
    Thread,
    Task(Waker),
}

#[derive(Debug)]
struct State<T> {
    mails: Vec<T>,
    senders: usize,
    receiver_gone: bool,
    waiting: Waiting,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    /// A thread waits here.
    arrived: Condvar,
}

impl<T> Shared<T> {
    /// Changes the state, and wakes the receiver if it sleeps.
    fn change<R>(&self, change: impl FnOnce(&mut State<T>) -> R) -> R {
        let mut state = self.state.lock();
        let result = change(&mut state);
        let waiting = std::mem::replace(&mut state.waiting, Waiting::Nobody);
        drop(state);
        match waiting {
            Waiting::Nobody => {}
            Waiting::Thread => drop(self.arrived.notify_one()),
            Waiting::Task(waker) => waker.wake(),
        }
        result
    }
}

/// The sending end; clones send to the same receiver.
#[derive(Debug)]
pub(super) struct MailSender<T>(Arc<Shared<T>>);

/// The receiving end.
#[derive(Debug)]
pub(super) struct MailReceiver<T>(Arc<Shared<T>>);

/// An empty mailbox.
pub(super) fn mailbox<T>() -> (MailSender<T>, MailReceiver<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            mails: Vec::new(),
            senders: 1,
            receiver_gone: false,
            waiting: Waiting::Nobody,
        }),
        arrived: Condvar::new(),
    });
    (MailSender(shared.clone()), MailReceiver(shared))
}

impl<T> MailSender<T> {
    /// Puts a mail in; gives it back where the receiver is gone.
    pub fn send(&self, mail: T) -> Result<(), T> {
        self.0.change(|state| {
            if state.receiver_gone {
                return Err(mail);
            }
            state.mails.push(mail);
            Ok(())
        })
    }

    /// Puts a mail in that can wait for the next one, or for [`MailSender::wake`].
    pub fn send_without_wake(&self, mail: T) -> Result<(), T> {
        let mut state = self.0.state.lock();
        if state.receiver_gone {
            return Err(mail);
        }
        state.mails.push(mail);
        Ok(())
    }

    /// Wakes the receiver if it sleeps.
    pub fn wake(&self) {
        self.0.change(|_| ());
    }
}

impl<T> Clone for MailSender<T> {
    fn clone(&self) -> Self {
        self.0.state.lock().senders += 1;
        MailSender(self.0.clone())
    }
}

impl<T> Drop for MailSender<T> {
    fn drop(&mut self) {
        self.0.change(|state| state.senders -= 1);
    }
}

#[cfg(test)]
impl<T> MailReceiver<T> {
    /// What has come within a time, or as much as is waited for.
    pub fn take_within(&self, wanted: usize, time: std::time::Duration) -> Vec<T> {
        let (began, mut mails) = (std::time::Instant::now(), Vec::new());
        while mails.len() < wanted && began.elapsed() < time {
            self.take(&mut mails);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        mails
    }
}

impl<T> MailReceiver<T> {
    /// Appends all that waits to `mails`; nothing if nothing does.
    pub fn take(&self, mails: &mut impl Extend<T>) {
        mails.extend(self.0.state.lock().mails.drain(..));
    }

    /// Blocks until there is mail, then appends all of it to `mails`. False: there is none, and
    /// all senders are gone.
    pub fn wait(&self, mails: &mut impl Extend<T>) -> bool {
        let mut state = self.0.state.lock();
        while state.mails.is_empty() {
            if state.senders == 0 {
                return false;
            }
            state.waiting = Waiting::Thread;
            self.0.arrived.wait(&mut state);
        }
        mails.extend(state.mails.drain(..));
        true
    }

    /// Ready when there is mail, or all senders are gone.
    pub async fn arrival(&self) {
        std::future::poll_fn(|context| self.poll_arrival(context)).await;
    }

    fn poll_arrival(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.state.lock();
        if !state.mails.is_empty() || state.senders == 0 {
            // It looks at the mail next: nobody need wake it for more.
            state.waiting = Waiting::Nobody;
            return Poll::Ready(());
        }
        match &mut state.waiting {
            Waiting::Task(waker) => waker.clone_from(context.waker()),
            waiting => *waiting = Waiting::Task(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl<T> Drop for MailReceiver<T> {
    fn drop(&mut self) {
        // Dropping a mail may answer its sender, who may send again: not under the lock.
        let left = self.0.change(|state| {
            state.receiver_gone = true;
            std::mem::take(&mut state.mails)
        });
        drop(left);
    }
}

/// A waker that counts, for tests.
#[cfg(test)]
#[derive(Default)]
pub(super) struct Wakes(std::sync::atomic::AtomicUsize);

#[cfg(test)]
impl Wakes {
    pub fn count(&self) -> usize {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}

#[cfg(test)]
impl std::task::Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_waits_is_taken_at_once_and_in_order() {
        let (sender, receiver) = mailbox();
        let other = sender.clone();
        for number in 0..3 {
            sender.send(number).unwrap();
            other.send(10 + number).unwrap();
        }
        let mut mails = Vec::new();
        assert!(receiver.wait(&mut mails));
        assert_eq!(mails, [0, 10, 1, 11, 2, 12]);
        receiver.take(&mut mails);
        assert_eq!(mails.len(), 6, "nothing waits");
    }

    #[test]
    fn the_last_mail_comes_before_the_end() {
        let (sender, receiver) = mailbox();
        let other = sender.clone();
        drop(sender);
        other.send(1).unwrap();
        drop(other);
        let mut mails = Vec::new();
        assert!(receiver.wait(&mut mails));
        assert!(!receiver.wait(&mut mails));
        assert_eq!(mails, [1]);
    }

    #[test]
    fn a_thread_that_sleeps_is_woken() {
        let (sender, receiver) = mailbox();
        let thread = std::thread::spawn(move || {
            let mut mails = Vec::new();
            while receiver.wait(&mut mails) {}
            mails
        });
        for number in 0..1000 {
            sender.send(number).unwrap();
            if number % 10 == 0 {
                std::thread::yield_now();
            }
        }
        drop(sender);
        assert_eq!(thread.join().unwrap(), (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn a_task_is_woken_once_for_what_comes_together() {
        let (sender, receiver) = mailbox();
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut context = Context::from_waker(&waker);
        assert!(receiver.poll_arrival(&mut context).is_pending());
        assert!(receiver.poll_arrival(&mut context).is_pending());
        sender.send(1).unwrap();
        sender.send(2).unwrap();
        assert_eq!(wakes.count(), 1);
        assert!(receiver.poll_arrival(&mut context).is_ready());
        let mut mails = Vec::new();
        receiver.take(&mut mails);
        assert_eq!(mails, [1, 2]);
        assert!(receiver.poll_arrival(&mut context).is_pending());
        drop(sender);
        assert_eq!(wakes.count(), 2, "the end is told, too");
        assert!(receiver.poll_arrival(&mut context).is_ready());
    }

    #[test]
    fn mail_that_can_wait_comes_with_the_next() {
        let (sender, receiver) = mailbox();
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut context = Context::from_waker(&waker);
        assert!(receiver.poll_arrival(&mut context).is_pending());
        sender.send_without_wake(1).unwrap();
        assert_eq!(wakes.count(), 0);
        sender.wake();
        assert_eq!(wakes.count(), 1);
        let mut mails = Vec::new();
        receiver.take(&mut mails);
        assert!(receiver.poll_arrival(&mut context).is_pending());
        sender.send_without_wake(2).unwrap();
        assert!(
            receiver.poll_arrival(&mut context).is_ready(),
            "who asks again finds it"
        );
        sender.send(3).unwrap();
        receiver.take(&mut mails);
        assert_eq!(mails, [1, 2, 3]);
    }

    #[test]
    fn what_waits_for_a_receiver_that_goes_is_dropped() {
        let (sender, receiver) = mailbox();
        let mail = Arc::new(());
        sender.send(mail.clone()).unwrap();
        drop(receiver);
        assert_eq!(Arc::strong_count(&mail), 1);
        assert!(sender.send(mail).is_err(), "and nothing more is taken");
    }
}
