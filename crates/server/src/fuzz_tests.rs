//! Text and messages of any content where a node reads its settings and its calls.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use strata_fuzz::{Mutator, run};
use strata_proto::kvrpcpb::{Context, KeyRange, KvPair, RawCompareAndSwapRequest};
use strata_proto::metapb::Peer;
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::{RawSpace, data_command::Body};
use tonic::metadata::MetadataMap;

use crate::config::{Config, ConfigError, KEYS, Setting, Size, environment_variable};
use crate::deadline::{grpc_timeout, request_time};
use crate::options::NodeOptions;
use crate::raw::convert;

/// A refusal is one line that says where and what.
fn check_refusal(error: &ConfigError, text: &str) {
    let line = error.to_string();
    assert!(
        !line.is_empty() && !line.contains('\n'),
        "{line:?} of {text:?}"
    );
}

#[test]
fn fuzz_configuration_files() {
    let documented = Config::documented();
    let lines: Vec<&str> = documented.lines().collect();
    let (mut taken, mut refused) = (0, 0);
    run("configuration files", 3_000, |mutator| {
        let start = mutator.number() as usize % lines.len();
        let end = (start + 30).min(lines.len());
        let section = lines[..start]
            .iter()
            .rev()
            .find(|line| line.starts_with('['));
        let part = [
            section.copied().unwrap_or(""),
            &lines[start..end].join("\n"),
        ]
        .join("\n");
        let text = match mutator.number() % 3 {
            0 => mutator.damaged_text(&documented),
            1 => mutator.damaged_text(&part),
            _ => mutator.text(&[
                "raft",
                "[raft]",
                "tick-interval",
                "= \"50ms\"",
                "true",
                "1e9",
            ]),
        };
        let mut config = Config::default();
        match config
            .read_file("strata.toml", &text)
            .and_then(|()| config.check())
        {
            Ok(()) => taken += 1,
            Err(error) => {
                refused += 1;
                check_refusal(&error, &text);
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

/// A value that a setting takes is written as text that reads the same.
fn try_setting<T: Setting + PartialEq + std::fmt::Debug>(text: &str) {
    if let Ok(value) = T::parse(text) {
        let again = T::parse(&value.render());
        assert_eq!(again.as_ref(), Ok(&value), "{text:?}");
    }
}

#[test]
fn fuzz_values_and_environment() {
    let forms = [
        "200ms",
        "1s",
        "5m",
        "2h",
        "8MiB",
        "512KiB",
        "100B",
        "1024GiB",
        "0.1",
        "true",
        "raw",
        "18446744073709551615",
        "18446744073709551615h",
        "-1",
        "1e308",
        "inf",
        "NaN",
    ];
    run("values of settings", 5_000, |mutator| {
        let form = *mutator.pick(&forms);
        let text = match mutator.number() % 3 {
            0 => mutator.text(&forms),
            1 => format!(
                "{}{}",
                mutator.number(),
                mutator.pick(&["ms", "s", "m", "h", "KiB", "GiB"])
            ),
            _ => mutator.damaged_text(form),
        };
        try_setting::<Duration>(&text);
        try_setting::<Size>(&text);
        try_setting::<u64>(&text);
        try_setting::<f64>(&text);
        let key = &KEYS[mutator.number() as usize % KEYS.len()];
        let mut name = environment_variable(key.name);
        if mutator.one_in(4) {
            name = mutator.damaged_text(&name);
        }
        let mut config = Config::default();
        match config.read_environment([(name, text.clone())]) {
            Ok(warnings) => {
                assert!(warnings.iter().all(|warning| !warning.is_empty()));
                // Two settings may contradict each other; nothing else happens.
                if let Err(error) = config.check() {
                    assert!(matches!(error, ConfigError::Contradiction(_)), "{error}");
                }
            }
            Err(error) => assert!(matches!(error, ConfigError::BadValue { .. }), "{error}"),
        }
    });
}

#[test]
fn fuzz_timeouts_of_requests() {
    let config = Config::default().server;
    run("timeouts", 5_000, |mutator| {
        let real = format!(
            "{}{}",
            mutator.number(),
            mutator.pick(&["H", "M", "S", "m", "u", "n"])
        );
        let text = if mutator.one_in(2) {
            real
        } else {
            mutator.damaged_text("2000000u")
        };
        let Ok(value) = text.parse() else {
            return;
        };
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", value);
        let time = request_time(&metadata, &config);
        match grpc_timeout(&metadata) {
            Some(asked) => assert!(time <= asked && time >= asked / 2, "{text:?}: {time:?}"),
            None => assert_eq!(time, config.default_deadline, "{text:?}"),
        }
    });
}

#[test]
fn fuzz_addresses_of_a_command_line() {
    run("addresses", 5_000, |mutator| {
        let mut address = |real: &str| mutator.damaged_text(real);
        let options = NodeOptions {
            id: 1,
            addr: address("127.0.0.1:2379"),
            advertise_addr: Some(address("node1.example:2379")),
            data_dir: "data".into(),
            initial_cluster: BTreeMap::from([(1, address("[::1]:2379")), (2, address("b:1"))]),
            cluster_token: None,
            regions: None,
            replicas: None,
            config: Config::default(),
            config_warnings: Vec::new(),
        };
        match options.check() {
            // What passes is something that can be connected to.
            Ok(()) => {
                for address in options.initial_cluster.values() {
                    let port = address
                        .rsplit_once(':')
                        .map(|(_, port)| port.parse::<u16>());
                    assert!(matches!(port, Some(Ok(1..))), "{address:?}");
                    drop(crate::cluster::endpoint(address, &options.config.transport));
                }
            }
            Err(error) => assert_eq!(error.exit_code(), 2, "{error}"),
        }
    });
}

fn context() -> Context {
    Context {
        region_id: 7,
        peer: Some(Peer {
            id: 71,
            store_id: 1,
            ..Peer::default()
        }),
        api_version: 2,
        ..Context::default()
    }
}

fn redecode<M: Message + Default>(mutator: &mut Mutator, real: &M) -> M {
    M::decode(&mutator.message(&real.encode_to_vec())[..]).unwrap_or_default()
}

/// Raw calls of any content: a request of the store, or words why not.
#[test]
fn fuzz_raw_calls() {
    let range = KeyRange {
        start_key: Bytes::from_static(b"a"),
        end_key: Bytes::from_static(b"b"),
    };
    run("raw calls", 5_000, |mutator| {
        let context = redecode(mutator, &context());
        let deadline = Duration::from_millis(mutator.number());
        let header = convert::header(Some(&context), deadline);
        assert_eq!(
            (header.region_id, header.deadline),
            (context.region_id, deadline)
        );
        let cf = mutator.damaged_text("default");
        let space = convert::space(Some(&context), &cf);
        let known = matches!(cf.as_str(), "" | "default") && (0..=2).contains(&context.api_version);
        assert_eq!(space.is_ok(), known, "{cf:?} {}", context.api_version);
        let space = space.unwrap_or(RawSpace::RawV1);
        let pairs: Vec<KvPair> = (0..mutator.number() % 4)
            .map(|_| KvPair::default())
            .collect();
        let ttls: Vec<u64> = (0..mutator.number() % 5)
            .map(|_| mutator.number())
            .collect();
        let fits = ttls.len() <= 1 || ttls.len() == pairs.len();
        let puts = convert::batch_put(pairs.clone(), &ttls, mutator.number());
        assert_eq!(
            puts.map(|puts| puts.len()).ok(),
            fits.then_some(pairs.len())
        );
        let reverse = mutator.one_in(2);
        let ranges: Vec<KeyRange> = (0..3).map(|_| redecode(mutator, &range)).collect();
        for (start, end) in convert::scan_ranges(ranges.clone(), reverse) {
            assert!(!convert::is_inverted(&start, &end, reverse));
        }
        let KeyRange { start_key, end_key } = ranges[0].clone();
        let inverted = convert::is_inverted(&start_key, &end_key, false);
        assert_eq!(
            convert::delete_range(space, start_key, end_key).is_err(),
            inverted
        );
        let swap = RawCompareAndSwapRequest {
            key: Bytes::from_static(b"k"),
            previous_value: Bytes::from_static(b"v"),
            ..RawCompareAndSwapRequest::default()
        };
        let swap = redecode(mutator, &swap);
        let (absent, key) = (swap.previous_not_exist, swap.key.clone());
        let Some(Body::CompareAndSwap(body)) = convert::compare_and_swap(space, swap).body else {
            panic!("a compare-and-swap became something else");
        };
        assert_eq!((body.expected.is_none(), body.key), (absent, key));
        let _ = convert::can_exist(space, &mutator.noise(20), 16);
    });
}

/// A frame of raft messages is refused or taken whole, and keeps only messages of the two stores
/// that met.
#[test]
fn fuzz_frames_between_stores() {
    let peer = |id, store_id| Peer {
        id,
        store_id,
        ..Peer::default()
    };
    let message = RaftMessage {
        region_id: 7,
        from_peer: Some(peer(72, 2)),
        to_peer: Some(peer(71, 1)),
        ..RaftMessage::default()
    };
    let framed = message.encode_length_delimited_to_vec();
    run("frames", 5_000, |mutator| {
        let mut frame = framed.clone();
        if mutator.one_in(2) {
            frame.extend(redecode(mutator, &message).encode_length_delimited_to_vec());
        } else {
            frame.extend(mutator.bytes(&framed));
        }
        let Ok((fitting, _)) = crate::transport::messages_between(frame.into(), 2, 1) else {
            return;
        };
        assert_eq!(fitting[0], message);
        for message in fitting {
            let stores = (message.from_peer, message.to_peer);
            assert_eq!(stores.0.map(|peer| peer.store_id), Some(2));
            assert_eq!(stores.1.map(|peer| peer.store_id), Some(1));
        }
    });
}
