//! What the server's processes use while the load runs, from `/proc`.

use serde_json::{Value, json};

/// CPU time and memory of some processes at one moment.
#[derive(Debug, Clone)]
pub struct Usage {
    /// User and system time of all together, in seconds.
    pub cpu_seconds: f64,
    /// Resident memory of each, in bytes.
    pub resident_bytes: Vec<u64>,
    /// What all together have caused to be written to disk, in bytes (proc(5), `write_bytes`);
    /// `None` where the kernel does not count it.
    pub written_bytes: Option<u64>,
}

impl Usage {
    /// Looks at the processes; `None` where there are none to look at, or one has ended.
    pub fn of(pids: &[u32]) -> Option<Self> {
        if pids.is_empty() {
            return None;
        }
        let mut usage = Self {
            cpu_seconds: 0.0,
            resident_bytes: Vec::new(),
            written_bytes: Some(0),
        };
        for pid in pids {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            usage.cpu_seconds += cpu_ticks(&stat)? as f64 / ticks_per_second();
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            usage.resident_bytes.push(resident_kib(&status)? * 1024);
            let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
            let written = usage.written_bytes.zip(written_bytes(&io));
            usage.written_bytes = written.map(|(before, more)| before + more);
        }
        Some(usage)
    }

    /// What was used since `before`, for `operations` operations.
    pub fn since(&self, before: &Usage, operations: u64) -> Value {
        let cpu_seconds = self.cpu_seconds - before.cpu_seconds;
        let written = self.written_bytes.zip(before.written_bytes);
        json!({
            "cpu_seconds": cpu_seconds,
            "cpu_us_per_op": cpu_seconds * 1e6 / operations.max(1) as f64,
            "resident_bytes": self.resident_bytes,
            "written_bytes": written.map(|(after, before)| after.saturating_sub(before)),
        })
    }
}

/// User and system time. The name in the second field may hold anything, also brackets.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn resident_kib(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn written_bytes(io: &str) -> Option<u64> {
    let line = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes:"))?;
    line.trim().parse().ok()
}

fn ticks_per_second() -> f64 {
    // SAFETY: asks for a constant of the system and touches no memory of ours.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    // Linux always answers; 100 is what it has been for decades.
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_are_found() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 5 6 20 0 1 0 9 1 2 3";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("7"), None);
        assert_eq!(resident_kib("VmHWM:\t9 kB\nVmRSS:\t  12 kB\n"), Some(12));
        let io = "wchar: 5\nwrite_bytes: 4096\ncancelled_write_bytes: 1\n";
        assert_eq!(written_bytes(io), Some(4096));
        assert_eq!(written_bytes(""), None);
        assert!(Usage::of(&[]).is_none());
    }

    #[test]
    fn the_own_process_uses_something() {
        let pid = std::process::id();
        let before = Usage::of(&[pid]).unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_millis(50);
        while std::time::Instant::now() < until {
            std::hint::spin_loop();
        }
        let after = Usage::of(&[pid, pid]).unwrap();
        assert!(
            after.cpu_seconds > before.cpu_seconds,
            "{after:?} {before:?}"
        );
        assert_eq!(after.resident_bytes.len(), 2);
        assert!(after.resident_bytes[0] > 0);
    }
}
