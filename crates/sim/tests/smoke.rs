use strata_sim::Scenario;
#[test]
fn smoke() {
    for seed in 0..3 {
        let report = Scenario::new(seed).run_clean();
        println!("{report:?}");
    }
}
