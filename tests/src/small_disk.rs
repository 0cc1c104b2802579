//! A small disk of a node's own, which a test fills and makes larger.
//!
//! It is a tmpfs in a mount namespace that a waiting process holds, so that it outlives the
//! node: what was on it when the node ended is there at the next start. The node enters the
//! namespace with `nsenter`; the test sees the files through the waiting process. Nothing of
//! it is seen by the rest of the machine, and it goes with the waiting process.

use nix::sys::signal::Signal;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Bytes that are written to the filler at once, first and last.
const STEPS: [usize; 2] = [1 << 20, 4096];
const FILLER: &str = "filler";

/// A disk of a few MiB, mounted for one node.
#[derive(Debug)]
pub struct SmallDisk {
    holder: Child,
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts an empty disk of so many bytes on a folder, which is made if it is missing.
    /// Must be called on a thread that outlives the disk.
    ///
    /// # Panics
    /// When the system has no mount namespaces for this user.
    pub fn mount(at: &Path, bytes: u64) -> Self {
        std::fs::create_dir_all(at).expect("a folder to mount on");
        let script = format!(
            "mount -t tmpfs -o size={bytes},mode=700 none '{}' && echo mounted && exec sleep infinity",
            at.display()
        );
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        // SAFETY: between fork and exec only one system call is made.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let mut holder = command.spawn().expect("unshare starts");
        let mut said = [0; 8];
        let stdout = holder.stdout.as_mut().expect("stdout is a pipe");
        stdout
            .read_exact(&mut said)
            .expect("a disk is mounted (this needs the right to mount)");
        assert_eq!(&said, b"mounted\n");
        Self {
            holder,
            at: at.to_owned(),
        }
    }

    /// Words in front of a command by which it sees this disk.
    pub fn enter(&self) -> Vec<String> {
        let namespace = format!("--mount=/proc/{}/ns/mnt", self.holder.id());
        vec!["nsenter".into(), namespace]
    }

    /// Where the test finds the disk's files.
    pub fn path(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        let inside = self.at.strip_prefix("/").expect("an absolute path");
        root.join(inside)
    }

    /// Copies the files of a folder to the disk.
    ///
    /// # Panics
    /// When they cannot be copied.
    pub fn copy_from(&self, folder: &Path) {
        let from = folder.join(".");
        let status = Command::new("cp")
            .arg("-a")
            .arg(from)
            .arg(self.path())
            .status();
        assert!(status.expect("cp runs").success(), "the files fit");
    }

    /// Gives the disk another size.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn resize(&self, bytes: u64) {
        let words = self.enter();
        let status = Command::new(&words[0])
            .args(&words[1..])
            .args(["mount", "-o", &format!("remount,size={bytes}")])
            .arg(&self.at)
            .status();
        assert!(
            status.expect("nsenter runs").success(),
            "the size is changed"
        );
    }

    /// Gives the room back that [`SmallDisk::fill_but`] took.
    ///
    /// # Panics
    /// When the filler cannot be removed.
    pub fn empty(&self) {
        match std::fs::remove_file(self.path().join(FILLER)) {
            Err(error) if error.kind() != ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
    }

    /// Takes all room but about so many bytes.
    ///
    /// # Panics
    /// When the filler cannot be written.
    pub fn fill_but(&self, bytes: u64) {
        let path = self.path().join(FILLER);
        let mut file = std::fs::File::create(&path).expect("the filler is made");
        let mut written = 0;
        for step in STEPS {
            let block = vec![0; step];
            loop {
                match file.write(&block) {
                    Ok(0) => break,
                    Ok(count) => written += count as u64,
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("{}: {error}", path.display()),
                }
            }
        }
        file.set_len(written.saturating_sub(bytes))
            .expect("the filler is cut");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A process that ended already is not an error here.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_disk_is_full_and_grows() {
        let folder = tempfile::tempdir().unwrap();
        let disk = SmallDisk::mount(folder.path(), 1 << 20);
        disk.fill_but(64 << 10);
        let file = disk.path().join("file");
        let error = std::fs::write(&file, vec![1; 256 << 10]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        disk.resize(2 << 20);
        std::fs::write(&file, vec![1; 256 << 10]).unwrap();
        disk.fill_but(0);
        disk.empty();
        disk.empty();
        std::fs::write(&file, vec![1; 1 << 20]).unwrap();
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }
}
