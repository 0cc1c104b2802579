//! The simulated network between stores.
//!
//! Every raft message asks the network for its [`Fate`]: cuts first, then the filters in
//! the order they were added, then chance. What remains is delivered after a delay. As on
//! a stream, messages of one link keep their order, unless they are chosen to overtake.
//!
//! Invariants
//! * A cut link carries nothing in its direction; what is on the way already arrives.
//! * All chance comes from the generator that is handed in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use strata_proto::eraftpb::MessageType;
use strata_proto::raft_serverpb::RaftMessage;

/// What chance does to messages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weather {
    /// Shortest and longest time on the way.
    pub delay: (Duration, Duration),
    /// Share of messages that are lost, 0 to 1.
    pub lost: f64,
    /// Share of messages that arrive twice.
    pub doubled: f64,
    /// Share of messages that take `detour` longer and are overtaken by those behind them.
    pub overtaken: f64,
    /// Longest extra time of an overtaken message.
    pub detour: Duration,
}

impl Weather {
    /// Short delays, nothing lost, order kept.
    #[must_use]
    pub fn fair() -> Self {
        Weather {
            delay: (Duration::from_micros(100), Duration::from_micros(900)),
            lost: 0.0,
            doubled: 0.0,
            overtaken: 0.0,
            detour: Duration::ZERO,
        }
    }

    /// A tenth lost, some doubled, a third overtaken, delays up to 27 ms, as the courses
    /// mean "unreliable".
    #[must_use]
    pub fn unreliable() -> Self {
        Weather {
            delay: (Duration::from_micros(100), Duration::from_millis(27)),
            lost: 0.1,
            doubled: 0.05,
            overtaken: 0.33,
            detour: Duration::from_millis(200),
        }
    }
}

/// A message on its way, as filters see it.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// Store that sends.
    pub from: u64,
    /// Store that is to receive.
    pub to: u64,
    /// The message.
    pub message: &'a RaftMessage,
}

impl Envelope<'_> {
    /// Kind of the raft message; `None` for one without.
    #[must_use]
    pub fn kind(&self) -> Option<MessageType> {
        self.message
            .message
            .as_ref()
            .map(|message| message.msg_type())
    }
}

/// What a filter says of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on to the next filter.
    Pass,
    /// Is lost.
    Drop,
    /// Arrives once more.
    Double,
    /// Arrives later, and may be overtaken.
    Delay(Duration),
}

/// Names a filter, to take it out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FilterId(u64);

