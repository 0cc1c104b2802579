//! The search for an order of a component's operations.
//!
//! A configuration is: which operations with a known outcome are placed, the state that
//! they leave (a value for each key), and which of unknown outcome were used. From it,
//! every operation can be placed next that was invoked before the first return among those
//! not yet placed, if its keys would show what the client saw. The search goes deep first,
//! undoes, and never enters a configuration twice.
//!
//! What keeps it short
//! * An operation that fits and can only look (a read, a swap that failed) is placed at
//!   once and for good: doing so earlier never hurts the others.
//! * Operations of unknown outcome are tried last, only where they change something, and
//!   only right before one that meets them: else they could be placed later, or left out.
//!   Of equal ones the first invoked is used first.
//! * No value is overwritten that is still to be read and that nothing can bring back
//!   ([`Future`]).
//! * Where all writes of a key are appends its value only grows: until the longest value
//!   that was read is seen, every value is a beginning of it.
//! * A configuration that failed with fewer unknown operations used fails with more.
//!
//! Invariant: the known list holds invocations and returns in the order of places; what is
//! placed is unlinked from it and linked back in reverse order.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Verdict;
use super::compiled::{Effect, Item, Need, StateId, States, Step, ValueId, Values};
use super::component::Component;
use super::future::Future;

pub(super) struct Search {
    items: Vec<Item>,
    /// Items of known outcome, in the order of their invocations.
    known: Vec<usize>,
    /// Those of unknown outcome, in the same order.
    unknown: Vec<Unknown>,
    /// Keys on which an unknown item may lead to the value that another needs.
    chained: Vec<bool>,
    list: List,
    values: Values,
    states: States,
    future: Future,
    /// By key: where all its writes are appends, the read of the longest value.
    longest: Vec<Option<(usize, ValueId)>>,
    placed: Bits,
    placed_count: usize,
    /// All known items below this place are placed, those from `high` on are not.
    low: usize,
    high: usize,
    /// Unknown items that are used, in ascending order.
    used: Vec<usize>,
    state: StateId,
    /// Unknown items placed since the last known one.
    run: Vec<usize>,
    frames: Vec<Frame>,
    seen: BTreeMap<Configuration, Vec<Vec<usize>>>,
    steps: u64,
    steps_max: u64,
}

struct Unknown {
    item: usize,
    /// The equal one invoked before it.
    twin: Option<usize>,
}

/// What is remembered of a configuration, beside what of unknown outcome was used.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Configuration {
    low: usize,
    state: StateId,
    /// What is placed from the word of `low` on.
    placed: Box<[u64]>,
    run: Box<[usize]>,
}

/// One placed operation and what was before it.
struct Frame {
    placed: Placed,
    state: StateId,
    low: usize,
    high: usize,
    run: Vec<usize>,
    /// Nothing else needs to be tried in its place.
    forced: bool,
}

#[derive(Clone, Copy)]
enum Placed {
    Known { place: usize },
    Unknown { place: usize },
}

/// Where the next candidate is looked for.
#[derive(Clone, Copy)]
enum Cursor {
    Known { node: usize },
    Unknown { place: usize },
}

enum Advanced {
    /// An operation was placed; begin again behind it.
    Placed,
    /// The candidate does not fit; try this one.
    Next(Cursor),
    /// No candidate is left.
    Exhausted,
}

impl Search {
    /// A search over a component whose keys hold `initial` at first, up to a number of
    /// configurations.
    pub(super) fn new(
        component: &Component,
        initial: &BTreeMap<Bytes, Bytes>,
        steps_max: u64,
    ) -> Self {
        let keys = &component.keys;
        let mut values = Values::new();
        let first: Vec<ValueId> = keys
            .iter()
            .map(|key| values.id_of(initial.get(key).cloned()))
            .collect();
        let mut items: Vec<Item> = component
            .operations
            .iter()
            .map(|operation| Item::new(operation, keys, &mut values))
            .collect();
        let future = Future::new(&mut items, &first, &mut values);
        let mut states = States::default();
        let state = states.id_of(&first);
        let known: Vec<usize> = (0..items.len())
            .filter(|item| items[*item].returned.is_some())
            .collect();
        let unknown = unknown_of(&items);
        Search {
            list: List::new(&items, &known),
            longest: longest_reads(&items, &known, keys.len(), &values),
            chained: chained_keys(&items, &unknown, keys.len()),
            placed: Bits::new(known.len()),
            placed_count: 0,
            low: 0,
            high: 0,
            used: Vec::new(),
            items,
            known,
            unknown,
            values,
            states,
            future,
            state,
            run: Vec::new(),
            frames: Vec::new(),
            seen: BTreeMap::new(),
            steps: 0,
            steps_max,
        }
    }

