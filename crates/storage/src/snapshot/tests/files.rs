//! Making a snapshot, its description, its names, who holds it and how much there may be.

use super::*;

#[test]
fn snap_gen_meta() {
    let (_, manager, snapshot) = sender();
    let meta = snapshot.meta();
    assert_eq!(
        (meta.index, meta.term, meta.region_clock_ms),
        (INDEX, TERM, CLOCK_MS)
    );
    assert_eq!(meta.region, Some(region(REGION)));
    assert_eq!(meta.conf_state.as_ref().unwrap().voters, [71, 72]);
    let described: Vec<_> = meta.files.iter().map(|file| &file.name[..]).collect();
    assert_eq!(
        described,
        ["default", "lock", "write", "raw", "raw2", "session"]
    );
    let on_disk = manager.files().list().unwrap();
    for (file, content) in meta.files.iter().zip(Content::ALL) {
        let (name, length) = on_disk
            .iter()
            .find(|(name, _)| name.ends_with(&format!("_{}.mem", content.name())))
            .unwrap();
        assert_eq!(*length, file.length);
        let bytes = manager.files().read(name, 0, *length as usize).unwrap();
        assert_eq!(crc32fast::hash(&bytes), file.crc32);
    }
    check_meta(meta, MemFiles::FORM).unwrap();
    assert_eq!(from_raft(&to_raft(meta), MemFiles::FORM).unwrap(), *meta);
}

#[test]
fn snap_display_path() {
    let (_, _, snapshot) = sender();
    let id = snapshot.meta().id;
    assert_eq!(
        snapshot.display_path(),
        format!("memory:gen_7_6_17_{id:016x}_(default|lock|write|raw|raw2|session).mem")
    );
}

#[test]
fn snap_file() {
    let (kv, _, snapshot) = sender();
    let other = MemEngine::new_pair();
    // What the receiver had inside the range goes, what it has outside stays.
    put(&other.kv, Cf::Raw, "zd", "old");
    put(&other.kv, Cf::Raw, "zy", "mine");
    let received = transfer(&snapshot, &open(&MemFiles::new()));
    assert_eq!(received.total_bytes(), snapshot.total_bytes());
    install(&other, received);
    assert_eq!(
        carried(&other.kv, &region(REGION)),
        carried(&kv, &region(REGION))
    );
    assert_eq!(other.kv.get(Cf::Raw, b"zy").unwrap().unwrap(), "mine");
    assert_eq!(other.kv.get(Cf::Raw, b"za").unwrap(), None);
    assert_eq!(state_of(&other.kv), PeerState::Normal);
}

#[test]
fn session_table_in_snapshot() {
    let (_, _, snapshot) = sender();
    let other = MemEngine::new_pair();
    let mut batch = WriteBatch::new();
    batch.put(Cf::Raft, session_key(REGION, 9), "forgotten");
    batch.put(Cf::Raft, session_key(REGION + 1, 5), "of another region");
    other.kv.write(&batch, Durability::Unsynced).unwrap();
    install(&other, transfer(&snapshot, &open(&MemFiles::new())));
    let (start, end) = keys::session_range(REGION);
    let mut sessions = dump(&other.kv, Cf::Raft);
    sessions.retain(|(key, _)| start[..] <= key[..] && key[..] < end[..]);
    let values: Vec<_> = sessions.into_iter().map(|(_, value)| value).collect();
    assert_eq!(values, ["s1", "s2"]);
    let kept = other.kv.get(Cf::Raft, &session_key(REGION + 1, 5)).unwrap();
    assert_eq!(kept.unwrap(), "of another region");
}

