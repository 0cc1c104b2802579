//! What the command line tells a node, and the one line that it answers when it refuses.
//!
//! Options are checked before anything is touched. What can be judged without the data
//! folder is judged here; what depends on the folder is judged when it is opened.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::config::Config;

/// Fewest user regions: those between the fixed cuts.
pub const REGIONS_MIN: u32 = 6;
/// Most user regions that a bootstrap makes.
pub const REGIONS_MAX: u32 = 10_000;
/// The token of a cluster that was given none.
pub const DEFAULT_CLUSTER_TOKEN: &str = "strata";
/// Replicas of a region when neither flag nor cluster size says otherwise.
const DEFAULT_REPLICAS: u32 = 3;

/// The command line of `strata node`.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// `--id`: this store, one of the ids of `initial_cluster`.
    pub id: u64,
    /// `--addr HOST:PORT`: where the node listens.
    pub addr: String,
    /// `--advertise-addr HOST:PORT`: what it tells others; `addr` unless given.
    pub advertise_addr: Option<String>,
    /// `--data-dir`: the folder that holds everything the node keeps.
    pub data_dir: PathBuf,
    /// `--initial-cluster 1=HOST:PORT,2=...`: addresses by store id.
    pub initial_cluster: BTreeMap<u64, String>,
    /// `--cluster-token`; `None` where it is not given.
    pub cluster_token: Option<String>,
    /// `--regions`: user regions at bootstrap; `None` where it is not given.
    pub regions: Option<u32>,
    /// `--replicas`: 1, 3 or 5; `None` where it is not given.
    pub replicas: Option<u32>,
    /// Settings, already loaded from file and environment.
    pub config: Config,
    /// Warnings of [`Config::load`], logged when the node starts.
    pub config_warnings: Vec<String>,
}

/// Why a node did not start or could not go on. The message is one line that says what
/// to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// The command line is right and the node refuses all the same: a foreign folder, a
    /// taken port, a failed disk.
    #[error("{0}")]
    Refused(String),
}

impl NodeError {
    /// The exit code of the process: 2 for a wrong command line, 3 for any other error.
    pub fn exit_code(&self) -> u8 {
        match self {
            NodeError::Usage(_) => 2,
            NodeError::Refused(_) => 3,
        }
    }
}

impl NodeOptions {
    /// The address that other nodes and clients are told.
    pub fn advertised(&self) -> &str {
        self.advertise_addr.as_deref().unwrap_or(&self.addr)
    }

    /// Checks what can be judged without the folder.
    ///
    /// # Errors
    /// [`NodeError::Usage`].
    pub fn check(&self) -> Result<(), NodeError> {
        let refuse = |text: String| Err(NodeError::Usage(text));
        if self.id == 0 {
            return refuse("--id must be at least 1".to_owned());
        }
        if !self.initial_cluster.contains_key(&self.id) {
            return refuse(format!(
                "--initial-cluster names no store {}; add {}=HOST:PORT to it",
                self.id, self.id
            ));
        }
        if self.initial_cluster.contains_key(&0) {
            return refuse("--initial-cluster names store 0; ids start at 1".to_owned());
        }
        for (id, address) in &self.initial_cluster {
            check_address(&format!("--initial-cluster {id}="), address)?;
        }
        check_address("--addr ", &self.addr)?;
        check_address("--advertise-addr ", self.advertised())?;
        if let Some((host, _)) = self.advertised().rsplit_once(':')
            && matches!(host, "0.0.0.0" | "[::]")
        {
            return refuse(format!(
                "clients cannot reach {host}; name a reachable address with --advertise-addr"
            ));
        }
        if let Some(regions) = self.regions
            && !(REGIONS_MIN..=REGIONS_MAX).contains(&regions)
        {
            return refuse(format!(
                "--regions must be {REGIONS_MIN} to {REGIONS_MAX}, not {regions}"
            ));
        }
        self.replica_count().map(|_| ())
    }

    /// User regions of a new cluster.
    pub fn region_count(&self) -> u32 {
        self.regions.unwrap_or(REGIONS_MIN)
    }

    /// Replicas of each region of a new cluster: as given, else 3, or 1 where 3 do not fit.
    ///
    /// # Errors
    /// [`NodeError::Usage`] when the given number is not 1, 3 or 5 or exceeds the stores.
    pub fn replica_count(&self) -> Result<u32, NodeError> {
        let stores = self.initial_cluster.len();
        let Some(replicas) = self.replicas else {
            return Ok(if stores >= DEFAULT_REPLICAS as usize {
                DEFAULT_REPLICAS
            } else {
                1
            });
        };
        if !matches!(replicas, 1 | 3 | 5) {
            return Err(NodeError::Usage(format!(
                "--replicas must be 1, 3 or 5, not {replicas}"
            )));
        }
        if replicas as usize > stores {
            return Err(NodeError::Usage(format!(
                "--replicas {replicas} needs at least {replicas} stores and the cluster has {stores}"
            )));
        }
        Ok(replicas)
    }
}

/// `HOST:PORT` with a port number that is not 0.
fn check_address(what: &str, address: &str) -> Result<(), NodeError> {
    let valid = address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if valid {
        Ok(())
    } else {
        Err(NodeError::Usage(format!("{what}{address} is no HOST:PORT")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(stores: u64) -> NodeOptions {
        NodeOptions {
            id: 1,
            addr: "127.0.0.1:2379".to_owned(),
            advertise_addr: None,
            data_dir: PathBuf::from("data"),
            initial_cluster: (1..=stores)
                .map(|id| (id, format!("127.0.0.1:{}", 2378 + id)))
                .collect(),
            cluster_token: None,
            regions: None,
            replicas: None,
            config: Config::default(),
            config_warnings: Vec::new(),
        }
    }

    #[test]
    fn replicas_follow_the_number_of_stores_unless_given() {
        for (stores, replicas) in [(1, 1), (2, 1), (3, 3), (5, 3)] {
            assert_eq!(options(stores).replica_count(), Ok(replicas), "{stores}");
        }
        let mut given = options(5);
        given.replicas = Some(5);
        assert_eq!(given.replica_count(), Ok(5));
        for wrong in [0, 2, 4, 7] {
            given.replicas = Some(wrong);
            assert_eq!(given.check().unwrap_err().exit_code(), 2, "{wrong}");
        }
        let mut few = options(1);
        few.replicas = Some(3);
        assert_eq!(few.check().unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_wrong_command_line_is_named() {
        options(3).check().unwrap();
        let wrong = |change: &dyn Fn(&mut NodeOptions)| {
            let mut options = options(3);
            change(&mut options);
            options.check().unwrap_err().to_string()
        };
        assert!(wrong(&|o| o.id = 4).contains("names no store 4"));
        assert!(wrong(&|o| o.regions = Some(5)).contains("6 to 10000"));
        assert!(wrong(&|o| o.regions = Some(10_001)).contains("6 to 10000"));
        assert!(wrong(&|o| o.addr = "localhost".to_owned()).contains("HOST:PORT"));
        assert!(wrong(&|o| o.addr = "0.0.0.0:2379".to_owned()).contains("--advertise-addr"));
        assert!(
            wrong(&|o| {
                o.initial_cluster.insert(2, "http://a:1".to_owned());
            })
            .contains("--initial-cluster 2=")
        );
    }
}
