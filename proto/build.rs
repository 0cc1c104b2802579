//! Compiles the messages of `proto/` to Rust without protoc.
//!
//! protobuf-parse's pure-Rust parser reads the files into descriptors; those are encoded
//! once and decoded as prost's own descriptors, which feed the tonic generator.

use prost::Message;
use protobuf::Message as _;

fn main() {
    // Asked for at run time: one target folder may serve several checkouts.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo names the package's folder");
    let folder = std::path::PathBuf::from(package).join("proto");
    println!("cargo:rerun-if-changed=proto");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("the folder of .proto files can be read")
        .map(|entry| entry.expect("a folder entry can be read").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "proto"))
        .collect();
    files.sort();
    let parsed = protobuf_parse::Parser::new()
        .pure()
        .include(&folder)
        .inputs(&files)
        .file_descriptor_set()
        .expect("the .proto files are well-formed");
    let bytes = parsed.write_to_bytes().expect("descriptors encode");
    let descriptors =
        prost_types::FileDescriptorSet::decode(&bytes[..]).expect("descriptors decode");
    tonic_prost_build::configure()
        .bytes(".")
        // Large and seldom there: heartbeats and appends, which are moved from queue to queue
        // all the time, would carry the room for them along.
        .boxed("eraftpb.Message.snapshot")
        .boxed("raft_serverpb.RaftMessage.merge_target")
        // The same for the pairs of a scan, of which there are thousands in an answer.
        .boxed("kvrpcpb.KvPair.error")
        .compile_fds(descriptors)
        .expect("the messages generate Rust code");
}