#[test]
fn system_region_carries_its_records_and_no_data() {
    let engines = MemEngine::new_pair();
    fill(&engines.kv);
    let system = with_range(SYSTEM_REGION_ID, "", "");
    write_states(&engines.kv, &system, INDEX);
    let manager = open(&MemFiles::new());
    let snapshot = generate(&manager, &engines.kv, SYSTEM_REGION_ID);
    let described: Vec<_> = snapshot.meta().files.iter().map(|f| &f.name[..]).collect();
    assert_eq!(described, ["system"]);
    let other = MemEngine::new_pair();
    fill(&other.kv);
    let mut batch = WriteBatch::new();
    batch.put(Cf::Raft, keys::system(b"stale"), "gone after the install");
    other.kv.write(&batch, Durability::Unsynced).unwrap();
    let before: Vec<_> = DATA.map(|cf| dump(&other.kv, cf)).into();
    install(&other, transfer(&snapshot, &open(&MemFiles::new())));
    assert_eq!(carried(&other.kv, &system), carried(&engines.kv, &system));
    assert_eq!(DATA.map(|cf| dump(&other.kv, cf)).to_vec(), before);
}

#[test]
fn empty_snapshot_clears_the_range() {
    let engines = MemEngine::new_pair();
    write_states(&engines.kv, &region(REGION), INDEX);
    let manager = open(&MemFiles::new());
    let snapshot = generate(&manager, &engines.kv, REGION);
    assert!(snapshot.meta().files.is_empty());
    let other = MemEngine::new_pair();
    fill(&other.kv);
    let files = MemFiles::new();
    install(&other, transfer(&snapshot, &open(&files)));
    for (content, keys) in carried(&other.kv, &region(REGION)) {
        assert!(keys.is_empty(), "{content:?} holds {keys:?}");
    }
    assert_eq!(dump(&other.kv, Cf::Raw).len(), 3);
    assert_eq!(open(&files).list().len(), 1);
}

#[test]
fn crash_rule_snapshot_identity() {
    // Data, position and range are those of one moment, whatever is applied meanwhile.
    let engines = MemEngine::new_pair();
    let kv = &engines.kv;
    fill(kv);
    let before = carried(kv, &region(REGION));
    let manager = open(&MemFiles::new());
    let view = kv.snapshot();
    let mut generator = Generator::<MemEngine>::begin(&manager, view, REGION).unwrap();
    generator.step(1).unwrap();
    put(kv, Cf::Raw, "zc1", "later");
    write_states(kv, &with_range(REGION, "b", "c"), INDEX + 1);
    let first = loop {
        if let Generated::Done(snapshot) = generator.step(1).unwrap() {
            break snapshot;
        }
    };
    assert_eq!(
        (first.meta().index, first.region()),
        (INDEX, &region(REGION))
    );
    let other = MemEngine::new_pair();
    install(&other, transfer(&first, &open(&MemFiles::new())));
    assert_eq!(carried(&other.kv, &region(REGION)), before);
    // The id tells apart whatever differs: position, epoch, each length and checksum.
    let second = generate(&manager, kv, REGION);
    assert_ne!(first.meta().id, second.meta().id);
    let mut ids = vec![first.meta().id];
    let changes: [fn(&mut SnapshotMeta); 11] = [
        |meta| meta.region.as_mut().unwrap().start_key = Bytes::from_static(b"a"),
        |meta| meta.region.as_mut().unwrap().peers[1].store_id = 9,
        |meta| meta.region_clock_ms += 1,
        |meta| meta.conf_state.as_mut().unwrap().voters.reverse(),
        |meta| meta.index += 1,
        |meta| meta.term += 1,
        |meta| meta.region.as_mut().unwrap().id += 1,
        |meta| {
            meta.region
                .as_mut()
                .unwrap()
                .region_epoch
                .as_mut()
                .unwrap()
                .version += 1
        },
        |meta| {
            meta.region
                .as_mut()
                .unwrap()
                .region_epoch
                .as_mut()
                .unwrap()
                .conf_ver += 1
        },
        |meta| meta.files[2].length += 1,
        |meta| meta.files[3].crc32 ^= 1,
    ];
    for change in changes {
        let mut changed = first.meta().clone();
        change(&mut changed);
        ids.push(snapshot_id(&changed));
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 12);
}