    /// The verdict, and the configurations that were tried.
    pub(super) fn run(mut self) -> (Verdict, u64) {
        let mut cursor = self.first_cursor();
        loop {
            if self.placed_count == self.known.len() {
                return (Verdict::Linearizable, self.steps);
            }
            if self.steps >= self.steps_max {
                return (Verdict::Undecided, self.steps);
            }
            let advanced = match cursor {
                Cursor::Known { node } => self.try_known(node),
                Cursor::Unknown { place } => self.try_unknown(place),
            };
            cursor = match advanced {
                Advanced::Placed => self.first_cursor(),
                Advanced::Next(next) => next,
                Advanced::Exhausted => match self.undo() {
                    Some(next) => next,
                    None => return (Verdict::Violated, self.steps),
                },
            };
        }
    }

    fn first_cursor(&self) -> Cursor {
        Cursor::Known {
            node: self.list.next[HEAD],
        }
    }

    fn try_known(&mut self, node: usize) -> Advanced {
        let Some(place) = self.list.invoked_at(node) else {
            // A return (or the end): what is invoked behind it must wait.
            return Advanced::Next(Cursor::Unknown { place: 0 });
        };
        let next = Advanced::Next(Cursor::Known {
            node: self.list.next[node],
        });
        let number = self.known[place];
        if !self.needs_run(number) {
            return next;
        }
        let Some(state) = self.state_after(number) else {
            return next;
        };
        let before = (self.low, self.high);
        self.placed.set(place, true);
        while self.low < self.known.len() && self.placed.get(self.low) {
            self.low += 1;
        }
        self.high = self.high.max(place + 1);
        let run = std::mem::take(&mut self.run);
        let forced = self.items[number].only_looks();
        if !self.enter(state, forced) {
            self.placed.set(place, false);
            (self.low, self.high) = before;
            self.run = run;
            self.future.give_back(number);
            return next;
        }
        self.list.unlink(place);
        self.placed_count += 1;
        self.frames.push(Frame {
            placed: Placed::Known { place },
            state: self.state,
            low: before.0,
            high: before.1,
            run,
            forced,
        });
        self.state = state;
        Advanced::Placed
    }

    fn try_unknown(&mut self, place: usize) -> Advanced {
        let Some(unknown) = self.unknown.get(place) else {
            return Advanced::Exhausted;
        };
        let number = unknown.item;
        if self.items[number].invoked > self.list.first_return() {
            return Advanced::Exhausted;
        }
        let next = Advanced::Next(Cursor::Unknown { place: place + 1 });
        let is_used = |place: usize| self.used.binary_search(&place).is_ok();
        if is_used(place) || unknown.twin.is_some_and(|twin| !is_used(twin)) {
            return next;
        }
        if let Some(last) = self.run.last() {
            let item = &self.items[number];
            let other = &self.items[self.unknown[*last].item];
            // Next to each other, those that do not meet come in one order only.
            if item.hides(other) || (place < *last && !item.meets(other)) {
                return next;
            }
        }
        if !self.is_of_use(number) {
            return next;
        }
        let Some(state) = self.state_after(number) else {
            return next;
        };
        if state == self.state {
            self.future.give_back(number);
            return next;
        }
        let at = self.used.binary_search(&place).unwrap_or_else(|at| at);
        self.used.insert(at, place);
        self.run.push(place);
        if !self.enter(state, false) {
            self.run.pop();
            self.used.remove(at);
            self.future.give_back(number);
            return next;
        }
        self.frames.push(Frame {
            placed: Placed::Unknown { place },
            state: self.state,
            low: self.low,
            high: self.high,
            run: Vec::new(),
            forced: false,
        });
        self.state = state;
        Advanced::Placed
    }

    /// True if each item of the run is met by what follows it up to this known one, and the
    /// last is not overwritten unseen. Else it could be placed later, or left out.
    fn needs_run(&self, number: usize) -> bool {
        let Some(last) = self.run.last() else {
            return true;
        };
        let item = &self.items[number];
        if item.hides(&self.items[self.unknown[*last].item]) {
            return false;
        }
        (0..self.run.len()).all(|place| {
            let earlier = &self.items[self.unknown[self.run[place]].item];
            let later = self.run[place + 1..].iter();
            item.meets(earlier)
                || later
                    .map(|later| &self.items[self.unknown[*later].item])
                    .any(|later| later.meets(earlier))
        })
    }

