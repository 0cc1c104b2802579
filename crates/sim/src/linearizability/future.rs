//! What is still to be seen: which values later reads need, and where they can come from.
//!
//! Node      A key's value that some answer needs, or from which such a value can be
//!           appended.
//! Readers   The items that need the value.
//! Sources   The items that set it, and the appends that make it of another node.
//!
//! Three uses
//! * An item of unknown outcome that leaves nothing that anybody needs may be left out:
//!   nobody saw it, and whatever it hid would have gone unseen as well.
//! * If a value that was seen has a single source, that source took effect, and before the
//!   first reader returned. Where its outcome was unknown it no longer is.
//! * A step that takes a value away which is still to be read, and which no item that is
//!   left can bring back in time, leads nowhere ([`Future::survives`]).
//!
//! Invariant: all three are consequences of the history; they never change the verdict,
//! only how soon it is found.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::compiled::{ABSENT, Effect, Item, Need, ValueId, Values};

/// Nodes up to which the future is looked at; beyond, nothing is left out.
const NODES_MAX: usize = 100_000;
/// Appends in a row that are followed backwards from a value, and forwards.
const DEPTH_MAX: u32 = 4;
/// Nodes that one step looks at.
const VISITS_MAX: u32 = 48;

type NodeId = usize;

/// Items of one purpose, in the order in which the first free one is asked for.
#[derive(Debug, Default)]
struct Queue {
    items: Vec<usize>,
    /// All before this place are taken.
    hint: usize,
}

#[derive(Debug)]
struct Node {
    key: usize,
    value: ValueId,
    /// By the places before which they return.
    readers: Queue,
    /// By the places of their invocations.
    setters: Queue,
    /// Appends that make it, each with what it is made of.
    appends: Vec<(usize, NodeId)>,
    /// What appends can make of it.
    longer: Vec<NodeId>,
    /// The place before which it must have been there.
    deadline: Option<u64>,
}

/// What is still to be seen.
#[derive(Debug)]
pub(super) struct Future {
    nodes: Vec<Node>,
    ids: BTreeMap<(usize, ValueId), NodeId>,
    /// The queues that hold each item: node, whether as reader, and place there.
    places: Vec<Vec<(NodeId, bool, usize)>>,
    taken: Vec<bool>,
    invoked: Vec<u64>,
    returned: Vec<u64>,
    /// Appends of which a value that is needed can be made.
    appending: Vec<bool>,
    /// Keys of which nothing can be said.
    blurred: Vec<bool>,
    visits: u32,
}

impl Future {
    /// Looks at all items; tightens the places before which they took effect, and leaves out
    /// those of unknown outcome that nobody can have seen.
    pub fn new(items: &mut Vec<Item>, initial: &[ValueId], values: &mut Values) -> Self {
        let mut future = Future {
            nodes: Vec::new(),
            ids: BTreeMap::new(),
            places: Vec::new(),
            taken: Vec::new(),
            invoked: Vec::new(),
            returned: Vec::new(),
            appending: Vec::new(),
            blurred: vec![false; initial.len()],
            visits: 0,
        };
        future.add_needed(items);
        future.add_sources(items, initial, values);
        let seen: Vec<bool> = (0..items.len())
            .map(|number| items[number].returned.is_some() || future.may_be_seen(number, items))
            .collect();
        let mut kept = seen.into_iter();
        items.retain(|_| kept.next() == Some(true));
        // The numbers of the items have changed.
        future = Future {
            nodes: Vec::new(),
            ids: BTreeMap::new(),
            blurred: vec![false; initial.len()],
            ..future
        };
        future.add_needed(items);
        future.add_sources(items, initial, values);
        future.settle(items, initial);
        future.put_in_order(items);
        future
    }

    fn node(&mut self, key: usize, value: ValueId) -> NodeId {
        if let Some(id) = self.ids.get(&(key, value)) {
            return *id;
        }
        let id = self.nodes.len();
        self.nodes.push(Node {
            key,
            value,
            readers: Queue::default(),
            setters: Queue::default(),
            appends: Vec::new(),
            longer: Vec::new(),
            deadline: None,
        });
        self.ids.insert((key, value), id);
        id
    }

