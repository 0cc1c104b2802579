//! What `strata up` keeps in its folder: how many nodes there are, and their token.
//!
//! `cluster.json` is written before the first node starts and never changed. The token is
//! random, so that two folders never found the same cluster.

use crate::args::{NODES_MAX, REGIONS_RANGE, REPLICAS, UpArgs};
use crate::exit::Failure;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Nodes of a new folder.
const NODES: u64 = 3;
/// Regions of a new folder.
const REGIONS: u64 = 6;
const FILE: &str = "cluster.json";
/// Longest record that is read, in bytes; one is some 100.
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// The record in the folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    token: String,
    nodes: u64,
    replicas: u64,
    regions: u64,
}

/// An opened folder.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    /// Number of nodes.
    pub nodes: u64,
    /// Replicas of each region.
    pub replicas: u64,
    /// Number of regions at the start.
    pub regions: u64,
    /// The cluster's token.
    pub token: String,
    /// The record of a new folder, which is not written yet.
    new: Option<Record>,
}

impl Folder {
    /// Opens the folder; one that is new is made by [`Folder::keep`].
    ///
    /// # Errors
    /// A wrong command line when more replicas than nodes are asked for; an error when the
    /// folder has another number of nodes than was asked for, or cannot be used.
    pub fn open(args: &UpArgs) -> Result<Self, Failure> {
        let file = args.data_dir.join(FILE);
        let mut new = None;
        let record = match read(&file) {
            Ok(text) => parse(&text).map_err(|reason| {
                Failure::error(format!(
                    "{} is damaged ({reason}): restore it, or choose another --data-dir",
                    file.display()
                ))
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                check_no_nodes(&args.data_dir)?;
                let record = new_record(args)?;
                new = Some(record.clone());
                record
            }
            Err(error) => {
                return Err(Failure::error(format!(
                    "{} cannot be read ({error}): restore it, or choose another --data-dir",
                    file.display()
                )));
            }
        };
        if let Some(nodes) = args.nodes
            && nodes != record.nodes
        {
            return Err(Failure::error(format!(
                "{} holds a cluster of {} nodes, not {nodes}: leave out --nodes, or choose another --data-dir",
                args.data_dir.display(),
                record.nodes
            )));
        }
        Ok(Self {
            root: args.data_dir.clone(),
            nodes: record.nodes,
            replicas: record.replicas,
            regions: record.regions,
            token: record.token,
            new,
        })
    }

    /// Makes a new folder, before the first node starts in it. What is refused before
    /// that leaves nothing behind, not even the number of nodes.
    ///
    /// # Errors
    /// When the folder cannot be made or written.
    pub fn keep(&self) -> Result<(), Failure> {
        let Some(record) = &self.new else {
            return Ok(());
        };
        write(&self.root, record).map_err(|error| {
            Failure::error(format!(
                "{} cannot be used ({error}): choose another --data-dir",
                self.root.display()
            ))
        })
    }

    /// The folder of a node.
    pub fn node(&self, id: u64) -> PathBuf {
        self.root.join(format!("node-{id}"))
    }

    /// Where a node's output goes.
    pub fn log(&self, id: u64) -> PathBuf {
        self.root.join(format!("node-{id}.log"))
    }
}

/// The bytes of the record, if there is a file and not a folder or a pipe.
fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    if !std::fs::metadata(file)?.is_file() {
        return Err(std::io::Error::other("it is no file"));
    }
    let mut text = Vec::new();
    File::open(file)?
        .take(RECORD_BYTES_MAX)
        .read_to_end(&mut text)?;
    Ok(text)
}

/// A record that this program could have written.
fn parse(text: &[u8]) -> Result<Record, String> {
    let record: Record = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let Record {
        nodes,
        replicas,
        regions,
        ..
    } = record;
    if !(1..=NODES_MAX).contains(&nodes) {
        return Err(format!("it names {nodes} nodes"));
    }
    if !REPLICAS.contains(&replicas) || replicas > nodes {
        return Err(format!("it names {replicas} replicas of {nodes} nodes"));
    }
    if !REGIONS_RANGE.contains(&regions) {
        return Err(format!("it names {regions} regions"));
    }
    let is_word = |token: &str| token.bytes().all(|byte| byte.is_ascii_graphic());
    if record.token.is_empty() || !is_word(&record.token) {
        return Err("its token is no word".into());
    }
    Ok(record)
}

/// Refuses a folder with nodes and without their record: a new one, with another token, would
/// not be theirs.
fn check_no_nodes(folder: &Path) -> Result<(), Failure> {
    let first = folder.join("node-1");
    if !first.join("FORMAT").exists() {
        return Ok(());
    }
    Err(Failure::error(format!(
        "{} holds nodes, but {FILE} is missing: restore it, or choose another --data-dir",
        folder.display()
    )))
}

