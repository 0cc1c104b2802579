//! SIGSTOP and SIGCONT. Readers wait at each stopped node, and read what it answers when it
//! goes on.

use std::time::Duration;
use strata_tests::nemesis::{NemesisOptions, run_nemesis};

/// Longer than a lease (360 ms) and an election (800 ms) together.
const STOPPED: Duration = Duration::from_millis(1500);

/// A leader that slept past its lease answers nothing stale when it goes on.
#[test]
fn nemesis_pause_of_leaders_beyond_their_lease() {
    run_nemesis(NemesisOptions::default(), async |nemesis| {
        for _ in 0..3 {
            let leader = nemesis.leader().await;
            nemesis.pause(leader);
            // The others write on, so that what the stopped one knows is old.
            nemesis.another_leads(leader).await;
            nemesis.progress(150).await;
            nemesis.last(STOPPED).await;
            nemesis.resume(leader);
            nemesis.progress(150).await;
        }
        nemesis.finish().await;
    });
}

#[test]
fn nemesis_pause_of_followers_and_of_a_majority() {
    run_nemesis(NemesisOptions::default(), async |nemesis| {
        for round in 0..5 {
            let leader = nemesis.leader().await;
            let others = nemesis.others(&[leader]);
            let follower = nemesis.pick(&others);
            nemesis.pause(follower);
            if round % 2 == 1 {
                // Nobody can write now; the leader that remains has no lease soon.
                nemesis.last(Duration::from_millis(100)).await;
                nemesis.pause(leader);
            }
            nemesis.last(STOPPED).await;
            nemesis.resume_all();
            nemesis.progress(150).await;
        }
        nemesis.finish().await;
    });
}