    fn add_needed(&mut self, items: &[Item]) {
        for (number, item) in items.iter().enumerate() {
            for step in &item.steps {
                match step.need {
                    Need::Equals(value) => {
                        let node = self.node(step.key, value);
                        if item.returned.is_some() {
                            self.nodes[node].readers.items.push(number);
                        }
                    }
                    Need::Differs(_) => self.blurred[step.key] = true,
                    Need::Any | Need::Never => {}
                }
                if let Effect::Swap { expected, .. } = step.effect {
                    self.node(step.key, expected);
                    self.blurred[step.key] = true;
                }
            }
        }
    }

    fn add_sources(&mut self, items: &[Item], initial: &[ValueId], values: &mut Values) {
        self.appending = vec![false; items.len()];
        let empty = values.id_of(Some(Bytes::new()));
        // Keys that can hold the empty value without an append.
        let mut emptied: Vec<bool> = initial.iter().map(|value| *value == empty).collect();
        // By key: the tails that are appended, each with the items that do so.
        let mut tails: BTreeMap<usize, BTreeMap<Bytes, Vec<usize>>> = BTreeMap::new();
        for (number, item) in items.iter().enumerate() {
            for step in &item.steps {
                if let Effect::Set(value) | Effect::Swap { new: value, .. } = step.effect {
                    emptied[step.key] |= value == empty;
                }
                if let Effect::Append(tail) = step.effect
                    && let Some(tail) = values.get(tail).cloned()
                {
                    if tail.is_empty() {
                        self.blurred[step.key] = true;
                    } else {
                        let tails = tails.entry(step.key).or_default();
                        tails.entry(tail).or_default().push(number);
                    }
                }
            }
        }
        let mut next = 0;
        while next < self.nodes.len() && self.nodes.len() <= NODES_MAX {
            let key = self.nodes[next].key;
            if let Some(tails) = tails.get(&key) {
                self.add_appends(next, tails, emptied[key], values);
            }
            next += 1;
        }
        if self.nodes.len() > NODES_MAX {
            self.blurred.fill(true);
        }
        for (number, item) in items.iter().enumerate() {
            for step in &item.steps {
                let value = match step.effect {
                    Effect::Set(value) | Effect::Swap { new: value, .. } => value,
                    Effect::Keep | Effect::Append(_) => continue,
                };
                if let Some(node) = self.ids.get(&(step.key, value)) {
                    self.nodes[*node].setters.items.push(number);
                }
            }
        }
    }

    /// Enters of what shorter values a value can have been made.
    fn add_appends(
        &mut self,
        node: NodeId,
        tails: &BTreeMap<Bytes, Vec<usize>>,
        emptied: bool,
        values: &mut Values,
    ) {
        let key = self.nodes[node].key;
        let Some(whole) = values.get(self.nodes[node].value).cloned() else {
            return;
        };
        let mut lengths: Vec<usize> = tails.keys().map(Bytes::len).collect();
        lengths.sort_unstable();
        lengths.dedup();
        for length in lengths.into_iter().filter(|length| *length <= whole.len()) {
            let rest = whole.slice(..whole.len() - length);
            let Some(items) = tails.get(&whole[rest.len()..]) else {
                continue;
            };
            for item in items {
                self.appending[*item] = true;
            }
            let mut shorter = Vec::new();
            if !rest.is_empty() || emptied {
                shorter.push(values.id_of(Some(rest.clone())));
            }
            if rest.is_empty() {
                shorter.push(ABSENT);
            }
            for value in shorter {
                let from = self.node(key, value);
                self.nodes[from].longer.push(node);
                let appends = items.iter().map(|item| (*item, from));
                self.nodes[node].appends.extend(appends);
            }
        }
    }

    fn may_be_seen(&self, number: usize, items: &[Item]) -> bool {
        items[number].steps.iter().any(|step| {
            let seen = |value| self.ids.contains_key(&(step.key, value));
            self.blurred[step.key]
                || match step.effect {
                    Effect::Keep => false,
                    Effect::Set(value) | Effect::Swap { new: value, .. } => seen(value),
                    Effect::Append(_) => self.appending[number],
                }
        })
    }

    /// Follows values that were seen to their single sources.
    fn settle(&mut self, items: &mut [Item], initial: &[ValueId]) {
        for node in 0..self.nodes.len() {
            let readers = self.nodes[node].readers.items.iter();
            let first = readers.filter_map(|item| items[*item].returned).min();
            if let Some(deadline) = first {
                self.require(node, deadline, items, initial);
            }
        }
    }

