//! Any steps against a plain model of the log.

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// Appends at `last + 1 - back`, `count` entries, in a term raised by `raise`.
    Append { back: u64, count: u64, raise: u64 },
    /// The writer syncs its oldest batch.
    Sync,
    /// Applies up to `permille` of what is persisted, and truncates half of that.
    Apply { truncate: bool },
    /// The node is killed, batches that were not written are lost.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..4u64, 1..5u64, 0..2u64)
            .prop_map(|(back, count, raise)| Step::Append { back, count, raise }),
        3 => Just(Step::Sync),
        1 => any::<bool>().prop_map(|truncate| Step::Apply { truncate }),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..60)
}

/// Index and term of each entry of a log.
type Ids = Vec<(u64, u64)>;

/// The model: the whole log as a list, and what of it is written.
struct Model {
    log: Ids,
    written: Ids,
    writing: VecDeque<(u64, WriteBatch, Ids)>,
    term: u64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Random appends, syncs, applies and restarts against a plain list.
    #[test]
    fn peer_storage_entries_match_a_plain_list(steps in steps()) {
        let (mut engines, _) = three_four_five();
        let options = PeerStorageOptions { entry_cache_bytes_max: 60 };
        let open = |engines: &Engines<MemEngine>| {
            PeerStorage::load(engines, REGION, PEER, &options).unwrap().unwrap()
        };
        let mut storage = open(&engines);
        let start = vec![(4, 4), (5, 5)];
        let mut model = Model {
            log: start.clone(), written: start, writing: VecDeque::new(), term: 5,
        };
        for (number, step) in (1u64..).zip(steps) {
            match step {
                Step::Append { back, count, raise } => {
                    model.term += raise;
                    let last = storage.last().index;
                    let first = (last + 1 - back).max(storage.applied_index() + 1);
                    model.log.retain(|(index, _)| *index < first);
                    let new: Vec<_> = (first..first + count).map(|i| (i, model.term)).collect();
                    model.log.extend(&new);
                    let mut batch = WriteBatch::new();
                    let hard = hard_state(model.term, 0, storage.hard_state().commit);
                    storage.append(number, &entries(&new), Some(&hard), &mut batch);
                    model.writing.push_back((number, batch, model.log.clone()));
                }
                Step::Sync => {
                    if let Some((number, batch, log)) = model.writing.pop_front() {
                        engines.raft.write(&batch, Durability::Synced).unwrap();
                        storage.on_persisted(number);
                        model.written = log;
                    }
                }
                Step::Apply { truncate } => {
                    let applied = storage.persisted_index();
                    let truncated = if truncate { applied } else { storage.truncated().index };
                    let state = apply_state(
                        (truncated, storage.term(truncated).unwrap()),
                        (applied, storage.term(applied).unwrap()),
                    );
                    let mut kv = WriteBatch::new();
                    write_apply_state(&mut kv, REGION, &state);
                    engines.kv.write(&kv, Durability::Unsynced).unwrap();
                    storage.set_apply_state(state);
                }
                Step::Restart => {
                    engines = Engines::new(engines.kv.kill(), engines.raft.kill());
                    storage = open(&engines);
                    model.writing.clear();
                    model.log = model.written.clone();
                    model.term = storage.hard_state().term;
                }
            }
            let (first, last) = (storage.truncated().index + 1, storage.last().index);
            let expected: Vec<_> =
                model.log.iter().copied().filter(|(index, _)| *index >= first).collect();
            let found = storage.entries(first, last + 1, u64::MAX).unwrap();
            prop_assert_eq!(ids(&found), expected.clone());
            for (index, term) in expected {
                prop_assert_eq!(storage.term(index), Ok(term));
            }
        }
    }
}