#[test]
fn snapshot_of_absent_or_installing_region_is_refused() {
    let engines = MemEngine::new_pair();
    let manager = open(&MemFiles::new());
    let begin =
        |region_id| Generator::<MemEngine>::begin(&manager, engines.kv.snapshot(), region_id).err();
    assert_eq!(
        begin(REGION),
        Some(SnapshotError::NoSuchRegion { region_id: REGION })
    );
    write_states(&engines.kv, &region(REGION), 0);
    let (region_id, state) = (REGION, PeerState::Normal);
    let nothing = SnapshotError::NotServing {
        region_id,
        state,
        applied: 0,
    };
    assert_eq!(begin(REGION), Some(nothing));
    let (_, _, snapshot) = sender();
    let begun = begin_install(None, [], snapshot.meta(), &hard_state(TERM, 0, INDEX)).unwrap();
    engines.kv.write(&begun.kv, Durability::Synced).unwrap();
    assert!(matches!(
        begin(REGION),
        Some(SnapshotError::NotServing {
            state: PeerState::Applying,
            ..
        })
    ));
}

#[test]
fn files_in_use_are_kept_and_stale_ones_collected() {
    let (kv, manager, snapshot) = sender();
    let again = generate(&manager, &kv, REGION);
    assert_eq!(again.key(), snapshot.key(), "made twice, kept once");
    assert_eq!(manager.list()[0].uses, 2);
    assert_eq!(manager.used_bytes(), snapshot.total_bytes());
    drop(again);
    assert_eq!(manager.retain(|_| false).unwrap(), []);
    snapshot.verify_file(0).unwrap();
    let clone = snapshot.clone();
    drop(snapshot);
    assert_eq!(manager.retain(|_| false).unwrap(), []);
    let key = *clone.key();
    drop(clone);
    assert_eq!(manager.retain(|info| info.key == key).unwrap(), []);
    assert_eq!(manager.retain(|_| false).unwrap(), [key]);
    assert!(names(manager.files()).is_empty());
    assert_eq!(manager.used_bytes(), 0);
}

#[test]
fn start_removes_leftovers_and_keeps_foreign_files() {
    let (kv, manager, _snapshot) = sender();
    let mut generator = Generator::<MemEngine>::begin(&manager, kv.snapshot(), REGION).unwrap();
    generator.step(1).unwrap();
    generator.step(1).unwrap();
    let files = manager.files().kill();
    let foreign = ["NOTES", "gen_7_6_17_zz_default.mem", "rev_7_6_17.meta"];
    let ours = [
        "rev_9_6_17_0000000000000001.meta.new",
        "rev_9_6_17_0000000000000001_raw.mem.ingest",
        "rev_9_6_17_0000000000000001_raw.part",
        "rev_9_6_17_0000000000000001.progress",
        "tmp_4_raw.tmp",
    ];
    for name in foreign.iter().chain(&ours) {
        files.create(name).unwrap();
    }
    assert!(names(&files).len() > foreign.len() + ours.len());
    let reopened = open(&files);
    assert_eq!(reopened.list(), []);
    let mut expected: Vec<_> = foreign.map(str::to_owned).into();
    expected.sort();
    assert_eq!(names(&files), expected);
}

#[test]
fn generator_that_is_dropped_leaves_nothing() {
    let (kv, manager, snapshot) = sender();
    write_states(&kv, &region(REGION), INDEX + 1);
    let before = names(manager.files());
    let mut generator = Generator::<MemEngine>::begin(&manager, kv.snapshot(), REGION).unwrap();
    for _ in 0..4 {
        generator.step(1).unwrap();
    }
    assert_ne!(names(manager.files()), before);
    drop(generator);
    assert_eq!(names(manager.files()), before);
    assert_eq!(manager.used_bytes(), snapshot.total_bytes());
}

