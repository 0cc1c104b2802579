use strata_sim::{FaultKind, Mix, Scenario};
#[test]
fn smoke() {
    let from: u64 = std::env::var("FROM").map_or(0, |v| v.parse().unwrap());
    let count: u64 = std::env::var("COUNT").map_or(5, |v| v.parse().unwrap());
    let mut failed = 0;
    for seed in from..from + count {
        let scenario = Scenario {
            stores: if seed % 2 == 0 { 3 } else { 5 },
            regions: 6 + (seed % 3) as u32 * 4,
            clients: 4,
            mix: Mix::all(),
            unreliable: seed % 4 == 3,
            crashes: seed % 5 == 0,
            faults: FaultKind::ALL.to_vec(),
            replica_reads: 0.2,
            cancelled: 0.05,
            rounds: 1,
            round: std::time::Duration::from_secs(3),
            ..Scenario::new(seed)
        };
        let result = std::panic::catch_unwind(|| scenario.run());
        match result {
            Ok(Ok(report)) => {
                if seed % 10 == 0 {
                    println!("{seed} {report:?}")
                }
            }
            Ok(Err(violations)) => {
                failed += 1;
                for v in &violations {
                    println!("SEED {seed}: {v}");
                }
            }
            Err(_) => {
                failed += 1;
                println!("SEED {seed}: panic");
            }
        }
    }
    println!("{failed} failed");
}