    fn require(&mut self, node: NodeId, deadline: u64, items: &mut [Item], initial: &[ValueId]) {
        let mut open = vec![(node, deadline)];
        while let Some((id, deadline)) = open.pop() {
            let node = &mut self.nodes[id];
            let known = node.deadline.is_some_and(|known| known <= deadline);
            if known || self.blurred[node.key] || initial[node.key] == node.value {
                continue;
            }
            node.deadline = Some(deadline);
            let (source, from) = match (&node.setters.items[..], &node.appends[..]) {
                ([setter], []) => (*setter, None),
                ([], [(append, from)]) => (*append, Some(*from)),
                _ => continue,
            };
            let item = &mut items[source];
            let was_unknown = item.returned.is_none();
            let returned = item.returned.unwrap_or(u64::MAX).min(deadline);
            item.returned = Some(returned);
            open.extend(from.map(|from| (from, returned)));
            for step in &items[source].steps {
                if let Need::Equals(value) = step.need
                    && let Some(needed) = self.ids.get(&(step.key, value)).copied()
                {
                    if was_unknown {
                        self.nodes[needed].readers.items.push(source);
                    }
                    open.push((needed, returned));
                }
            }
        }
    }

    fn put_in_order(&mut self, items: &[Item]) {
        self.taken = vec![false; items.len()];
        self.invoked = items.iter().map(|item| item.invoked).collect();
        self.returned = items
            .iter()
            .map(|item| item.returned.unwrap_or(u64::MAX))
            .collect();
        self.places = vec![Vec::new(); items.len()];
        for (id, node) in self.nodes.iter_mut().enumerate() {
            let returned = &self.returned;
            node.readers
                .items
                .sort_unstable_by_key(|item| returned[*item]);
            let invoked = &self.invoked;
            node.setters
                .items
                .sort_unstable_by_key(|item| invoked[*item]);
            for (reads, queue) in [(true, &node.readers), (false, &node.setters)] {
                for (place, item) in queue.items.iter().enumerate() {
                    self.places[*item].push((id, reads, place));
                }
            }
        }
    }

    /// Notes that an item is placed.
    pub fn take(&mut self, item: usize) {
        self.taken[item] = true;
    }

    /// Notes that an item is no longer placed.
    pub fn give_back(&mut self, item: usize) {
        self.taken[item] = false;
        for (node, reads, place) in &self.places[item] {
            let node = &mut self.nodes[*node];
            let queue = if *reads {
                &mut node.readers
            } else {
                &mut node.setters
            };
            queue.hint = queue.hint.min(*place);
        }
    }

    /// False if a value that is still to be read is lost when a key goes from one value to
    /// another. The item that does so is taken already.
    pub fn survives(&mut self, key: usize, from: ValueId, to: ValueId) -> bool {
        if from == to || self.blurred[key] {
            return true;
        }
        let Some(node) = self.ids.get(&(key, from)).copied() else {
            return true;
        };
        self.visits = 0;
        self.branch_survives(node, to, 0)
    }

    fn branch_survives(&mut self, node: NodeId, to: ValueId, depth: u32) -> bool {
        if self.nodes[node].value == to {
            return true;
        }
        self.visits += 1;
        let reader = first_free(&mut self.nodes[node].readers, &self.taken);
        if let Some(reader) = reader {
            let before = self.returned[reader];
            if !self.is_reachable(node, to, before, 0) {
                return false;
            }
        }
        for place in 0..self.nodes[node].longer.len() {
            if depth >= DEPTH_MAX || self.visits >= VISITS_MAX {
                break;
            }
            let longer = self.nodes[node].longer[place];
            if !self.branch_survives(longer, to, depth + 1) {
                return false;
            }
        }
        true
    }

    /// True if a node's value can be there before `before`, if now it is `now`.
    fn is_reachable(&mut self, node: NodeId, now: ValueId, before: u64, depth: u32) -> bool {
        if self.nodes[node].value == now || depth >= DEPTH_MAX {
            return true;
        }
        let setter = first_free(&mut self.nodes[node].setters, &self.taken);
        if setter.is_some_and(|setter| self.invoked[setter] < before) {
            return true;
        }
        (0..self.nodes[node].appends.len()).any(|place| {
            let (append, from) = self.nodes[node].appends[place];
            !self.taken[append]
                && self.invoked[append] < before
                && self.is_reachable(from, now, before, depth + 1)
        })
    }
}

fn first_free(queue: &mut Queue, taken: &[bool]) -> Option<usize> {
    while queue.items.get(queue.hint).is_some_and(|item| taken[*item]) {
        queue.hint += 1;
    }
    queue.items.get(queue.hint).copied()
}
