//! Reads of snapshot files that pass by the system's page cache.
//!
//! A file that is sent or checked is read once, from end to end. In the cache it would only take
//! the place of what the engines read, and cost a copy and a page for each 4 KiB. The kernel
//! first writes out what the cache holds of the range, so both ways see the same bytes. A file
//! system may refuse; the caller then reads through the cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use bytes::Bytes;
use nix::fcntl::OFlag;
use rustix::io::{Errno, pread};

/// What places in files, lengths and buffers are aligned to: no disk in use has larger blocks.
const BLOCK_BYTES: usize = 4096;

/// Reads exactly `length` bytes from `offset` on; `None` if the file ends before, or the
/// file system refuses to pass by the cache. Fails as a read does.
pub(super) fn read(path: &Path, offset: u64, length: usize) -> io::Result<Option<Bytes>> {
    let in_block = (offset % BLOCK_BYTES as u64) as usize;
    let wanted = in_block + length;
    let room = wanted.next_multiple_of(BLOCK_BYTES);
    // Not zeroed: the allocator clears a large piece that is used again by giving its pages back,
    // and each of them then costs a fault.
    let mut memory: Vec<u8> = Vec::with_capacity(room + BLOCK_BYTES);
    let start = memory.as_ptr().align_offset(BLOCK_BYTES);
    memory.resize(start, 0);
    let filled = open(OpenOptions::new().read(true), path).and_then(|file| {
        let block = offset - in_block as u64;
        fill(&file, &mut memory.spare_capacity_mut()[..room], block)
    });
    match filled {
        Ok(filled) if filled >= wanted => {
            // SAFETY: so many bytes behind `start` were read from the file.
            unsafe { memory.set_len(start + filled) };
            let read = Bytes::from(memory);
            Ok(Some(read.slice(start + in_block..start + wanted)))
        }
        Ok(_) => Ok(None),
        Err(error) if is_refused(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads until the buffer is full or the file ends; returns the bytes that were read, from the
/// buffer's beginning on.
fn fill(file: &File, buffer: &mut [MaybeUninit<u8>], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match pread(file, &mut buffer[filled..], offset + filled as u64) {
            Ok(([], _)) => break,
            Ok((read, _)) => filled += read.len(),
            Err(Errno::INTR) => {}
            // Behind the end's last block no read is aligned.
            Err(Errno::INVAL) if filled % BLOCK_BYTES != 0 => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(filled)
}

fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.custom_flags(OFlag::O_DIRECT.bits()).open(path)
}

/// True if the file system cannot pass by the cache, or not at this place.
fn is_refused(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of `bytes` bytes of a pattern that no shift leaves as it is.
    fn pattern(bytes: usize) -> Vec<u8> {
        (0..bytes as u32)
            .flat_map(|i| i.to_le_bytes())
            .take(bytes)
            .collect()
    }

    #[test]
    fn any_range_is_read_as_it_is_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let all = pattern(5 * BLOCK_BYTES + 77);
        std::fs::write(&path, &all).unwrap();
        let passes_by = open(OpenOptions::new().read(true), &path).is_ok();
        let places = [
            0,
            1,
            BLOCK_BYTES - 1,
            BLOCK_BYTES,
            3 * BLOCK_BYTES + 5,
            all.len() - 1,
        ];
        for offset in places {
            for length in [1, 77, BLOCK_BYTES, 2 * BLOCK_BYTES + 1, all.len() - offset] {
                let end = offset + length;
                let found = read(&path, offset as u64, length).unwrap();
                if end > all.len() {
                    assert_eq!(found, None, "{offset} + {length}: behind the end");
                } else if let Some(found) = found {
                    assert!(found == all[offset..end], "{offset} + {length}");
                } else {
                    assert!(!passes_by, "{offset} + {length} was not read");
                }
            }
        }
    }

    #[test]
    fn a_file_that_is_absent_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none");
        let kind = |error: io::Error| error.kind();
        assert_eq!(
            read(&path, 0, 9).map_err(kind),
            Err(io::ErrorKind::NotFound)
        );
    }
}