fn new_record(args: &UpArgs) -> Result<Record, Failure> {
    let nodes = args.nodes.unwrap_or(NODES);
    let replicas = args.replicas.unwrap_or(if nodes >= 3 { 3 } else { 1 });
    if replicas > nodes {
        return Err(Failure::CommandLine(format!(
            "--replicas {replicas} needs at least {replicas} nodes: raise --nodes or lower --replicas"
        )));
    }
    Ok(Record {
        token: random_token()?,
        nodes,
        replicas,
        regions: args.regions.unwrap_or(REGIONS),
    })
}

fn random_token() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|error| Failure::error(format!("no random numbers from the system: {error}")))?;
    Ok(crate::text::hex(&bytes))
}

/// Written aside, synced and renamed, so that a crash leaves the whole record or none.
fn write(folder: &Path, record: &Record) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let aside = folder.join(format!("{FILE}.new"));
    let mut file = File::create(&aside)?;
    file.write_all(serde_json::to_string_pretty(record)?.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&aside, folder.join(FILE))?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn args(folder: &Path, nodes: Option<u64>, replicas: Option<u64>) -> UpArgs {
        UpArgs {
            nodes,
            replicas,
            regions: None,
            port: 2379,
            data_dir: folder.join("data"),
        }
    }

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("strata-up-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn a_folder_remembers_its_cluster() {
        let root = scratch("remember");
        let first = Folder::open(&args(&root, Some(5), Some(5))).unwrap();
        assert_eq!(first.token.len(), 32);
        assert!(!root.exists(), "a folder that is not kept is not made");
        first.keep().unwrap();
        let again = Folder::open(&args(&root, None, None)).unwrap();
        assert_eq!((again.nodes, again.replicas), (5, 5));
        assert_eq!(again.token, first.token);
        assert!(matches!(
            Folder::open(&args(&root, Some(3), None)),
            Err(Failure::Error(_))
        ));
        std::fs::remove_dir_all(&root).unwrap();
    }

    fn check_refusal(refused: Failure) {
        let Failure::Error(line) = refused else {
            panic!("{refused:?} is no error");
        };
        assert!(line.contains(FILE) && line.contains("restore it"), "{line}");
        assert!(!line.contains('\n'), "{line:?}");
    }

    #[test]
    fn fuzz_records_of_a_local_cluster() {
        let whole = new_record(&args(Path::new("."), Some(5), Some(3))).unwrap();
        let whole = serde_json::to_vec_pretty(&whole).unwrap();
        let (mut taken, mut refused) = (0, 0);
        strata_fuzz::run("records of a local cluster", 5_000, |mutator| {
            let mut text = mutator.bytes(&whole);
            if mutator.one_in(2) {
                let record = json!({
                    "token": mutator.text(&["a"]), "nodes": mutator.near(3),
                    "replicas": mutator.near(3), "regions": mutator.near(9),
                });
                text = record.to_string().into();
            }
            match parse(&text) {
                Ok(record) => {
                    taken += 1;
                    assert!((1..=NODES_MAX).contains(&record.nodes));
                    assert!(record.replicas <= record.nodes && record.replicas % 2 == 1);
                    assert!(REGIONS_RANGE.contains(&record.regions));
                    assert!(!record.token.is_empty());
                }
                Err(reason) => {
                    refused += 1;
                    assert!(!reason.is_empty() && !reason.contains('\n'), "{reason:?}");
                }
            }
        });
        if strata_fuzz::is_whole_run() {
            assert!(
                taken > 100 && refused > 1_000,
                "{taken} taken, {refused} refused"
            );
        }
    }

    #[test]
    fn bad_input_record_of_a_local_cluster_is_damaged_missing_or_no_file() {
        let root = scratch("missing");
        Folder::open(&args(&root, None, None))
            .unwrap()
            .keep()
            .unwrap();
        let record = root.join("data").join(FILE);
        let open = || Folder::open(&args(&root, None, None));
        let damaged = r#"{"token": "t", "nodes": 0, "replicas": 1, "regions": 6}"#;
        std::fs::write(&record, damaged).unwrap();
        check_refusal(open().unwrap_err());
        std::fs::remove_file(&record).unwrap();
        std::fs::create_dir(&record).unwrap();
        check_refusal(open().unwrap_err());
        std::fs::remove_dir(&record).unwrap();
        nix::unistd::mkfifo(&record, nix::sys::stat::Mode::S_IRWXU).unwrap();
        check_refusal(open().unwrap_err());
        std::fs::remove_file(&record).unwrap();
        // Without nodes the folder is as good as new.
        open().unwrap();
        std::fs::create_dir(root.join("data/node-1")).unwrap();
        std::fs::write(root.join("data/node-1/FORMAT"), "strata 1\n").unwrap();
        check_refusal(open().unwrap_err());
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn replicas_fit_the_nodes() {
        let root = scratch("replicas");
        assert!(matches!(
            Folder::open(&args(&root, Some(1), Some(3))),
            Err(Failure::CommandLine(_))
        ));
        assert!(!root.exists(), "a wrong command line leaves nothing behind");
        let two = Folder::open(&args(&root, Some(2), None)).unwrap();
        assert_eq!(two.replicas, 1);
    }
}
