//! TinyKV 2A: who leads.

use strata_raft::{Config, PeerId, ProgressState, Role, Term};

use crate::network::Network;
use crate::support::disk::Disk;
use crate::support::node::{ELECTION_TIMEOUT, Node, append, append_answer, config, vote_answer};

/// A node with a log of these terms, whose term is that of its last entry.
fn with_log(id: PeerId, voters: &[PeerId], terms: &[Term]) -> Option<Node> {
    Some(Node::at(
        id,
        voters,
        terms.last().copied().unwrap_or(0),
        0,
        terms,
        0,
    ))
}

#[test]
fn progress_leader() {
    let mut node = Node::of(1, &[1, 2]);
    node.lead();
    node.step(append_answer(2, 1, 1, 1));
    for count in 0..5 {
        let own = node.progress(1);
        assert_eq!(own.matched, count + 1, "own match before proposal {count}");
        assert_eq!(
            own.next,
            own.matched + 1,
            "own next before proposal {count}"
        );
        node.propose("foo").unwrap();
    }
    let other = node.progress(2);
    assert_eq!(
        (other.state, other.matched, other.next),
        (ProgressState::Replicate, 1, 7)
    );
}

#[test]
fn leader_election() {
    // `true` stands for a node, `false` for a peer that never answers.
    let cases: [(&[bool], Role); 5] = [
        (&[true, true, true], Role::Leader),
        (&[true, true, false], Role::Leader),
        (&[true, false, false], Role::Candidate),
        (&[true, false, false, true], Role::Candidate),
        (&[true, false, false, true, true], Role::Leader),
    ];
    for (answers, wanted) in cases {
        let voters: Vec<PeerId> = (1..=answers.len() as u64).collect();
        let nodes = voters.iter().zip(answers);
        let nodes = nodes.map(|(&id, &answers)| answers.then(|| Node::of(id, &voters)));
        let mut net = Network::with(nodes.collect());
        net.campaign(1);
        assert_eq!(net.role(1), wanted, "{answers:?}");
        assert_eq!(net.nodes[&1].term(), 1, "{answers:?}");
    }
    // Three of five logs are longer; their owners refuse in the candidate's term.
    let voters = [1, 2, 3, 4, 5];
    let mut net = Network::with(vec![
        Some(Node::of(1, &voters)),
        with_log(2, &voters, &[1]),
        with_log(3, &voters, &[1]),
        with_log(4, &voters, &[1, 1]),
        Some(Node::of(5, &voters)),
    ]);
    net.campaign(1);
    assert_eq!((net.role(1), net.nodes[&1].term()), (Role::Follower, 1));
}

#[test]
fn leader_election_with_pre_vote() {
    let cases: [(&[bool], Role, Term); 4] = [
        (&[true, true, false], Role::Leader, 1),
        (&[true, false, false], Role::PreCandidate, 0),
        (&[true, false, false, true], Role::PreCandidate, 0),
        (&[true, false, false, true, true], Role::Leader, 1),
    ];
    for (answers, role, term) in cases {
        let voters: Vec<PeerId> = (1..=answers.len() as u64).collect();
        let nodes = voters.iter().zip(answers).map(|(&id, &answers)| {
            let config = Config {
                pre_vote: true,
                ..config(id)
            };
            answers.then(|| Node::new(config, Disk::with_voters(&voters)))
        });
        let mut net = Network::with(nodes.collect());
        net.campaign(1);
        assert_eq!(
            (net.role(1), net.nodes[&1].term()),
            (role, term),
            "{answers:?}"
        );
    }
}

fn cycle(mut net: Network) {
    for leader in 1..=3 {
        net.campaign(leader);
        net.assert_leader(leader);
        assert_eq!(net.nodes[&leader].term(), leader);
    }
}

#[test]
fn leader_cycle() {
    cycle(Network::of(3));
}

#[test]
fn leader_cycle_with_pre_vote_and_quorum_check() {
    cycle(Network::guarded(3));
}

/// Node 1 won term 1, wrote an entry and gave it to node 2 only. Node 3 won term 2 with
/// the votes of 4 and 5 and wrote an entry that it gave to nobody. Each of 1, 2 and 3 could
/// win term 3 now; whoever does overwrites what the others have.
fn overwrite_newer_logs(pre_vote: bool) {
    let voters = [1, 2, 3, 4, 5];
    let mut net = Network::with(vec![
        Some(Node::at(1, &voters, 1, 0, &[1], 0)),
        Some(Node::at(2, &voters, 1, 0, &[1], 0)),
        Some(Node::at(3, &voters, 2, 0, &[2], 0)),
        Some(Node::at(4, &voters, 2, 3, &[], 0)),
        Some(Node::at(5, &voters, 2, 3, &[], 0)),
    ]);
    if pre_vote {
        for id in voters {
            let node = net.node(id);
            *node = Node::new(
                Config {
                    pre_vote,
                    ..config(id)
                },
                node.disk.clone(),
            );
        }
    }
    // Nodes 3, 4 and 5 know of term 2, so node 1 fails and learns of it.
    net.campaign(1);
    assert_eq!((net.role(1), net.nodes[&1].term()), (Role::Follower, 2));
    net.campaign(1);
    assert_eq!((net.role(1), net.nodes[&1].term()), (Role::Leader, 3));
    for id in voters {
        assert_eq!(net.nodes[&id].log(), [(1, 1), (2, 3)], "log of {id}");
    }
}

