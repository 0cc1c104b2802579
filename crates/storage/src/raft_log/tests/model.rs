//! Random batches to the log and to the engine in memory: the answers must be equal.

use std::ops::ControlFlow;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::maker::{self, Maker};
use super::mem_folder::MemFolder;
use super::{FILE_BYTES, open_with};
use crate::engine::{Cf, Direction, Durability, Engine, EngineError, EngineKind, ReadView};
use crate::mem::{MemEngine, MemSnapshot};
use crate::raft_log::log::{Log, LogView};

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;
type Range<'a> = (&'a [u8], Option<&'a [u8]>);
type Visitor<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// The log or a view of it.
trait Answers {
    fn value(&self, key: &[u8]) -> Option<Vec<u8>>;
    fn visit(&self, range: Range<'_>, direction: Direction, visit: Visitor<'_>);
}

impl Answers for Log<MemFolder> {
    fn value(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.get(Cf::RaftLog, key)
            .unwrap()
            .map(|found| found.to_vec())
    }

    fn visit(&self, range: Range<'_>, direction: Direction, visit: Visitor<'_>) {
        self.scan(Cf::RaftLog, range, direction, visit).unwrap();
    }
}

impl Answers for LogView<MemFolder> {
    fn value(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.get(Cf::RaftLog, key)
            .unwrap()
            .map(|found| found.to_vec())
    }

    fn visit(&self, range: Range<'_>, direction: Direction, visit: Visitor<'_>) {
        self.scan(Cf::RaftLog, range, direction, visit).unwrap();
    }
}

/// What is visited, up to `limit` pairs.
fn pairs(limit: usize, scan: impl FnOnce(Visitor<'_>)) -> Pairs {
    let mut found = Vec::new();
    scan(&mut |key, value| {
        found.push((key.to_vec(), value.to_vec()));
        if found.len() == limit {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    found
}

fn compare_range(answers: &impl Answers, model: &impl ReadView, range: Range<'_>, limit: usize) {
    for direction in [Direction::Forward, Direction::Backward] {
        let found = pairs(limit, |visit| answers.visit(range, direction, visit));
        let expected = pairs(limit, |visit| {
            let (start, end) = range;
            model
                .scan(Cf::RaftLog, start, end, direction, visit)
                .unwrap();
        });
        assert_eq!(found, expected, "{direction:?} in {range:?} up to {limit}");
    }
}

fn compare(answers: &impl Answers, model: &impl ReadView, rng: &mut ChaCha8Rng) {
    compare_range(answers, model, (b"", None), usize::MAX);
    for _ in 0..10 {
        let (start, end) = (maker::key(rng), maker::key(rng));
        let found = answers.value(&start);
        let expected = model.get(Cf::RaftLog, &start).unwrap();
        assert_eq!(found.as_deref(), expected.as_deref(), "under {start:?}");
        let limit = [1, 3, usize::MAX][rng.random_range(0..3)];
        compare_range(answers, model, (&start, Some(&end)), limit);
        compare_range(answers, model, (&start, None), limit);
    }
}

struct Run {
    folder: MemFolder,
    file_bytes: u64,
    log: Log<MemFolder>,
    model: MemEngine,
    views: Vec<(LogView<MemFolder>, MemSnapshot)>,
    maker: Maker,
    rng: ChaCha8Rng,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let folder = MemFolder::default();
        let file_bytes = [8 << 10, FILE_BYTES, 300 << 10][rng.random_range(0..3)];
        Self {
            log: open_with(&folder, file_bytes),
            folder,
            file_bytes,
            model: MemEngine::new(EngineKind::Raft),
            views: Vec::new(),
            maker: Maker::new(rng.random_bool(0.5)),
            rng,
        }
    }

    fn step(&mut self) {
        match self.rng.random_range(0..40) {
            0 => self
                .views
                .push((self.log.view(), Engine::snapshot(&self.model))),
            1 if !self.views.is_empty() => {
                let (view, model) = self.views.remove(0);
                compare(&view, &model, &mut self.rng);
            }
            2 => {
                // The system has everything: another process finds it.
                self.log = open_with(&self.folder, self.file_bytes);
                // Who has read before would not see that files are used again.
                self.views.clear();
            }
            3..6 => compare(&self.log, &self.model, &mut self.rng),
            _ => {
                let batch = self.maker.batch(&mut self.rng);
                let durability = match self.rng.random_bool(0.3) {
                    true => Durability::Synced,
                    false => Durability::Unsynced,
                };
                self.log.write(&batch, durability).unwrap();
                self.model.write(&batch, durability).unwrap();
            }
        }
    }
}

#[test]
fn log_gives_the_answers_of_the_engine_in_memory() {
    let (mut reused, mut removed) = (0, 0);
    for seed in 0..60 {
        eprintln!("seed {seed}");
        let mut run = Run::new(seed);
        for _ in 0..600 {
            run.step();
        }
        for (view, model) in std::mem::take(&mut run.views) {
            compare(&view, &model, &mut run.rng);
        }
        compare(&run.log, &run.model, &mut run.rng);
        run.log = open_with(&run.folder, run.file_bytes);
        compare(&run.log, &run.model, &mut run.rng);
        let counts = run.folder.counts();
        let files = run.folder.numbers().len();
        // Each life writes a header.
        reused += usize::from(counts.lives > 2 * counts.created);
        removed += usize::from(counts.created > files);
    }
    assert!(reused > 20 && removed > 20, "{reused} {removed}");
}

#[test]
fn log_without_anything_in_it_gives_no_answers() {
    let folder = MemFolder::default();
    let log = open_with(&folder, FILE_BYTES);
    let model = MemEngine::new(EngineKind::Raft);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    compare(&log, &model, &mut rng);
    compare(&log.view(), &model, &mut rng);
    log.make_durable().unwrap();
    log.write(&Default::default(), Durability::Synced).unwrap();
    // Nothing is written before the first batch.
    assert!(folder.numbers().is_empty());
    assert_eq!(log.used_bytes(), 0);
}

#[test]
fn log_has_no_other_column_family_and_writes_nothing_of_a_batch_with_one() {
    let folder = MemFolder::default();
    let log = open_with(&folder, FILE_BYTES);
    let foreign = EngineError::ForeignColumnFamily {
        engine: EngineKind::Raft,
        cf: Cf::Lock,
    };
    assert_eq!(log.get(Cf::Lock, b"a"), Err(foreign.clone()));
    let mut batch = super::put_record("a", b"1");
    batch.put(Cf::Lock, "a", "1");
    assert_eq!(log.write(&batch, Durability::Synced), Err(foreign.clone()));
    let visit = &mut |_: &[u8], _: &[u8]| panic!("visited");
    let scanned = log.scan(Cf::Lock, (b"", None), Direction::Forward, visit);
    assert_eq!(scanned, Err(foreign));
    assert_eq!(super::all(&log), Default::default());
    super::write_synced(&log, &super::put_record("a", b"1"));
    assert_eq!(super::get(&log, b"a").unwrap().as_deref(), Some(&b"1"[..]));
}
