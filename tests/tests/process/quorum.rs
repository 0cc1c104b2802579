//! Five nodes: two may be lost, three may not, and all comes back.

use std::time::Duration;
use strata_client::{Error, Options};
use strata_tests::{Cluster, ClusterOptions, Load, LoadOptions};

#[tokio::test(flavor = "multi_thread")]
async fn five_nodes_two_down_writes_go_on_three_down_none_is_acknowledged() {
    let mut cluster = Cluster::start_with(ClusterOptions {
        nodes: 5,
        replicas: Some(5),
        ..ClusterOptions::default()
    })
    .await;
    let load = Load::start(&cluster.endpoints(), LoadOptions::default()).await;
    load.wait_for(200).await;
    cluster.kill(1);
    cluster.kill(2);
    load.wait_for(500).await;
    cluster.kill(3);
    let options = Options {
        operation_timeout: Duration::from_secs(5),
        ..Options::default()
    };
    let client = cluster.client_with(options).await;
    // All puts of the load that were under way have ended by the end of this one.
    let error = client.put(b"a-minority", "1").await.unwrap_err();
    assert!(
        error.is_retryable() || matches!(error, Error::Unknown { .. }),
        "{error:?}"
    );
    let recorded = load.stop().await;
    for region in regions() {
        let key = [region.as_ref(), b"minority"].concat();
        let answer = client.put(&key, "1").await;
        assert!(
            answer.is_err(),
            "a minority acknowledged a put to {key:02x?}"
        );
    }
    cluster.start_all();
    cluster.wait_ready().await;
    recorded.assert_all(&cluster).await;
}

/// A key in several of the bootstrap regions; the scheduler cannot be asked without a quorum.
fn regions() -> Vec<bytes::Bytes> {
    [
        &b"a"[..],
        b"r\0\0\0\0\0\0\0\xfb",
        b"t",
        b"\xff\xff\xff\xff\xff",
    ]
    .map(bytes::Bytes::from_static)
    .to_vec()
}
