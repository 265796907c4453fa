//! Notices that the machine got or lost an address, without looking.
//!
//! Invariant: the thread sleeps until the kernel tells of something, and ends when the notice is dropped.

use crate::netlink::Socket;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Being noticed, until dropped.
pub(crate) struct Notice {
    /// Its other end ends the thread.
    _held: OwnedFd,
}

impl Notice {
    /// Calls `changed` after every change, however many there were meanwhile; in this thread's network namespace.
    pub(crate) fn of_addresses(changed: impl Fn() + Send + 'static) -> io::Result<Notice> {
        let events = Socket::address_events()?;
        let (dropped, held) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        std::thread::Builder::new().name("network-notice".to_owned()).spawn(move || {
            while wait(&events, &dropped) {
                changed();
            }
        })?;
        Ok(Notice { _held: held })
    }
}

/// Waits for an event; false when it is time to end.
fn wait(events: &Socket, dropped: &OwnedFd) -> bool {
    let mut both =
        [PollFd::new(events.as_fd(), PollFlags::POLLIN), PollFd::new(dropped.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut both, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::warn!(%error, "changes of this machine's addresses are not noticed any more");
                return false;
            }
            Ok(_) if both[1].any().unwrap_or(true) => return false,
            Ok(_) => {
                events.discard();
                return true;
            }
        }
    }
}
