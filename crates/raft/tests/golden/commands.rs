//! The language of the scripts. N, M are nodes; output is whatever the nodes then do.
//!
//! ```text
//! cluster nodes=3 [learners=1] [check-quorum=off] [pre-vote=off] [quiet=on] [inflight=K]
//!         [message-bytes=B] [uncommitted-bytes=B]   fresh nodes 1.. with empty logs
//! given N terms=1,1,2 term=T vote=V commit=C   node N starts from such a disk instead
//! join N             a fresh node N that knows the membership of the script's beginning
//! elect N            campaign and stabilize, telling only the end
//! quietly COMMAND    any command, without its output
//! campaign N         after an election timeout without word from a leader
//! campaign-now N     at once
//! tick K [N]         K ticks on all nodes that are up, or on N alone
//! run K              K times: a tick on all nodes, then everything is delivered
//! pass MS            the clock moves on without a tick
//! propose N DATA...  one entry each
//! fill N DATA K      one entry with K bytes of data that begin with DATA
//! change N [explicit|implicit] +4 ~5 -2      leave N        membership
//! deliver [FILTER]   the first message that fits; `N>M`, a kind, or both
//! deliver-all FILTER all that fit, once
//! stabilize          everything, and all that follows from it
//! lose [FILTER]      all that fit are lost
//! repeat FILTER      the first that fits is put at the end of the queue once more
//! delay FILTER       the first that fits goes to the end of the queue
//! queue              what is on its way
//! cut N M            isolate N            heal            links
//! drop KIND          that kind is lost until `heal`
//! persist N slow     persist N            persist N fast  sync by hand: the oldest write
//! crash N            restart N [quiet]
//! compact N          snapshot at what is applied; the log before it goes
//! snapshot-pending N | snapshot-ready N       whether the snapshot is being made
//! report-snapshot N M finish|failure          unreachable N M
//! transfer N M       read N CONTEXT...    lease N
//! log [N]            status [N]           members [N]        progress N
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use strata_proto::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, HardState,
    Message,
};
use strata_raft::{Config, PeerId, SnapshotStatus};

use crate::render;
use crate::support::disk::Disk;
use crate::support::node::{ELECTION_TICKS, ELECTION_TIMEOUT, START};
use crate::world::World;

/// Runs the commands of one block and returns its output.
pub fn run_block(world: &mut World, commands: &[String]) -> Vec<String> {
    for line in commands.iter().filter(|line| !line.starts_with('#')) {
        println!("  {line}");
        let words: Vec<&str> = line.split_whitespace().collect();
        let (name, args) = words.split_first().expect("a command is not empty");
        run(world, name, args);
    }
    std::mem::take(&mut world.output)
}

fn run(world: &mut World, name: &str, args: &[&str]) {
    match name {
        "cluster" => cluster(world, args),
        "quietly" => {
            let said = world.output.len();
            run(world, args[0], &args[1..]);
            world.output.truncate(said);
        }
        "elect" => {
            run(world, "quietly", &["campaign", args[0]]);
            run(world, "quietly", &["stabilize"]);
            run(world, "status", args);
        }
        "given" => given(world, args),
        "join" | "campaign" | "campaign-now" | "tick" | "pass" => time(world, name, args),
        "propose" | "fill" | "change" | "leave" | "transfer" | "read" => client(world, name, args),
        "deliver" | "deliver-all" | "stabilize" | "lose" | "repeat" | "delay" | "queue" => {
            messages(world, name, args);
        }
        "run" => {
            for _ in 0..id(args[0]) {
                run(world, "tick", &["1"]);
                run(world, "stabilize", &[]);
            }
        }
        "cut" | "isolate" | "heal" | "drop" => links(world, name, args),
        "persist" | "crash" | "restart" | "compact" | "snapshot-pending" | "snapshot-ready" => {
            disks(world, name, args);
        }
        "report-snapshot" | "unreachable" => reports(world, name, args),
        "lease" | "log" | "status" | "members" | "progress" => show(world, name, args),
        _ => panic!("no command is called {name}"),
    }
}

fn id(word: &str) -> PeerId {
    word.parse()
        .unwrap_or_else(|_| panic!("{word} is no number"))
}

fn ids(list: &str) -> Vec<u64> {
    list.split(',')
        .filter(|word| !word.is_empty())
        .map(id)
        .collect()
}

/// The nodes named, or all that are up.
fn named(world: &World, args: &[&str]) -> Vec<PeerId> {
    match args.first() {
        Some(word) => vec![id(word)],
        None => world
            .peers
            .iter()
            .filter(|(_, p)| p.up)
            .map(|(&id, _)| id)
            .collect(),
    }
}