type Filter = Box<dyn FnMut(&Envelope<'_>) -> Verdict>;

/// When a message arrives: once for each entry, in time from now. Empty: never.
pub type Fate = Vec<Duration>;

/// The network.
pub struct Network {
    weather: Weather,
    cut: BTreeSet<(u64, u64)>,
    /// Links that take so much longer, in one direction.
    slow: BTreeMap<(u64, u64), (Duration, Duration)>,
    filters: BTreeMap<FilterId, Filter>,
    next_filter: u64,
    /// True time until which the messages of a link have arrived that must not be overtaken.
    busy_until: BTreeMap<(u64, u64), Duration>,
    sent: u64,
    lost: u64,
}

impl Network {
    /// A network in which everybody reaches everybody.
    #[must_use]
    pub fn new(weather: Weather) -> Self {
        Network {
            weather,
            cut: BTreeSet::new(),
            slow: BTreeMap::new(),
            filters: BTreeMap::new(),
            next_filter: 0,
            busy_until: BTreeMap::new(),
            sent: 0,
            lost: 0,
        }
    }

    /// What chance does.
    #[must_use]
    pub fn weather(&self) -> Weather {
        self.weather
    }

    /// Changes what chance does from now on.
    pub fn set_weather(&mut self, weather: Weather) {
        self.weather = weather;
    }

    /// Cuts one direction of a link.
    pub fn cut(&mut self, from: u64, to: u64) {
        self.cut.insert((from, to));
    }

    /// Cuts both directions of a link.
    pub fn cut_both(&mut self, one: u64, other: u64) {
        self.cut(one, other);
        self.cut(other, one);
    }

    /// Cuts a store off from all others of `stores`.
    pub fn isolate(&mut self, store: u64, stores: &[u64]) {
        for other in stores.iter().filter(|other| **other != store) {
            self.cut_both(store, *other);
        }
    }

    /// Cuts every link between stores of different groups.
    pub fn partition(&mut self, groups: &[&[u64]]) {
        for (index, group) in groups.iter().enumerate() {
            for others in &groups[index + 1..] {
                for one in *group {
                    for other in *others {
                        self.cut_both(*one, *other);
                    }
                }
            }
        }
    }

    /// Makes one direction of a link slower by a time between the two.
    pub fn slow_down(&mut self, from: u64, to: u64, by: (Duration, Duration)) {
        self.slow.insert((from, to), by);
    }

    /// Mends one direction of a link: it carries again, as fast as others.
    pub fn mend(&mut self, from: u64, to: u64) {
        self.cut.remove(&(from, to));
        self.slow.remove(&(from, to));
    }

    /// Mends all cuts and slow links; filters and weather stay.
    pub fn heal(&mut self) {
        self.cut.clear();
        self.slow.clear();
    }

    /// True while some link carries nothing in some direction.
    #[must_use]
    pub fn has_cuts(&self) -> bool {
        !self.cut.is_empty()
    }

    /// Time that chance gives a frame of a stream on its way.
    pub(crate) fn frame_delay(&self, from: u64, to: u64, rng: &mut ChaCha8Rng) -> Duration {
        let slow = self.slow.get(&(from, to));
        between(rng, self.weather.delay) + slow.map_or(Duration::ZERO, |by| between(rng, *by))
    }

    /// When messages that leave together arrive together; `None` if each has a fate of its
    /// own. They are counted as sent and not as lost.
    pub(crate) fn common_arrival(
        &mut self,
        now: Duration,
        (from, to): (u64, u64),
        count: u64,
        rng: &mut ChaCha8Rng,
    ) -> Option<Duration> {
        let weather = self.weather;
        let chance = weather.lost > 0.0 || weather.doubled > 0.0 || weather.overtaken > 0.0;
        if chance || !self.filters.is_empty() || self.is_cut(from, to) {
            return None;
        }
        self.sent += count;
        let extra = self.slow.get(&(from, to));
        let extra = extra.map_or(Duration::ZERO, |by| between(rng, *by));
        let delay = between(rng, weather.delay) + extra;
        let busy = self.busy_until.entry((from, to)).or_default();
        *busy = (*busy).max(now + delay);
        Some(*busy - now)
    }

    /// True if nothing passes in this direction.
    #[must_use]
    pub fn is_cut(&self, from: u64, to: u64) -> bool {
        self.cut.contains(&(from, to))
    }

    /// Adds a filter behind those that are there.
    pub fn add_filter(
        &mut self,
        filter: impl FnMut(&Envelope<'_>) -> Verdict + 'static,
    ) -> FilterId {
        self.next_filter += 1;
        let id = FilterId(self.next_filter);
        self.filters.insert(id, Box::new(filter));
        id
    }

    /// Takes a filter out; nothing happens if it is out already.
    pub fn remove_filter(&mut self, id: FilterId) {
        self.filters.remove(&id);
    }

    /// Messages that were sent, and how many of them were lost.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.sent, self.lost)
    }

    /// Decides when a message arrives.
    pub fn fate(&mut self, now: Duration, envelope: &Envelope<'_>, rng: &mut ChaCha8Rng) -> Fate {
        self.sent += 1;
        let mut copies = 1;
        let mut extra = Duration::ZERO;
        let mut lost = self.is_cut(envelope.from, envelope.to);
        for filter in self.filters.values_mut() {
            match filter(envelope) {
                Verdict::Pass => {}
                Verdict::Drop => lost = true,
                Verdict::Double => copies += 1,
                Verdict::Delay(delay) => extra += delay,
            }
        }
        let weather = self.weather;
        lost |= weather.lost > 0.0 && rng.random_bool(weather.lost);
        if lost {
            self.lost += 1;
            return Vec::new();
        }
        if weather.doubled > 0.0 && rng.random_bool(weather.doubled) {
            copies += 1;
        }
        (0..copies)
            .map(|_| self.arrival(now, envelope, extra, rng))
            .collect()
    }

    fn arrival(
        &mut self,
        now: Duration,
        envelope: &Envelope<'_>,
        extra: Duration,
        rng: &mut ChaCha8Rng,
    ) -> Duration {
        let weather = self.weather;
        let slow = self.slow.get(&(envelope.from, envelope.to));
        let slow = slow.map_or(Duration::ZERO, |by| between(rng, *by));
        let delay = between(rng, weather.delay) + extra + slow;
        if weather.overtaken > 0.0 && rng.random_bool(weather.overtaken) {
            return delay + between(rng, (Duration::ZERO, weather.detour));
        }
        if extra > Duration::ZERO {
            return delay;
        }
        let busy = self
            .busy_until
            .entry((envelope.from, envelope.to))
            .or_default();
        *busy = (*busy).max(now + delay);
        *busy - now
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network")
            .field("weather", &self.weather)
            .field("cut", &self.cut)
            .field("filters", &self.filters.len())
            .finish_non_exhaustive()
    }
}

/// A random length of time within bounds, both inclusive.
pub(crate) fn between(rng: &mut ChaCha8Rng, (least, most): (Duration, Duration)) -> Duration {
    let (least, most) = (least.as_nanos() as u64, most.as_nanos() as u64);
    Duration::from_nanos(rng.random_range(least..=most.max(least)))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use strata_proto::eraftpb::Message;

    use super::*;

    fn message(kind: MessageType) -> RaftMessage {
        let mut inner = Message::default();
        inner.set_msg_type(kind);
        RaftMessage {
            message: Some(inner),
            ..RaftMessage::default()
        }
    }

    #[test]
    fn cuts_have_a_direction_and_heal() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut network = Network::new(Weather::fair());
        let message = message(MessageType::MsgHeartbeat);
        let there = Envelope {
            from: 1,
            to: 2,
            message: &message,
        };
        let back = Envelope {
            from: 2,
            to: 1,
            message: &message,
        };
        network.cut(1, 2);
        assert!(network.fate(Duration::ZERO, &there, &mut rng).is_empty());
        assert_eq!(network.fate(Duration::ZERO, &back, &mut rng).len(), 1);
        network.partition(&[&[1], &[2, 3]]);
        assert!(network.fate(Duration::ZERO, &back, &mut rng).is_empty());
        assert!(!network.is_cut(2, 3));
        network.heal();
        assert_eq!(network.fate(Duration::ZERO, &there, &mut rng).len(), 1);
        assert_eq!(network.counts(), (4, 2));
    }

    #[test]
    fn fair_links_keep_their_order() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut network = Network::new(Weather::fair());
        let message = message(MessageType::MsgAppend);
        let envelope = Envelope {
            from: 1,
            to: 2,
            message: &message,
        };
        let mut last = Duration::ZERO;
        for step in 0..1_000 {
            let now = Duration::from_micros(step);
            let at = now + network.fate(now, &envelope, &mut rng)[0];
            assert!(at >= last, "overtaken at step {step}");
            last = at;
        }
    }

    #[test]
    fn filters_choose_by_kind() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut network = Network::new(Weather::fair());
        let (append, vote) = (
            message(MessageType::MsgAppend),
            message(MessageType::MsgRequestVote),
        );
        let drop_appends = network.add_filter(|envelope| match envelope.kind() {
            Some(MessageType::MsgAppend) => Verdict::Drop,
            _ => Verdict::Double,
        });
        let at = |message| Envelope {
            from: 1,
            to: 2,
            message,
        };
        assert!(
            network
                .fate(Duration::ZERO, &at(&append), &mut rng)
                .is_empty()
        );
        assert_eq!(network.fate(Duration::ZERO, &at(&vote), &mut rng).len(), 2);
        network.remove_filter(drop_appends);
        assert_eq!(
            network.fate(Duration::ZERO, &at(&append), &mut rng).len(),
            1
        );
    }
}
