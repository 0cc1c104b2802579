//! `strata debug` on engines whose records were damaged: a look, or one line.

use bytes::Bytes;
use clap::Parser;
use prost::Message;
use std::ops::ControlFlow;
use strata_fuzz::{Mutator, run};
use strata_proto::eraftpb::{Entry, HardState};
use strata_proto::metapb::{Peer, Region, RegionEpoch};
use strata_proto::raft_serverpb::{RaftLocalState, RegionLocalState};
use strata_proto::stratapb::{
    AppendCommand, DataCommand, EntryCommand, RaftApplyState, RawSpace, data_command::Body,
};
use strata_storage::bootstrap::ClusterSpec;
use strata_storage::{
    Cf, DataFolder, Direction, Durability, Engine, EngineOptions, Engines, MemEngine, ReadView,
    WriteBatch, keys, memcomparable, raw_value, write_apply_state, write_raft_state,
    write_region_state,
};

use super::look;
use crate::args::{Cli, Command};
use crate::exit::Failure;

const REGIONS: [u64; 3] = [1, 7, u64::MAX];

fn region(id: u64) -> Region {
    Region {
        id,
        start_key: memcomparable::encode(b"b").into(),
        end_key: memcomparable::encode(b"m").into(),
        region_epoch: Some(RegionEpoch {
            conf_ver: 2,
            version: 3,
        }),
        peers: vec![Peer {
            id: 71,
            store_id: 1,
            ..Peer::default()
        }],
        ..Region::default()
    }
}

fn entry(index: u64) -> Entry {
    let append = AppendCommand {
        key: Bytes::from_static(b"c"),
        value: Bytes::from_static(b"v"),
        ..AppendCommand::default()
    };
    let command = EntryCommand {
        leader_clock_ms: 1_000,
        commands: vec![DataCommand {
            body: Some(Body::Append(append)),
            ..DataCommand::default()
        }],
        ..EntryCommand::default()
    };
    Entry {
        index,
        term: 6,
        data: command.encode_to_vec().into(),
        ..Entry::default()
    }
}

/// What a healthy store of three regions has on its disk, as batches of the kv and of the
/// raft engine.
fn healthy() -> [WriteBatch; 2] {
    let (mut kv, mut raft) = (WriteBatch::new(), WriteBatch::new());
    for id in REGIONS {
        let state = RegionLocalState {
            region: Some(region(id)),
            ..RegionLocalState::default()
        };
        write_region_state(&mut kv, &state);
        let apply = RaftApplyState {
            applied_index: 8,
            applied_term: 6,
            region_clock_ms: 1_000,
            ..RaftApplyState::default()
        };
        write_apply_state(&mut kv, id, &apply);
        let state = RaftLocalState {
            hard_state: Some(HardState {
                term: 6,
                vote: 71,
                commit: 8,
            }),
            last_index: 9,
        };
        write_raft_state(&mut raft, id, &state);
        for index in 6..=9 {
            raft.put(
                Cf::RaftLog,
                keys::raft_log(id, index),
                entry(index).encode_to_vec(),
            );
        }
        kv.put(
            Cf::Raft,
            keys::session(id, &[1; keys::SESSION_ID_BYTES]),
            "session",
        );
    }
    let key = keys::raw_key(RawSpace::RawV1, b"c");
    kv.put(Cf::Raw, key, raw_value::encode(b"v", Some(2_000)));
    [kv, raft]
}