fn cluster(world: &mut World, args: &[&str]) {
    let mut config = Config {
        election_ticks: ELECTION_TICKS,
        election_ticks_max: 2 * ELECTION_TICKS,
        heartbeat_ticks: 1,
        election_timeout: ELECTION_TIMEOUT,
        quiet_after_start: false,
        ..Config::default()
    };
    let (mut nodes, mut learners) = (0, 0);
    for arg in args {
        let (key, value) = arg.split_once('=').expect("key=value");
        match key {
            "nodes" => nodes = id(value),
            "learners" => learners = id(value),
            "check-quorum" => config.check_quorum = value == "on",
            "pre-vote" => config.pre_vote = value == "on",
            "quiet" => config.quiet_after_start = value == "on",
            "inflight" => config.max_inflight_messages = id(value) as usize,
            "message-bytes" => config.max_bytes_per_message = id(value),
            "uncommitted-bytes" => config.max_uncommitted_bytes = id(value),
            _ => panic!("cluster has no {key}"),
        }
    }
    world.config = config;
    world.members = ConfState {
        voters: (1..=nodes).collect(),
        learners: (nodes + 1..=nodes + learners).collect(),
        ..ConfState::default()
    };
    for peer in 1..=nodes + learners {
        let disk = fresh_disk(world);
        world.add_peer(peer, disk);
    }
}

fn fresh_disk(world: &World) -> Disk {
    let disk = Disk::default();
    disk.set_conf_state_durably(world.members.clone());
    disk
}

fn given(world: &mut World, args: &[&str]) {
    let mut terms = Vec::new();
    let mut hard_state = HardState::default();
    for arg in &args[1..] {
        let (key, value) = arg.split_once('=').expect("key=value");
        match key {
            "terms" => terms = ids(value),
            "term" => hard_state.term = id(value),
            "vote" => hard_state.vote = id(value),
            "commit" => hard_state.commit = id(value),
            _ => panic!("given has no {key}"),
        }
    }
    let disk = Disk::with_terms(&[], &terms);
    disk.set_conf_state_durably(world.members.clone());
    disk.set_hard_state(hard_state);
    disk.sync();
    world.add_peer(id(args[0]), disk);
    world.drive(id(args[0]));
}

fn time(world: &mut World, name: &str, args: &[&str]) {
    match name {
        "join" => {
            let disk = fresh_disk(world);
            world.add_peer(id(args[0]), disk);
        }
        "tick" => {
            for _ in 0..id(args[0]) {
                world.pass_tick();
                for peer in named(world, &args[1..]) {
                    world.tick(peer);
                }
            }
        }
        "pass" => world.elapsed += Duration::from_millis(id(args[0])),
        _ => {
            if name == "campaign" {
                world.elapsed += ELECTION_TIMEOUT;
            }
            let now = world.now();
            let peer = id(args[0]);
            if let Err(error) = world.peer(peer).raw.campaign(now) {
                let early = error.to_string().replace(&format!("{now:?}"), "now");
                world.say(format!("{peer} refuses: {}", relative(&early)));
            }
            world.drive(peer);
        }
    }
}

/// Times in errors, counted from the beginning of the script.
fn relative(text: &str) -> String {
    match text.split_once("no campaign before ") {
        Some((before, time)) => {
            let seconds: f64 = time
                .trim_end_matches('s')
                .parse()
                .expect("a time in seconds");
            let millis = ((seconds - START.as_secs_f64()) * 1000.0).round();
            format!("{before}no campaign before {millis} ms")
        }
        None => text.to_string(),
    }
}

fn client(world: &mut World, name: &str, args: &[&str]) {
    let peer = id(args[0]);
    let raw = &mut world.peer(peer).raw;
    let mut refusals = Vec::new();
    match name {
        "propose" => {
            for data in &args[1..] {
                let data = Bytes::copy_from_slice(data.as_bytes());
                refusals.extend(raw.propose(Bytes::new(), data).err());
            }
        }
        "fill" => {
            let data = format!("{:.<width$}", args[1], width = id(args[2]) as usize);
            refusals.extend(raw.propose(Bytes::new(), data.into()).err());
        }
        "change" | "leave" => {
            let change = conf_change(&args[1..]);
            refusals.extend(raw.propose_conf_change(Bytes::new(), change).err());
        }
        "transfer" => raw.transfer_leader(id(args[1])),
        _ => {
            for context in &args[1..] {
                let context = Bytes::copy_from_slice(context.as_bytes());
                refusals.extend(raw.read_index(context).err());
            }
        }
    }
    for refusal in refusals {
        world.say(format!("{peer} refuses: {refusal}"));
    }
    world.drive(peer);
}

fn conf_change(args: &[&str]) -> ConfChangeV2 {
    let mut change = ConfChangeV2::default();
    for arg in args {
        let (change_type, peer) = match arg.split_at(1) {
            ("+", peer) => (ConfChangeType::AddNode, peer),
            ("~", peer) => (ConfChangeType::AddLearnerNode, peer),
            ("-", peer) => (ConfChangeType::RemoveNode, peer),
            _ => {
                change.transition = match *arg {
                    "explicit" => ConfChangeTransition::Explicit.into(),
                    "implicit" => ConfChangeTransition::Implicit.into(),
                    _ => panic!("no change is called {arg}"),
                };
                continue;
            }
        };
        let (change_type, node_id) = (change_type.into(), id(peer));
        change.changes.push(ConfChangeSingle {
            change_type,
            node_id,
        });
    }
    change
}

