//! Ports from the kernel, kept for the length of a test.
//!
//! A socket that is bound but does not listen keeps other sockets (those of outgoing
//! connections too) from taking the port while a node is down, and does not hinder the
//! node from listening on it: both sides set SO_REUSEADDR.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A port of 127.0.0.1 that nobody else gets.
#[derive(Debug)]
pub struct ReservedPort {
    port: u16,
    _socket: OwnedFd,
}

impl ReservedPort {
    /// A port that the kernel chooses.
    ///
    /// # Errors
    /// When there is none left.
    pub fn any() -> std::io::Result<Self> {
        Self::bind(0)
    }

    /// The given port; 0: the kernel chooses.
    fn bind(port: u16) -> std::io::Result<Self> {
        let check = |result: libc::c_int| {
            if result < 0 {
                Err(std::io::Error::last_os_error())
            } else {
                Ok(result)
            }
        };
        let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        // SAFETY: plain socket calls on values of this frame; the descriptor is owned from
        // its creation on.
        unsafe {
            let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
            let socket = OwnedFd::from_raw_fd(check(libc::socket(libc::AF_INET, kind, 0))?);
            let on: libc::c_int = 1;
            check(libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_REUSEADDR,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            ))?;
            let mut address: libc::sockaddr_in = std::mem::zeroed();
            address.sin_family = libc::AF_INET as libc::sa_family_t;
            address.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
            address.sin_port = port.to_be();
            check(libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                length,
            ))?;
            let mut bound = length;
            check(libc::getsockname(
                socket.as_raw_fd(),
                (&raw mut address).cast(),
                &raw mut bound,
            ))?;
            Ok(Self {
                port: u16::from_be(address.sin_port),
                _socket: socket,
            })
        }
    }

    /// The port's number.
    pub fn number(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// Ports in a row, the first of which the kernel chooses.
///
/// # Errors
/// When the kernel gives none.
pub fn reserve_consecutive(count: u16) -> std::io::Result<Vec<ReservedPort>> {
    loop {
        let first = ReservedPort::any()?;
        let number = first.number();
        let mut ports = vec![first];
        while ports.len() < usize::from(count) {
            let next = number.checked_add(ports.len() as u16);
            match next.map(ReservedPort::bind) {
                Some(Ok(port)) => ports.push(port),
                _ => break,
            }
        }
        if ports.len() == usize::from(count) {
            return Ok(ports);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_port_can_be_listened_on_again_and_again() {
        let port = ReservedPort::any().unwrap();
        for _ in 0..2 {
            let listener = std::net::TcpListener::bind(port.address()).unwrap();
            std::net::TcpStream::connect(port.address()).unwrap();
            drop(listener);
        }
    }

    #[test]
    fn consecutive_ports_follow_each_other() {
        let ports = reserve_consecutive(5).unwrap();
        for pair in ports.windows(2) {
            assert_eq!(pair[0].number() + 1, pair[1].number());
        }
    }
}