    /// True if some known candidate can want what an unknown item leaves.
    fn is_of_use(&self, number: usize) -> bool {
        let item = &self.items[number];
        if item.steps.len() > 1 || item.steps.iter().any(|step| self.chained[step.key]) {
            return true;
        }
        let wrote = &item.steps[0];
        let Effect::Set(value) = wrote.effect else {
            return true;
        };
        let mut node = self.list.next[HEAD];
        while let Some(place) = self.list.invoked_at(node) {
            let candidate = &self.items[self.known[place]];
            let wanted = candidate
                .step_on(wrote.key)
                .is_some_and(|step| match step.need {
                    Need::Any => !matches!(step.effect, Effect::Set(_)),
                    Need::Equals(needed) => needed == value,
                    Need::Differs(_) => true,
                    Need::Never => false,
                });
            if wanted {
                return true;
            }
            node = self.list.next[node];
        }
        false
    }

    /// The state after an item, which is then taken; `None` if it does not fit here.
    fn state_after(&mut self, number: usize) -> Option<StateId> {
        let mut state = self.states.get(self.state).to_vec();
        let mut changed: Vec<(usize, ValueId)> = Vec::new();
        for place in 0..self.items[number].steps.len() {
            let step: Step = self.items[number].steps[place];
            let before = state[step.key];
            let after = self.values.after(before, &step)?;
            if after != before {
                if self.grows_wrongly(step.key, after) {
                    return None;
                }
                changed.push((step.key, before));
                state[step.key] = after;
            }
        }
        self.future.take(number);
        for (key, before) in &changed {
            if !self.future.survives(*key, *before, state[*key]) {
                self.future.give_back(number);
                return None;
            }
        }
        if changed.is_empty() {
            return Some(self.state);
        }
        Some(self.states.id_of(&state))
    }

    /// True for a value that cannot grow into the longest one which is still to be read.
    fn grows_wrongly(&self, key: usize, value: ValueId) -> bool {
        let Some((read, longest)) = self.longest[key] else {
            return false;
        };
        let longest = self.values.get(longest).map_or(&[][..], |value| value);
        let value = self.values.get(value);
        !self.placed.get(read) && value.is_some_and(|value| !longest.starts_with(value))
    }

    /// Notes the configuration; false if it need not be tried.
    fn enter(&mut self, state: StateId, forced: bool) -> bool {
        self.steps += 1;
        if forced {
            // The way here had no other choice: it is the configuration before.
            return true;
        }
        let from = self.low / 64;
        let to = self.high.div_ceil(64).max(from);
        let configuration = Configuration {
            low: self.low,
            state,
            placed: self.placed.words(from, to).into(),
            run: self.run.as_slice().into(),
        };
        let tried = self.seen.entry(configuration).or_default();
        if tried.iter().any(|used| is_subset(used, &self.used)) {
            return false;
        }
        tried.retain(|used| !is_subset(&self.used, used));
        tried.push(self.used.clone());
        true
    }

    /// Takes the last operation back; where to go on, `None` if all was tried.
    fn undo(&mut self) -> Option<Cursor> {
        loop {
            let frame = self.frames.pop()?;
            self.state = frame.state;
            self.low = frame.low;
            self.high = frame.high;
            let next = match frame.placed {
                Placed::Known { place } => {
                    self.list.relink(place);
                    self.placed.set(place, false);
                    self.placed_count -= 1;
                    self.run = frame.run;
                    self.future.give_back(self.known[place]);
                    Cursor::Known {
                        node: self.list.next[self.list.invocation[place]],
                    }
                }
                Placed::Unknown { place } => {
                    self.run.pop();
                    self.used.retain(|used| *used != place);
                    self.future.give_back(self.unknown[place].item);
                    Cursor::Unknown { place: place + 1 }
                }
            };
            if !frame.forced {
                return Some(next);
            }
        }
    }
}

fn unknown_of(items: &[Item]) -> Vec<Unknown> {
    let mut unknown: Vec<Unknown> = Vec::new();
    let mut latest: BTreeMap<&[Step], usize> = BTreeMap::new();
    for (number, item) in items.iter().enumerate() {
        if item.returned.is_none() {
            let twin = latest.insert(&item.steps, unknown.len());
            unknown.push(Unknown { item: number, twin });
        }
    }
    unknown
}

/// Keys with an unknown item that does not just set them, or that sets others, too.
fn chained_keys(items: &[Item], unknown: &[Unknown], keys: usize) -> Vec<bool> {
    let mut chained = vec![false; keys];
    for Unknown { item, .. } in unknown {
        let steps = &items[*item].steps;
        for step in steps {
            chained[step.key] |= steps.len() > 1 || !step.is_blind();
        }
    }
    chained
}