/// Every record of an engine.
fn records(engine: &impl ReadView, families: &[Cf]) -> Vec<(Cf, Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    for cf in families {
        let mut visit = |key: &[u8], value: &[u8]| {
            found.push((*cf, key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        };
        let scanned = engine.scan(*cf, b"", Some(&[0xff]), Direction::Forward, &mut visit);
        scanned.unwrap();
    }
    found
}

/// A damaged form of a stored record: sometimes its checksum is made right again, so that
/// what is behind it is reached.
fn damaged(mutator: &mut Mutator, key: &[u8], stored: &[u8]) -> Vec<u8> {
    let bytes = mutator.message(stored);
    if mutator.one_in(3) {
        return bytes;
    }
    // The checksum of a state record stands behind it.
    match stored.split_last_chunk::<4>() {
        Some((body, _)) => with_checksum(key, &mutator.message(body)),
        None => bytes,
    }
}

fn with_checksum(key: &[u8], body: &[u8]) -> Vec<u8> {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(body);
    [body, &hasher.finalize().to_be_bytes()].concat()
}

/// Puts one to three damaged records, sometimes under a damaged key.
fn damage(mutator: &mut Mutator, engines: &Engines<impl Engine>) {
    let kv = records(&engines.kv, &[Cf::Raft, Cf::Raw]);
    let raft = records(&engines.raft, &[Cf::RaftLog]);
    for _ in 0..1 + mutator.number() % 3 {
        let (all, engine) = match mutator.one_in(2) {
            true => (&kv, &engines.kv as &dyn WriteOne),
            false => (&raft, &engines.raft as &dyn WriteOne),
        };
        let (cf, key, value) = mutator.pick(all).clone();
        let value = damaged(mutator, &key, &value);
        let mut batch = WriteBatch::new();
        match mutator.number() % 8 {
            0 => batch.delete(cf, key),
            1 => batch.put(cf, mutator.bytes(&key), value),
            _ => batch.put(cf, key, value),
        }
        engine.write_one(&batch);
    }
}

/// Either engine.
trait WriteOne {
    fn write_one(&self, batch: &WriteBatch);
}

impl<E: Engine> WriteOne for E {
    fn write_one(&self, batch: &WriteBatch) {
        self.write(batch, Durability::Synced).unwrap();
    }
}

const LOOKS: [&str; 13] = [
    "raft-log --region 7",
    "raft-log --region 18446744073709551615 --hex --format json",
    "raft-log --region 1 --from 7 --limit 1",
    "raft-state",
    "raft-state --region 7 --format json",
    "apply-state",
    "region-state",
    "region-state --region 7 --hex",
    "keys --values",
    "keys --region 7 --start d --end a",
    "keys --cf raft --hex --values --format json",
    "checksum",
    "checksum --region 7",
];

fn parse(words: &str) -> (crate::args::Global, crate::args::DebugArgs) {
    let words = format!("strata debug {words}");
    let cli = Cli::try_parse_from(words.split(' ')).unwrap();
    match cli.command {
        Command::Debug(args) => (cli.global, args),
        _ => panic!("{words} is another command"),
    }
}

/// "No" or an error, in one line; true for a look that succeeded.
fn check(outcome: crate::exit::Outcome, words: &str) -> bool {
    match outcome {
        Ok(()) => true,
        Err(Failure::No(line) | Failure::Error(line)) => {
            assert!(!line.is_empty(), "{words}");
            assert!(!line.chars().any(char::is_control), "{words}: {line:?}");
            false
        }
        Err(other) => panic!("{words}: {other:?}"),
    }
}

#[test]
fn fuzz_looks_at_damaged_engines() {
    let (mut shown, mut refused) = (0, 0);
    run("looks at damaged engines", 600, |mutator| {
        let engines = MemEngine::new_pair();
        let [kv, raft] = healthy();
        engines.kv.write(&kv, Durability::Synced).unwrap();
        engines.raft.write(&raft, Durability::Synced).unwrap();
        damage(mutator, &engines);
        for words in LOOKS {
            let (global, args) = parse(words);
            match check(look(&global, &engines, args.command), words) {
                true => shown += 1,
                false => refused += 1,
            }
        }
    });
    if strata_fuzz::is_whole_run() {
        assert!(
            shown > 4_000 && refused > 300,
            "{shown} shown, {refused} refused"
        );
    }
}

/// The same over a real folder, from its opening on.
#[test]
fn fuzz_looks_at_damaged_folders() {
    run("looks at damaged folders", 8, |mutator| {
        let folder = tempfile::tempdir().unwrap();
        let options = EngineOptions::default();
        let mut open =
            DataFolder::open(folder.path(), &options, &strata_storage::Claim::default()).unwrap();
        let spec = ClusterSpec::new(&[1], "strata", 6, 1).unwrap();
        open.bootstrap(&spec.ident(1, 42), &spec.layout()).unwrap();
        let engines = open.engines().clone();
        let [kv, raft] = healthy();
        engines.kv.write(&kv, Durability::Synced).unwrap();
        engines.raft.write(&raft, Durability::Synced).unwrap();
        damage(mutator, &engines);
        drop((open, engines));
        for words in LOOKS {
            let (global, mut args) = parse(words);
            args.data_dir = Some(folder.path().to_owned());
            check(super::run(&global, args), words);
        }
    });
}

/// Records that are whole and say what cannot be.
#[test]
fn debug_names_a_record_of_another_region_and_an_entry_of_another_index() {
    let engines = MemEngine::new_pair();
    let [kv, raft] = healthy();
    engines.kv.write(&kv, Durability::Synced).unwrap();
    engines.raft.write(&raft, Durability::Synced).unwrap();
    let fails = |words: &str, part: &str| {
        let (global, args) = parse(words);
        match look(&global, &engines, args.command) {
            Err(Failure::Error(line)) => assert!(line.contains(part), "{words}: {line}"),
            other => panic!("{words}: {other:?}"),
        }
    };
    let put = |state: RegionLocalState| {
        let key = keys::region_state(7);
        let mut batch = WriteBatch::new();
        let record = with_checksum(&key, &state.encode_to_vec());
        batch.put(Cf::Raft, key, record);
        engines.kv.write(&batch, Durability::Synced).unwrap();
    };
    put(RegionLocalState {
        region: Some(region(8)),
        ..RegionLocalState::default()
    });
    for words in [
        "region-state --region 7",
        "checksum --region 7",
        "keys --region 7",
    ] {
        fails(words, "names region 8");
    }
    put(RegionLocalState::default());
    fails("region-state", "names no region");
    fails("checksum", "names no region");
}
