//! Attaching: what a container says goes to those who listen as well as into its log, and what they say to the container.
//!
//! Invariant: a listener that does not read never stops the container: past what its pipe holds it is let go.

use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::PipeFlags;

use shim::{Answer, Exit, Message};

use crate::child::{Fail, Step};
use crate::sandbox::{Running, Shim, Waiter};

/// As much as a listener may be behind, where the kernel lets a pipe be that large.
const PIPE_BYTES: usize = 1 << 20;

/// Somebody who hears a container.
pub(crate) struct Listener {
    /// The connection that hears of the end.
    connection: u64,
    /// Where standard output (or the terminal) and standard error go.
    outputs: [Option<OwnedFd>; 2],
}

impl Shim {
    /// Gives a daemon the ends of pipes that carry what the newest running attempt says from now on, and before them the
    /// terminal, or the standard input where it is open and wanted.
    pub(crate) fn attach(&mut self, name: &str, stdin: bool, waiter: Waiter) -> Result<(), Fail> {
        let container = self.newest(name)?;
        let pid = container.observed.pid;
        let mut fds = Vec::new();
        let terminal = container.pumps[0].as_ref().filter(|_| container.spec.tty).map(|pump| &pump.fd);
        if let Some(input) = terminal.or(container.input.as_ref().filter(|_| stdin)) {
            fds.push(input.try_clone().step(|| "share the standard input".to_owned())?);
        }
        let (read, output) = pipe()?;
        fds.push(read);
        let mut outputs = [Some(output), None];
        if !container.spec.tty {
            let (read, error) = pipe()?;
            fds.push(read);
            outputs[1] = Some(error);
        }
        container.listeners.push(Listener { connection: waiter.0, outputs });
        let message = Message::Reply { id: waiter.1, answer: Answer::Exec { pid } };
        if let Some(connection) = self.connections.get_mut(&waiter.0)
            && connection.send_with(&message, &fds).is_err()
        {
            self.connections.remove(&waiter.0);
        }
        Ok(())
    }

    /// Ends the standard input of the newest running attempt, as the end of a file.
    pub(crate) fn close_input(&mut self, name: &str) -> Result<(), Fail> {
        self.newest(name)?.input = None;
        Ok(())
    }

    fn newest(&mut self, name: &str) -> Result<&mut Running, Fail> {
        let runs =
            |c: &&mut Running| c.spec.name == name && c.observed.exit.is_none() && c.process.report.is_none();
        let found = self.containers.values_mut().rfind(runs);
        found.ok_or_else(|| Fail { reason: format!("no running container {name}"), code: 0 })
    }
}

impl Running {
    /// Passes on what was read from a stream.
    pub(crate) fn tell(&mut self, index: usize, bytes: &[u8]) {
        for listener in &mut self.listeners {
            let Some(output) = &listener.outputs[index] else { continue };
            // A pipe takes all of a small piece or, when it is full, nothing of it.
            if !matches!(rustix::io::write(output, bytes), Ok(n) if n == bytes.len()) {
                listener.outputs[index] = None;
            }
        }
    }

    /// A stream has ended.
    pub(crate) fn silent(&mut self, index: usize) {
        for listener in &mut self.listeners {
            listener.outputs[index] = None;
        }
    }

    /// Who is to hear of the end, each once.
    pub(crate) fn hear_the_end(&mut self, exit: Exit) -> Vec<(u64, Message)> {
        let pid = self.observed.pid;
        let ended = |listener: Listener| (listener.connection, Message::ExecExit { pid, exit });
        std::mem::take(&mut self.listeners).into_iter().map(ended).collect()
    }
}

/// A large pipe whose writing end never waits.
fn pipe() -> Result<(OwnedFd, OwnedFd), Fail> {
    let pair = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from);
    let (read, write) = pair.step(|| "make a pipe".to_owned())?;
    rustix::io::ioctl_fionbio(&write, true).step(|| "set up a pipe".to_owned())?;
    // Users have a limit on how much their pipes hold; the usual size will do then.
    let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE_BYTES);
    Ok((read, write))
}