/// By key: the place among `known` of the read that saw the longest value, if all writes
/// append.
fn longest_reads(
    items: &[Item],
    known: &[usize],
    keys: usize,
    values: &Values,
) -> Vec<Option<(usize, ValueId)>> {
    let mut appends_only = vec![true; keys];
    for step in items.iter().flat_map(|item| &item.steps) {
        appends_only[step.key] &= matches!(step.effect, Effect::Keep | Effect::Append(_));
    }
    let mut longest: Vec<Option<(usize, ValueId)>> = vec![None; keys];
    let length = |value: ValueId| values.get(value).map(Bytes::len);
    for (place, item) in known.iter().enumerate() {
        for step in &items[*item].steps {
            let Need::Equals(value) = step.need else {
                continue;
            };
            let longer = longest[step.key].is_none_or(|(_, best)| length(value) > length(best));
            if appends_only[step.key] && length(value).is_some() && longer {
                longest[step.key] = Some((place, value));
            }
        }
    }
    longest
}

fn is_subset(some: &[usize], all: &[usize]) -> bool {
    some.len() <= all.len() && some.iter().all(|one| all.binary_search(one).is_ok())
}

const HEAD: usize = 0;
const END: usize = 1;

/// Invocations and returns of the known items that are not placed, doubly linked.
struct List {
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Node of each one's invocation and return.
    invocation: Vec<usize>,
    answer: Vec<usize>,
    nodes: Vec<Node>,
}

#[derive(Clone, Copy)]
enum Node {
    Bound,
    Invoked { place: usize },
    Returned { at: u64 },
}

impl List {
    fn new(items: &[Item], known: &[usize]) -> Self {
        let mut events: Vec<(u64, usize, bool)> = Vec::with_capacity(known.len() * 2);
        for (place, item) in known.iter().enumerate() {
            let item = &items[*item];
            events.push((item.invoked, place, true));
            events.extend(item.returned.map(|at| (at, place, false)));
        }
        events.sort_unstable();
        let mut list = List {
            next: vec![END, END],
            previous: vec![HEAD, HEAD],
            invocation: vec![HEAD; known.len()],
            answer: vec![HEAD; known.len()],
            nodes: vec![Node::Bound, Node::Bound],
        };
        for (at, place, invoked) in events {
            let node = list.nodes.len();
            if invoked {
                list.nodes.push(Node::Invoked { place });
                list.invocation[place] = node;
            } else {
                list.nodes.push(Node::Returned { at });
                list.answer[place] = node;
            }
            let last = list.previous[END];
            list.next.push(END);
            list.previous.push(last);
            list.next[last] = node;
            list.previous[END] = node;
        }
        list
    }

    fn invoked_at(&self, node: usize) -> Option<usize> {
        match self.nodes[node] {
            Node::Invoked { place } => Some(place),
            Node::Returned { .. } | Node::Bound => None,
        }
    }

    /// Place of the first return that is left.
    fn first_return(&self) -> u64 {
        let mut node = self.next[HEAD];
        while node != END {
            if let Node::Returned { at } = self.nodes[node] {
                return at;
            }
            node = self.next[node];
        }
        u64::MAX
    }

    fn unlink(&mut self, place: usize) {
        for node in [self.invocation[place], self.answer[place]] {
            let (before, behind) = (self.previous[node], self.next[node]);
            self.next[before] = behind;
            self.previous[behind] = before;
        }
    }

    /// Undoes the latest `unlink` that is not yet undone.
    fn relink(&mut self, place: usize) {
        for node in [self.answer[place], self.invocation[place]] {
            let (before, behind) = (self.previous[node], self.next[node]);
            self.next[before] = node;
            self.previous[behind] = node;
        }
    }
}

/// A set of small numbers.
struct Bits(Vec<u64>);

impl Bits {
    fn new(len: usize) -> Self {
        Bits(vec![0; len.div_ceil(64)])
    }

    fn get(&self, index: usize) -> bool {
        self.0[index / 64] & (1 << (index % 64)) != 0
    }

    fn set(&mut self, index: usize, on: bool) {
        let bit = 1 << (index % 64);
        if on {
            self.0[index / 64] |= bit;
        } else {
            self.0[index / 64] &= !bit;
        }
    }

    /// The words of a range.
    fn words(&self, from: usize, to: usize) -> &[u64] {
        let to = to.min(self.0.len());
        &self.0[from.min(to)..to]
    }
}