#[test]
fn limit_on_bytes_holds_for_making_and_receiving() {
    let (kv, _, snapshot) = sender();
    let limit = snapshot.total_bytes() - 1;
    let small = SnapshotManager::open(MemFiles::new(), limit).unwrap();
    let refused = small.receive(snapshot.meta()).err().unwrap();
    assert_eq!(
        refused,
        SnapshotError::TooMuch {
            used: 0,
            wanted: limit + 1,
            bytes_max: limit
        }
    );
    let mut generator = Generator::<MemEngine>::begin(&small, kv.snapshot(), REGION).unwrap();
    let refused = loop {
        match generator.step(1 << 20) {
            Ok(Generated::Working) => {}
            Ok(Generated::Done(_)) => panic!("the limit was passed"),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(refused, SnapshotError::TooMuch { .. }),
        "{refused}"
    );
    drop(generator);
    assert_eq!((small.used_bytes(), names(small.files()).len()), (0, 0));
    let exact = SnapshotManager::open(MemFiles::new(), limit + 1).unwrap();
    transfer(&snapshot, &exact);
}

#[test]
fn names_are_read_back_only_in_their_one_form() {
    use super::super::name::Role;
    let key = SnapshotKey {
        origin: Origin::Received,
        region_id: 7,
        term: 6,
        index: 17,
        id: 0xab,
    };
    let roles = [
        Role::Table(Content::Raw2),
        Role::Part(Content::System),
        Role::Meta,
        Role::Offer,
        Role::Progress,
    ];
    for role in roles {
        let name = key.name(role, ".sst");
        assert_eq!(SnapshotKey::parse(&name, ".sst"), Some((key, role)));
    }
    for name in [
        "",
        "rev_7_6_17_00000000000000ab_raw.mem",
        "rev_7_6_17_ab_raw.sst",
        "rev_07_6_17_00000000000000ab_raw.sst",
        "rev_7_6_17_00000000000000ab_raw_raw.sst",
        "rev_7_6_00000000000000ab.meta",
        "gone_7_6_17_00000000000000ab.meta",
        "rev_7_6_17_00000000000000ab.meta.new",
    ] {
        assert_eq!(SnapshotKey::parse(name, ".sst"), None, "{name}");
    }
}

#[test]
#[should_panic(expected = "stepped after its end")]
fn generator_that_failed_never_names_a_snapshot_without_a_part() {
    let (kv, _, _) = sender();
    let files = MemFiles::new();
    let manager = open(&files);
    let mut generator = Generator::<MemEngine>::begin(&manager, kv.snapshot(), REGION).unwrap();
    files.fail_next(FileFault::DiskFull);
    let error = loop {
        if let Err(error) = generator.step(1 << 20) {
            break error;
        }
    };
    assert!(matches!(error, SnapshotError::DiskFull { .. }), "{error}");
    let _ = generator.step(1);
}

#[test]
fn memory_files_lose_what_was_not_synced() {
    let files = MemFiles::new();
    files.create("kept").unwrap();
    files.append("kept", 0, b"synced").unwrap();
    files.sync("kept").unwrap();
    files.sync_folder().unwrap();
    files.append("kept", 6, b" and not").unwrap();
    files.create("unnamed").unwrap();
    files.append("unnamed", 0, b"content").unwrap();
    files.sync("unnamed").unwrap();
    files.rename("kept", "renamed").unwrap();
    let found = files.crash_hard();
    assert_eq!(found.list().unwrap(), [("kept".to_owned(), 6)]);
    assert_eq!(found.read("kept", 0, 6).unwrap(), "synced");
    assert_eq!(files.list(), Err(SnapshotError::Crashed));
    // A killed process loses nothing.
    found.append("kept", 6, b"!").unwrap();
    assert_eq!(found.kill().list().unwrap(), [("kept".to_owned(), 7)]);
}

/// A folder whose removals a test sees.
#[derive(Clone)]
struct Watched {
    files: MemFiles,
    on_remove: std::sync::Arc<dyn Fn(&str) + Send + Sync>,
}

impl FileStore for Watched {
    const FORM: strata_proto::stratapb::SnapshotForm = MemFiles::FORM;
    const ENDING: &'static str = MemFiles::ENDING;

    fn remove(&self, name: &str) -> Result<(), SnapshotError> {
        (self.on_remove)(name);
        self.files.remove(name)
    }
    fn create(&self, name: &str) -> Result<(), SnapshotError> {
        self.files.create(name)
    }
    fn append(&self, name: &str, offset: u64, data: &[u8]) -> Result<(), SnapshotError> {
        self.files.append(name, offset, data)
    }
    fn truncate(&self, name: &str, length: u64) -> Result<(), SnapshotError> {
        self.files.truncate(name, length)
    }
    fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, SnapshotError> {
        self.files.read(name, offset, length)
    }
    fn length(&self, name: &str) -> Result<Option<u64>, SnapshotError> {
        self.files.length(name)
    }
    fn sync(&self, name: &str) -> Result<(), SnapshotError> {
        self.files.sync(name)
    }
    fn sync_folder(&self) -> Result<(), SnapshotError> {
        self.files.sync_folder()
    }
    fn rename(&self, from: &str, to: &str) -> Result<(), SnapshotError> {
        self.files.rename(from, to)
    }
    fn list(&self) -> Result<Vec<(String, u64)>, SnapshotError> {
        self.files.list()
    }
    fn display(&self, name: &str) -> String {
        self.files.display(name)
    }
}

/// While a snapshot's files are removed, the same one may be offered again: it must wait,
/// or the removal would take its new files along.
#[test]
fn a_removal_never_takes_the_files_of_the_same_snapshot_offered_again() {
    type Shared = std::sync::Arc<parking_lot::Mutex<Option<SnapshotManager<Watched>>>>;
    let (_, _, snapshot) = sender();
    let meta = snapshot.meta().clone();
    let manager = Shared::default();
    let answers = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
    let watched = Watched {
        files: MemFiles::new(),
        on_remove: std::sync::Arc::new({
            let (manager, answers, meta) = (manager.clone(), answers.clone(), meta.clone());
            move |name: &str| {
                let shared = manager.lock().clone();
                // Only the removal of the complete snapshot is watched.
                if let (true, Some(shared)) = (name.ends_with(".mem"), shared) {
                    answers.lock().push(shared.receive(&meta).err());
                }
            }
        }),
    };
    let files = watched.files.clone();
    let opened = SnapshotManager::open(watched, BYTES_MAX).unwrap();
    let Offered::Receive(mut receiver) = opened.receive(&meta).unwrap() else {
        panic!("it is not here yet");
    };
    for file in 0..meta.files.len() as u32 {
        receiver
            .accept(&snapshot.read_chunk(file, 0).unwrap())
            .unwrap();
    }
    drop(receiver.finish().unwrap());
    *manager.lock() = Some(opened.clone());
    assert_eq!(opened.retain(|_| false).unwrap().len(), 1);
    *manager.lock() = None;
    let busy = Some(SnapshotError::Busy { region_id: REGION });
    assert_eq!(*answers.lock(), vec![busy; meta.files.len()]);
    assert!(names(&files).is_empty(), "{:?}", names(&files));
    assert!(matches!(opened.receive(&meta), Ok(Offered::Receive(_))));
}

#[test]
fn a_snapshot_that_could_not_be_named_leaves_nothing() {
    let engines = MemEngine::new_pair();
    fill(&engines.kv);
    let begin = |files: &MemFiles| {
        let manager = open(files);
        let view = engines.kv.snapshot();
        let generator = Generator::<MemEngine>::begin(&manager, view, REGION).unwrap();
        (manager, generator)
    };
    let (_manager, mut whole) = begin(&MemFiles::new());
    let mut steps = 0;
    while let Generated::Working = whole.step(32).unwrap() {
        steps += 1;
    }
    let files = MemFiles::new();
    let (manager, mut generator) = begin(&files);
    for _ in 0..steps {
        generator.step(32).unwrap();
    }
    // The first table gets its name, the second cannot.
    files.remove("tmp_0_lock.tmp").unwrap();
    let error = generator.step(32).unwrap_err();
    assert!(matches!(error, SnapshotError::File { .. }), "{error}");
    drop(generator);
    assert!(names(&files).is_empty(), "{:?}", names(&files));
    assert_eq!(manager.used_bytes(), 0);
}

#[test]
fn a_condemned_snapshot_is_given_to_nobody_until_it_is_made_anew() {
    let (kv, manager, snapshot) = sender();
    let (key, meta) = (*snapshot.key(), snapshot.meta().clone());
    assert!(manager.find_generated(&meta).is_some());
    manager.condemn(&key);
    assert!(manager.find_generated(&meta).is_none());
    assert!(manager.get(&key).is_none());
    // The files under the old reference are replaced; both see the new ones.
    let again = generate(&manager, &kv, REGION);
    assert_eq!(again.key(), &key);
    again.verify_file(0).unwrap();
    snapshot.verify_file(0).unwrap();
    assert!(manager.find_generated(&meta).is_some());
}
