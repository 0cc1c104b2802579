//! Starts and crashes of servers.
//!
//! Start   The service is restored from its checkpoint and the replica begins with what the
//!         disk holds; commit is raised to what the service has applied.
//! Crash   Memory is gone; of the unsynced writes a random prefix survives, and the service
//!         falls back to its checkpoint unless its state happens to have been saved.

use std::collections::BTreeMap;

use rand::Rng;
use strata_raft::{Config, PeerId, RawNode};

use super::disk::{BOOTSTRAP, Image};
use super::faults::Fault;
use super::group::{Event, Group};
use super::options::{ELECTION_TIMEOUT, TICK};
use super::server::Life;
use super::service::Service;
use crate::rules::{Rule, View};

impl Group {
    /// Starts a server that is down, from its disk.
    pub fn start(&mut self, id: PeerId) {
        self.trace(|| format!("{id} starts"));
        let now = self.now;
        let server = self.servers.get_mut(&id).expect("the server exists");
        assert!(server.life.is_none(), "server {id} is up already");
        server.incarnation += 1;
        let disk = server.disk.clone();
        let service = disk.current(|image| Service::restore(&image.checkpoint));
        let applied = service.applied.index;
        disk.tamper(|image| image.hard_state.commit = image.hard_state.commit.max(applied));
        disk.current(|image| self.history.on_start(id, applied, image));
        let hard_state = disk.current(|image| image.hard_state);
        let config = Config {
            id,
            applied,
            election_timeout: ELECTION_TIMEOUT,
            max_bytes_per_message: self.options.bytes_per_message,
            max_inflight_messages: self.options.inflight_messages,
            quiet_after_start: hard_state.term > BOOTSTRAP.term || hard_state.vote != 0,
            seed: self.options.seed ^ (server.incarnation << 32),
            ..Config::default()
        };
        let clock = server.clock;
        let node = match RawNode::new(&config, disk, clock.read(now)) {
            Ok(node) => node,
            Err(error) => {
                let detail = format!("server {id} does not start: {error}");
                return self.history.violate(Rule::Restart, detail);
            }
        };
        let mut life = Life {
            node,
            service,
            unsynced: Default::default(),
            to_apply: Default::default(),
            apply_scheduled: false,
            view: View::default(),
            reads: BTreeMap::new(),
        };
        life.view = life.read_view();
        server.life = Some(life);
        let first_tick = clock
            .simulated(TICK)
            .mul_f64(self.rng.random_range(0.01..1.0));
        self.schedule(first_tick, id, true, Event::Tick);
        self.touch(id);
    }

    /// Stops a server at once. Of its unsynced writes a random prefix survives.
    pub fn crash(&mut self, id: PeerId) {
        let Some(server) = self.servers.get_mut(&id) else {
            return;
        };
        let Some(life) = server.life.take() else {
            return;
        };
        let kept = self.rng.random_range(0..=server.disk.unsynced_batches());
        if self.traced {
            eprintln!("{:9.3} {id} crashes", self.now.as_secs_f64());
        }
        server.disk.crash(kept);
        let survives = self.options.service_may_survive && self.rng.random_bool(0.5);
        let fault = self.options.fault;
        server.disk.tamper(|image| {
            if survives && life.service.applied.index > image.checkpoint.at.index {
                image.checkpoint = std::rc::Rc::new(life.service.checkpoint());
            }
            break_image(fault, image);
        });
        self.untouch(id);
    }
}

/// Applies a planted fault to what a crash has left.
fn break_image(fault: Option<Fault>, image: &mut Image) {
    match fault {
        Some(Fault::ForgetVote) => image.hard_state.vote = 0,
        Some(Fault::LoseSyncedEntries) => {
            let kept = image.entries.len().saturating_sub(3);
            image.entries.truncate(kept);
            let last = image.last_index();
            image.hard_state.commit = image.hard_state.commit.min(last);
        }
        _ => {}
    }
}
