//! Keeping two undos of one attempt apart: the guard of a dead agent may still be at work when the next agent is told
//! to settle the debt.
//!
//! Whoever undoes binds a name in the abstract socket space. It is no file, it vanishes with its owner, and the
//! containers of a pod share it. Two undos at once do no harm where that is not possible: an undo has to be harmless
//! twice.

use crate::agent::processes::guard::end_present;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};

/// The name of an attempt, taken by this process.
#[derive(Debug)]
pub struct Exclusion {
    /// None where the name cannot be used on this machine.
    _socket: Option<OwnedFd>,
}

impl Exclusion {
    /// Takes the name of the attempt with this key; none while another process, or thread, has it.
    pub fn take(key: &str) -> Option<Self> {
        match bind_name(key) {
            Ok(socket) => Some(Exclusion {
                _socket: Some(socket),
            }),
            Err(Errno::ADDRINUSE) => None,
            Err(_) => Some(Exclusion { _socket: None }),
        }
    }

    /// The same, and what is left of whoever had it before is ended: that one may have been killed.
    pub fn take_over(key: &str) -> Option<Self> {
        Exclusion::take(key).inspect(|_| end_present(key))
    }
}

fn bind_name(key: &str) -> Result<OwnedFd, Errno> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let name = format!("sidebike-undo-{key}");
    bind(
        &socket,
        &SocketAddrUnix::new_abstract_name(name.as_bytes())?,
    )?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_once_and_free_again_after_its_owner() {
        let key = crate::agent::backoff::random_id().unwrap();
        let first = Exclusion::take(&key).unwrap();
        assert!(Exclusion::take(&key).is_none());
        assert!(Exclusion::take("another").is_some());
        drop(first);
        assert!(Exclusion::take(&key).is_some());
    }
}