#[test]
fn leader_election_overwrite_newer_logs() {
    overwrite_newer_logs(false);
}

#[test]
fn leader_election_overwrite_newer_logs_with_pre_vote() {
    overwrite_newer_logs(true);
}

#[test]
fn dueling_candidates() {
    let mut net = Network::of(3);
    net.cut(1, 3);
    net.start_campaign(1);
    net.settle();
    net.campaign(3);
    // Node 1 has its own vote and that of 2; node 3 has its own and a refusal of 2.
    assert_eq!(net.role(1), Role::Leader);
    assert_eq!(net.role(3), Role::Candidate);
    net.heal();
    // Node 3 disturbs the leader with a higher term, but its log is too short to win.
    net.campaign(3);
    for (id, log, commit) in [(1, vec![(1, 1)], 1), (2, vec![(1, 1)], 1), (3, vec![], 0)] {
        let node = &net.nodes[&id];
        assert_eq!((node.role(), node.term()), (Role::Follower, 2), "node {id}");
        assert_eq!((node.log(), node.commit()), (log, commit), "node {id}");
    }
}

#[test]
fn dueling_pre_candidates() {
    let mut net = Network::with(
        (1..=3)
            .map(|id| Config {
                pre_vote: true,
                ..config(id)
            })
            .map(|config| Some(Node::new(config, Disk::with_voters(&[1, 2, 3]))))
            .collect(),
    );
    net.cut(1, 3);
    net.campaign(1);
    net.campaign(3);
    assert_eq!((net.role(1), net.role(3)), (Role::Leader, Role::Follower));
    net.heal();
    // This time nobody is disturbed.
    net.campaign(3);
    for (id, role) in [(1, Role::Leader), (2, Role::Follower), (3, Role::Follower)] {
        assert_eq!(
            (net.role(id), net.nodes[&id].term()),
            (role, 1),
            "node {id}"
        );
    }
}

#[test]
fn candidate_concede() {
    let mut net = Network::of(3);
    net.isolate(1);
    net.campaign(1);
    net.campaign(3);
    assert_eq!(net.role(1), Role::Candidate);
    net.heal();
    net.beat(3);
    net.propose(3, "force follower");
    net.beat(3);
    assert_eq!((net.role(1), net.nodes[&1].term()), (Role::Follower, 1));
    for id in 1..=3 {
        assert_eq!(net.nodes[&id].log(), [(1, 1), (2, 1)], "log of {id}");
        assert_eq!(
            net.nodes[&id].applied_data(),
            ["force follower"],
            "node {id}"
        );
        assert_eq!(net.commit(id), 2, "commit of {id}");
    }
}

#[test]
fn single_node_candidate() {
    let mut net = Network::of(1);
    net.campaign(1);
    assert_eq!(net.role(1), Role::Leader);
}

#[test]
fn single_node_pre_candidate() {
    let mut net = Network::guarded(1);
    net.campaign(1);
    assert_eq!(net.role(1), Role::Leader);
}

#[test]
fn campaign_while_leader() {
    for mut net in [Network::of(1), Network::guarded(1), Network::of(3)] {
        net.campaign(1);
        assert_eq!(net.role(1), Role::Leader);
        let term = net.nodes[&1].term();
        let now = net.now + ELECTION_TIMEOUT;
        // Refused or ignored; either way the leader goes on as it was.
        let _ = net.node(1).raw.campaign(now);
        net.settle();
        assert_eq!((net.role(1), net.nodes[&1].term()), (Role::Leader, term));
    }
}

#[test]
fn split_vote() {
    let voters = [1, 2, 3];
    let nodes = voters
        .iter()
        .map(|&id| Some(Node::at(id, &voters, 1, 0, &[], 0)));
    let mut net = Network::with(nodes.collect());
    net.campaign(1);
    net.isolate(1);
    // Both followers stand at the same moment; each votes for itself and neither wins.
    net.start_campaign(2);
    net.start_campaign(3);
    net.settle();
    assert_eq!(
        [2, 3].map(|id| (net.role(id), net.nodes[&id].term())),
        [(Role::Candidate, 3); 2]
    );
    net.campaign(2);
    assert_eq!((net.role(2), net.nodes[&2].term()), (Role::Leader, 4));
    assert_eq!((net.role(3), net.nodes[&3].term()), (Role::Follower, 4));
}

#[test]
fn stale_vote_answers_do_not_count() {
    let mut node = Node::at(1, &[1, 2, 3], 4, 0, &[], 0);
    node.campaign();
    let _ = node.try_step(vote_answer(2, 1, 4, false));
    assert_eq!(
        node.role(),
        Role::Candidate,
        "a vote of term 4 was counted in term 5"
    );
    let _ = node.try_step(vote_answer(9, 1, 5, false));
    assert_eq!(
        node.role(),
        Role::Candidate,
        "a stranger's vote was counted"
    );
    node.step(vote_answer(2, 1, 5, false));
    assert_eq!(node.role(), Role::Leader);
    node.step(append(3, 1, 6, (0, 0), &[], 0));
    assert_eq!((node.role(), node.term()), (Role::Follower, 6));
}
