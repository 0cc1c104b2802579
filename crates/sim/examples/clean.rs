fn main() {
    let a: u64 = std::env::args().nth(1).unwrap().parse().unwrap();
    let b: u64 = std::env::args().nth(2).unwrap().parse().unwrap();
    let named = std::env::args().nth(3).unwrap_or_default();
    let fault = strata_raft::planted::Fault::ALL.iter().copied().find(|f| f.name() == named);
    let _p = strata_raft::planted::plant(fault);
    let mut sim = 0.0;
    let begin = std::time::Instant::now();
    for seed in a..b {
        match strata_sim::swarm::Plan::draw(seed).run() {
            Ok(r) => sim += r.length.as_secs_f64(),
            Err(f) => { println!("seed {seed}: {f}"); if b == a + 1 { println!("{}", f.trace); } }
        }
    }
    println!("{sim} simulated s in {:?}", begin.elapsed());
}
