//! Faults around a cluster: no quorum, garbage on the wire, strangers, settings, a wiped
//! store.

use crate::direct::{place, put, store};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use strata_client::{Error, Options, RawClient};
use strata_proto::{kvrpcpb, pdpb, stratapb};
use strata_tests::{Acknowledged, Cluster, ClusterOptions, eventually, eventually_sync, http_get};
use tonic_prost::prost::Message;

async fn assert_serves(cluster: &Cluster) {
    let client = cluster.client().await;
    client
        .put(b"a-probe", "1")
        .await
        .expect("the cluster writes");
    let value = client.get(b"a-probe").await.expect("the cluster reads");
    assert_eq!(value.as_deref(), Some(&b"1"[..]));
    if cluster.running().len() > 1 {
        cluster.assert_replicas_equal().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_no_quorum() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    client.put(b"a-key", "before").await.unwrap();
    let place = place(&cluster, &client, b"a-key").await;
    let survivor = place.store_id;
    for id in cluster.ids() {
        if id != survivor {
            cluster.kill(id);
        }
    }
    // The store itself answers within the deadline that it was given.
    let mut direct = store(&cluster, survivor).await;
    let mut request = tonic::Request::new(put(&place.context, b"a-key", b"lost"));
    request.set_timeout(Duration::from_secs(2));
    match direct.raw_put(request).await {
        Ok(answer) => {
            let error = answer
                .into_inner()
                .region_error
                .expect("it is not acknowledged");
            assert!(
                error.undetermined_result.is_some()
                    || error.server_is_busy.is_some()
                    || error
                        .not_leader
                        .as_ref()
                        .is_some_and(|error| error.leader.is_none()),
                "only errors that may be retried are right: {error:?}"
            );
        }
        Err(status) => assert!(
            matches!(
                status.code(),
                tonic::Code::DeadlineExceeded | tonic::Code::Cancelled | tonic::Code::Unavailable
            ),
            "{status:?}"
        ),
    }
    // Once the survivor has stepped down it refuses at once, and names no leader.
    eventually("the survivor to step down", || async {
        let mut direct = store(&cluster, survivor).await;
        let answer = direct.raw_put(put(&place.context, b"a-key", b"lost")).await;
        let answer = answer.map_err(|status| status.to_string())?.into_inner();
        let error = answer.region_error.ok_or("it was acknowledged")?;
        match error.not_leader {
            Some(not_leader) if not_leader.leader.is_none() => Ok(()),
            _ => Err(format!("{error:?}")),
        }
    })
    .await;
    let options = Options {
        operation_timeout: Duration::from_secs(3),
        ..Options::default()
    };
    let impatient = cluster.client_with(options).await;
    let error = impatient.put(b"a-key", "lost").await.unwrap_err();
    assert!(
        error.is_retryable() || matches!(error, Error::Unknown { .. }),
        "{error:?}"
    );
    cluster.start_all();
    cluster.wait_ready().await;
    let held = client.get(b"a-key").await.unwrap();
    assert!(
        held.as_deref() == Some(b"before") || held.as_deref() == Some(b"lost"),
        "{held:?} was never written"
    );
    assert_serves(&cluster).await;
}

/// A message whose second field has a type that no request has there.
#[derive(Clone, Copy)]
struct Malformed;

impl Malformed {
    fn request() -> pdpb::TsoResponse {
        // Field 2 is a number here and bytes in every raw request.
        pdpb::TsoResponse {
            header: None,
            count: 300,
            timestamp: None,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_malformed_protobuf() {
    let cluster = Cluster::start().await;
    for id in cluster.ids() {
        let channel =
            tonic::transport::Endpoint::from_shared(format!("http://{}", cluster.address(id)))
                .unwrap()
                .connect()
                .await
                .unwrap();
        for path in [
            "/tikvpb.Tikv/RawPut",
            "/tikvpb.Tikv/RawGet",
            "/tikvpb.Tikv/RawBatchPut",
            "/pdpb.PD/GetRegion",
        ] {
            let mut grpc = tonic::client::Grpc::new(channel.clone());
            grpc.ready().await.unwrap();
            let codec =
                tonic_prost::ProstCodec::<pdpb::TsoResponse, kvrpcpb::RawPutResponse>::default();
            let path = http::uri::PathAndQuery::from_static(path);
            let request = tonic::Request::new(Malformed::request());
            let answer = grpc.unary(request, path.clone(), codec).await;
            let status = answer.expect_err("a malformed message is refused");
            assert!(
                matches!(
                    status.code(),
                    tonic::Code::Internal | tonic::Code::InvalidArgument
                ),
                "{path}: {status:?}"
            );
        }
    }
    assert_serves(&cluster).await;
}

/// Opens a stream of raft messages, says one frame, and returns all that the node answers before it
/// closes the connection.
fn speak(address: &str, frame: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
    let said = [&b"\xd7strata\x01"[..], &length, frame].concat();
    stream.write_all(&said).unwrap();
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // What was not read before the close resets the connection.
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => panic!("{error}"),
        _ => answer,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_stranger_on_the_port() {
    let mut cluster = Cluster::start().await;
    for id in cluster.ids() {
        let address = cluster.address(id);
        for words in [
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello"[..],
            b"SSH-2.0-OpenSSH_9.0\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"*1\r\n$4\r\nPING\r\n",
            &[0; 4096],
            b"\xd7strata\x02 of a later version",
            b"\xd7tls",
        ] {
            let mut stream = TcpStream::connect(&address).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(1)))
                .unwrap();
            // The node may close while it is still being written to.
            let _ = stream.write_all(words);
            let _ = stream.read(&mut [0; 64]);
        }
        assert_eq!(http_get(&address, "/no/such/page").unwrap().status, 404);
        // A store of another cluster.
        let hello = stratapb::StoreHello {
            cluster_id: 4711,
            store_id: 2,
            incarnation: 1,
            to_store_id: id,
            address: "127.0.0.1:1".into(),
            keepalive_ms: 0,
            election_timeout_us: 400_000,
        };
        let answer = speak(&address, &hello.encode_to_vec());
        let reply = stratapb::StoreReply::decode(&answer[4..]).unwrap();
        assert!(reply.refusal.contains("--cluster-token"), "{reply:?}");
        // A greeting that claims to be longer than any.
        assert_eq!(speak(&address, &[0; 5000]), [0; 0]);
        assert!(cluster.node(id).ended().is_none(), "node {id} ended");
    }
    assert_serves(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_unknown_configuration_key() {
    let mut cluster = Cluster::prepare(ClusterOptions {
        nodes: 1,
        ..ClusterOptions::default()
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("strata.toml");
    std::fs::write(
        &path,
        "[raft]\nelection-ticks = 8\ntick-intervall = \"50ms\"\n",
    )
    .unwrap();
    let words = cluster.spec(1).words.clone();
    cluster
        .spec_mut(1)
        .words
        .extend(["--config".into(), path.display().to_string()]);
    cluster.start_node(1);
    let status = eventually_sync("the node to end", || cluster.node(1).ended().ok_or("runs")).await;
    assert_eq!(status.code(), Some(3), "{}", cluster.output(1));
    let output = cluster.output(1);
    let line = output.trim_end();
    assert_eq!(line.lines().count(), 1, "{output}");
    for part in ["line 3", "tick-intervall", "raft.tick-interval"] {
        assert!(line.contains(part), "{part} is missing in: {line}");
    }
    assert!(!cluster.spec(1).folder.exists(), "the folder was touched");
    // A variable that is unknown may belong to another program: a warning.
    cluster.kill(1);
    cluster.spec_mut(1).words = words;
    cluster.spec_mut(1).environment = vec![("STRATA_RAFT_TICK_INTERVALL".into(), "50ms".into())];
    cluster.start_node(1);
    cluster.wait_ready().await;
    assert!(
        cluster.output(1).contains("STRATA_RAFT_TICK_INTERVALL"),
        "{}",
        cluster.output(1)
    );
    assert_serves(&cluster).await;
}

/// Puts `count` keys and returns those acknowledged: all of them.
async fn write(client: &RawClient, name: &str, count: usize) -> Acknowledged {
    let mut acknowledged = Acknowledged::default();
    for number in 0..count {
        let key = bytes::Bytes::from(format!("{name}-{number}"));
        client
            .put(&key, key.clone())
            .await
            .expect("a put is acknowledged");
        acknowledged.note(key.clone(), key);
    }
    acknowledged
}

/// Its replicas might vote while a leader elsewhere still reads under its lease.
#[tokio::test(flavor = "multi_thread")]
async fn bad_input_node_with_another_election_timeout() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let mut acknowledged = write(&client, "before", 20).await;
    cluster.kill(3);
    cluster.spec_mut(3).environment = vec![("STRATA_RAFT_ELECTION_TICKS".into(), "6".into())];
    cluster.start_node(3);
    eventually_sync("a refusal on either side", || {
        let said = |id| {
            cluster
                .output(id)
                .contains("raft.election-ticks is the same")
        };
        if (said(1) || said(2)) && said(3) {
            Ok(())
        } else {
            Err("no line yet")
        }
    })
    .await;
    acknowledged.extend(write(&client, "beside", 20).await);
    // It takes part again with the setting of the others.
    cluster.kill(3);
    cluster.spec_mut(3).environment.clear();
    cluster.start_node(3);
    cluster.wait_ready().await;
    acknowledged.assert_present(&client).await;
    cluster.assert_replicas_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_wiped_store_refused() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let mut acknowledged = write(&client, "before", 50).await;
    cluster.kill(3);
    std::fs::remove_dir_all(&cluster.spec(3).folder).unwrap();
    cluster.start_node(3);
    // The others name the store and the way out.
    eventually_sync("a refusal of store 3", || {
        let said = |id| {
            let output = cluster.output(id);
            output
                .lines()
                .any(|line| line.contains("incarnation") && line.contains('3'))
        };
        if said(1) || said(2) {
            Ok(())
        } else {
            Err("no line yet")
        }
    })
    .await;
    acknowledged.extend(write(&client, "beside", 50).await);
    acknowledged.assert_present(&client).await;
    let health = http_get(&cluster.address(3), "/healthz").map_or(0, |answer| answer.status);
    assert_ne!(health, 200, "the wiped store says that it serves");
    // It must not vote or acknowledge: with one of the others down nothing is written.
    cluster.kill(2);
    let options = Options {
        operation_timeout: Duration::from_secs(4),
        ..Options::default()
    };
    let impatient = cluster.client_with(options).await;
    let error = impatient.put(b"alone", "1").await.unwrap_err();
    assert!(
        error.is_retryable() || matches!(error, Error::Unknown { .. }),
        "{error:?}"
    );
    cluster.start_node(2);
    eventually("the two to serve again", || client.get(b"before-0")).await;
    acknowledged.extend(write(&client, "after", 20).await);
    acknowledged.assert_present(&client).await;
    assert!(cluster.node(1).ended().is_none(), "a healthy node ended");
    cluster.assert_replicas_equal_on(&[1, 2]).await;
}