/// Whether `message` fits all words: `N>M` or a kind.
fn fits(message: &Message, filter: &[&str]) -> bool {
    filter.iter().all(|word| match word.split_once('>') {
        Some((from, to)) => message.from == id(from) && message.to == id(to),
        None => render::kind(message.msg_type()) == *word,
    })
}

fn messages(world: &mut World, name: &str, args: &[&str]) {
    let position = |queue: &VecDeque<Message>| queue.iter().position(|m| fits(m, args));
    match name {
        "deliver" => {
            let at = position(&world.queue).expect("a message that fits");
            let message = world.queue.remove(at).expect("it is in the queue");
            world.deliver(message);
        }
        "deliver-all" | "lose" => {
            let all = std::mem::take(&mut world.queue);
            let (chosen, rest): (VecDeque<_>, VecDeque<_>) =
                all.into_iter().partition(|m| fits(m, args));
            world.queue = rest;
            assert!(!chosen.is_empty(), "no message fits {args:?}");
            for message in chosen {
                if name == "lose" {
                    world.lose(&message);
                } else {
                    world.deliver(message);
                }
            }
        }
        "stabilize" => {
            while let Some(message) = world.queue.pop_front() {
                world.deliver(message);
            }
        }
        "repeat" | "delay" => {
            let at = position(&world.queue).expect("a message that fits");
            let message = world.queue[at].clone();
            if name == "delay" {
                world.queue.remove(at);
            }
            world.queue.push_back(message);
        }
        _ => {
            let lines: Vec<String> = world
                .queue
                .iter()
                .map(|m| render::message(m, ">"))
                .collect();
            world.output.extend(lines);
        }
    }
}

fn links(world: &mut World, name: &str, args: &[&str]) {
    match name {
        "cut" => {
            let (one, other) = (id(args[0]), id(args[1]));
            world.cut.extend([(one, other), (other, one)]);
        }
        "isolate" => {
            let one = id(args[0]);
            let others: Vec<PeerId> = world.peers.keys().copied().collect();
            let links = others
                .iter()
                .flat_map(|&other| [(one, other), (other, one)]);
            world.cut.extend(links);
        }
        "heal" => {
            world.cut.clear();
            world.dropped.clear();
        }
        _ => {
            let kind = format!("Msg{}", args[0]);
            let known =
                (0..=18).filter_map(|n| strata_proto::eraftpb::MessageType::try_from(n).ok());
            let found = known.into_iter().find(|k| format!("{k:?}") == kind);
            world.dropped.push(found.expect("a kind of message"));
        }
    }
}

fn disks(world: &mut World, name: &str, args: &[&str]) {
    let peer = id(args[0]);
    match (name, args.get(1)) {
        ("persist", Some(&"slow")) => world.peer(peer).slow_disk = true,
        ("persist", Some(_)) => {
            world.peer(peer).slow_disk = false;
            while world.sync_one(peer) {}
            world.drive(peer);
        }
        ("persist", None) => {
            assert!(world.sync_one(peer), "nothing to sync on {peer}");
            world.drive(peer);
        }
        ("crash", _) => world.crash(peer),
        ("restart", quiet) => world.restart(peer, quiet.is_some()),
        ("compact", _) => {
            let status = world.status(peer);
            let disk = &world.peer(peer).disk;
            disk.make_snapshot(status.applied, status.conf_state);
            disk.compact(status.applied);
            disk.sync();
        }
        ("snapshot-pending", _) => world.peer(peer).disk.set_snapshot_unavailable(true),
        _ => world.peer(peer).disk.set_snapshot_unavailable(false),
    }
}

fn reports(world: &mut World, name: &str, args: &[&str]) {
    let (peer, about) = (id(args[0]), id(args[1]));
    let raw = &mut world.peer(peer).raw;
    match (name, args.get(2)) {
        ("unreachable", _) => raw.report_unreachable(about),
        (_, Some(&"finish")) => raw.report_snapshot(about, SnapshotStatus::Finish),
        _ => raw.report_snapshot(about, SnapshotStatus::Failure),
    }
    world.drive(peer);
}

fn show(world: &mut World, name: &str, args: &[&str]) {
    for peer in named(world, args) {
        match name {
            "lease" => {
                let until = world.peer(peer).raw.lease_until();
                let now = world.elapsed.as_millis();
                world.say(match until {
                    Some(until) => format!(
                        "{peer} has the lease until {} ms, now {now} ms",
                        until.saturating_sub(START).as_millis()
                    ),
                    None => format!("{peer} has no lease, now {now} ms"),
                });
            }
            "log" => {
                let content = world.peer(peer).disk.content();
                let (index, term) = content.truncated;
                let from = if index > 0 {
                    format!("after {index}@{term} ")
                } else {
                    String::new()
                };
                world.say(format!(
                    "{peer} log {from}{}",
                    render::entries(&content.entries)
                ));
            }
            "status" => {
                let status = world.status(peer);
                world.say(render::status(&status));
            }
            "members" => {
                let members = render::conf_state(&world.status(peer).conf_state);
                world.say(format!("{peer} knows {members}"));
            }
            _ => {
                for (other, progress) in world.status(peer).progress {
                    world.say(render::progress(other, &progress));
                }
            }
        }
    }
}
