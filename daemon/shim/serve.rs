//! The shim's loop: waits for descriptors, answers daemons, pumps logs, buries processes.
//!
//! Invariant: a program's report is read before its end is told, and its last output is in the log before its end is.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Signal, WaitId, WaitIdOptions};

use shim::{Answer, Container, Message, Order, Refusal};

use crate::child::Fail;
use crate::connection::{Connection, Line};
use crate::log::Rest;
use crate::sandbox::{self, Pump, Shim, Waiter, now};

/// What a ready descriptor stands for.
#[derive(Clone)]
enum Source {
    Listener,
    Connection(u64),
    Report((String, u32)),
    Pump((String, u32), usize),
    End((String, u32)),
    ExecReport(u32),
    ExecEnd(u32),
}

/// What a report said.
enum Report {
    Nothing,
    Terminal(OwnedFd),
    Failed(Fail),
    Runs,
}

/// Serves until told to end.
pub(crate) fn until_shutdown(mut shim: Shim) {
    loop {
        let ready = wait(&shim);
        for source in ready {
            step(&mut shim, source);
        }
        if let Some(waiter) = shim.shutdown
            && shim.containers.values().all(|c| c.process.pidfd.is_none())
            && shim.execs.is_empty()
        {
            return end(shim, waiter);
        }
    }
}

fn wait(shim: &Shim) -> Vec<Source> {
    let mut sources: Vec<(Source, BorrowedFd<'_>, PollFlags)> =
        vec![(Source::Listener, shim.listener.as_fd(), PollFlags::IN)];
    for (id, connection) in &shim.connections {
        let out = if connection.is_behind() { PollFlags::OUT } else { PollFlags::empty() };
        sources.push((Source::Connection(*id), connection.as_fd(), PollFlags::IN | out));
    }
    for (key, container) in &shim.containers {
        if let Some(report) = &container.process.report {
            sources.push((Source::Report(key.clone()), report.as_fd(), PollFlags::IN));
        }
        for (index, pump) in container.pumps.iter().enumerate() {
            if let Some(pump) = pump {
                sources.push((Source::Pump(key.clone(), index), pump.fd.as_fd(), PollFlags::IN));
            }
        }
        if let Some(pidfd) = &container.process.pidfd {
            sources.push((Source::End(key.clone()), pidfd.as_fd(), PollFlags::IN));
        }
    }
    for (pid, exec) in &shim.execs {
        if let Some(report) = &exec.process.report {
            sources.push((Source::ExecReport(*pid), report.as_fd(), PollFlags::IN));
        }
        if let Some(pidfd) = &exec.process.pidfd {
            sources.push((Source::ExecEnd(*pid), pidfd.as_fd(), PollFlags::IN));
        }
    }
    let mut fds: Vec<PollFd<'_>> =
        sources.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
    // Before a wait that will last the program is unmapped: what the next event needs comes back from the page cache in
    // microseconds, and an idle shim is charged with the little that waiting takes.
    let busy = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    let quiet = busy.is_ok_and(|ready| ready == 0);
    if quiet && shim.code.let_go_and(|| rustix::event::poll(&mut fds, None)).is_err() {
        return Vec::new();
    }
    let ready = fds.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>();
    sources.into_iter().zip(ready).filter(|(_, ready)| *ready).map(|((source, ..), _)| source).collect()
}

fn step(shim: &mut Shim, source: Source) {
    match source {
        Source::Listener => {
            if let Ok(connection) = shim.listener.accept().and_then(|(stream, _)| Connection::new(stream)) {
                shim.connections.insert(shim.next, connection);
                shim.next += 1;
            }
        }
        Source::Connection(id) => converse(shim, id),
        Source::Report(key) => container_report(shim, &key),
        Source::Pump(key, index) => pump(shim, &key, index),
        Source::End(key) => container_end(shim, &key),
        Source::ExecReport(pid) => exec_report(shim, pid),
        Source::ExecEnd(pid) => exec_end(shim, pid),
    }
}

fn converse(shim: &mut Shim, id: u64) {
    let Some(connection) = shim.connections.get_mut(&id) else { return };
    let lines = connection.flush().and_then(|()| connection.receive());
    let Ok(lines) = lines else {
        shim.connections.remove(&id);
        return;
    };
    for line in lines {
        match line {
            Line::Unknown(request, reason) => {
                let refused = Answer::Refused { refusal: Refusal::Unsupported, reason, code: 0 };
                reply(shim, (id, request), refused);
            }
            Line::Request(request) => {
                let waiter = (id, request.id);
                if let Some(answer) = obey(shim, request.order, waiter) {
                    reply(shim, waiter, answer);
                }
            }
        }
    }
}

/// Does as told; `None` when the answer comes later.
fn obey(shim: &mut Shim, order: Order, waiter: Waiter) -> Option<Answer> {
    match order {
        Order::Hello { .. } => {
            if let Some(connection) = shim.connections.get_mut(&waiter.0) {
                connection.subscribed = true;
            }
            Some(Answer::Hello(shim.state()))
        }
        Order::State => Some(Answer::Hello(shim.state())),
        Order::Start { container } => start(shim, *container, waiter),
        Order::Signal { name, attempt, signal } => Some(signal_container(shim, &(name, attempt), signal)),
        Order::Remove { name, attempt } => Some(remove(shim, &(name, attempt))),
        Order::Exec { name, exec } => shim.exec(&name, &exec, waiter).err().map(failed),
        Order::SignalExec { pid, signal } => Some(match shim.execs.get(&pid) {
            Some(exec) => kill(exec.process.pidfd.as_ref(), signal),
            None => Answer::Done,
        }),
        Order::Resize { name, attempt, width, height } => {
            let pump = shim
                .containers
                .get(&(name, attempt))
                .filter(|c| c.spec.tty)
                .and_then(|c| c.pumps[0].as_ref());
            let Some(pump) = pump else { return Some(not_found()) };
            let size = rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
            let _ = rustix::termios::tcsetwinsize(&pump.fd, size);
            Some(Answer::Done)
        }
        Order::Attach { name, stdin } => shim.attach(&name, stdin, waiter).err().map(failed),
        Order::CloseInput { name } => Some(shim.close_input(&name).map_or_else(failed, |()| Answer::Done)),
        Order::Shutdown => {
            shim.shutdown = Some(waiter);
            let execs = shim.execs.values().map(|e| &e.process);
            for process in shim.containers.values().map(|c| &c.process).chain(execs) {
                kill(process.pidfd.as_ref(), libc::SIGKILL);
            }
            if shim.spec.host_pid || shim.pause.is_some() {
                shim.spec.cgroups.kill(&shim.spec.group());
            }
            None
        }
    }
}

fn start(shim: &mut Shim, spec: Container, waiter: Waiter) -> Option<Answer> {
    if shim.shutdown.is_some() {
        return Some(failed(Fail { reason: "the sandbox is being stopped".to_owned(), code: 128 }));
    }
    if let Some(there) = shim.containers.get(&(spec.name.clone(), spec.attempt)) {
        if there.process.report.is_some() {
            return Some(failed(Fail { reason: "it is being started already".to_owned(), code: 128 }));
        }
        return Some(Answer::Container(there.observed.clone()));
    }
    shim.start(spec, waiter).err().map(failed)
}

/// `SIGKILL` of the first process ends all of its pid namespace; what joined from outside it dies with them. Where the
/// namespace is not the container's own, its cgroup says what belongs to it.
fn signal_container(shim: &Shim, key: &(String, u32), signal: i32) -> Answer {
    let Some(container) = shim.containers.get(key) else { return not_found() };
    if signal == libc::SIGKILL && container.process.pidfd.is_some() && !shim.has_own_pids(&container.spec) {
        shim.spec.cgroups.kill(&shim.group_of(&container.spec));
    }
    kill(container.process.pidfd.as_ref(), signal)
}

fn remove(shim: &mut Shim, key: &(String, u32)) -> Answer {
    let Some(container) = shim.containers.get(key) else { return Answer::Done };
    if container.process.pidfd.is_some() {
        return Answer::Refused { refusal: Refusal::Running, reason: "it still runs".to_owned(), code: 0 };
    }
    let (group, dir) = (shim.group_of(&container.spec), shim.dir_of(&container.spec));
    if let Err(error) = shim.spec.cgroups.remove(&group) {
        return failed(Fail { reason: error.to_string(), code: 0 });
    }
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return failed(Fail { reason: format!("remove {}: {error}", dir.display()), code: 0 });
        }
        _ => {}
    }
    shim.containers.remove(key);
    let _ = shim.save();
    publish(shim, &Message::Removed { name: key.0.clone(), attempt: key.1 });
    Answer::Done
}

fn container_report(shim: &mut Shim, key: &(String, u32)) {
    let Some(container) = shim.containers.get_mut(key) else { return };
    let Some(report) = &container.process.report else { return };
    match receive(report) {
        Report::Nothing => {}
        Report::Terminal(master) => {
            let _ = rustix::io::ioctl_fionbio(&master, true);
            container.pumps[0] = Some(Pump { fd: master, rest: Rest::default() });
        }
        Report::Failed(failure) => {
            let waiter = container.process.waiter.take();
            let pidfd = container.process.pidfd.take();
            let (group, dir) =
                (shim.group_of(&shim.containers[key].spec), shim.dir_of(&shim.containers[key].spec));
            shim.containers.remove(key);
            // It exits next; waiting for it here takes no longer than that.
            if let Some(pidfd) = pidfd {
                let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            }
            let _ = shim.spec.cgroups.remove(&group);
            let _ = std::fs::remove_dir_all(dir);
            if let Some(waiter) = waiter {
                reply(shim, waiter, failed(failure));
            }
        }
        Report::Runs => {
            container.process.report = None;
            container.observed.started_at = now();
            let (observed, waiter) = (container.observed.clone(), container.process.waiter.take());
            let _ = shim.save();
            publish(shim, &Message::Container(observed.clone()));
            if let Some(waiter) = waiter {
                reply(shim, waiter, Answer::Container(observed));
            }
        }
    }
}

fn container_end(shim: &mut Shim, key: &(String, u32)) {
    while shim.containers.get(key).is_some_and(|c| c.process.report.is_some()) {
        container_report(shim, key);
    }
    let Some(container) = shim.containers.get_mut(key) else { return };
    let Some(mut exit) = bury(&mut container.process.pidfd) else { return };
    let count = container.pumps.len();
    let container = shim.containers.get(key).expect("looked up above");
    if !shim.has_own_pids(&container.spec) {
        shim.spec.cgroups.kill(&shim.group_of(&container.spec));
    }
    for index in 0..count {
        pump(shim, key, index);
    }
    let container = shim.containers.get(key).expect("looked up above");
    let group = shim.group_of(&container.spec);
    let oom_kills = shim.spec.cgroups.oom_kills(&group);
    exit.oom_killed = oom_kills > 0;
    let container = shim.containers.get_mut(key).expect("looked up above");
    let now = now();
    for (stream, pump) in ["stdout", "stderr"].into_iter().zip(&mut container.pumps) {
        if let Some(mut pump) = pump.take() {
            container.log.finish(stream, &mut pump.rest, now);
        }
    }
    container.input = None;
    container.observed.message = match exit.signal {
        _ if exit.oom_killed => format!("the kernel killed {oom_kills} of its processes for want of memory"),
        Some(signal) => format!("ended by signal {signal}"),
        None => String::new(),
    };
    container.observed.exit = Some(exit);
    let observed = container.observed.clone();
    let ends = container.hear_the_end(exit);
    // The group's last reader was the line above; should the kernel still hold it, removal comes with the container's.
    let _ = shim.spec.cgroups.remove(&group);
    let _ = shim.save();
    publish(shim, &Message::Container(observed));
    for (connection, end) in ends {
        send(shim, connection, &end);
    }
}

fn pump(shim: &mut Shim, key: &(String, u32), index: usize) {
    let Some(container) = shim.containers.get_mut(key) else { return };
    let stream = if index == 0 { "stdout" } else { "stderr" };
    let mut piece = [0; 8192];
    // As much as a pipe holds, then the others get their turn.
    for _ in 0..8 {
        let Some(pump) = &mut container.pumps[index] else { return };
        match rustix::io::read(&pump.fd, &mut piece) {
            Ok(n) if n > 0 => {
                container.log.write(stream, &mut pump.rest, &piece[..n], now());
                container.tell(index, &piece[..n]);
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            // A terminal whose last program is gone says EIO.
            _ => {
                container.log.finish(stream, &mut pump.rest, now());
                container.pumps[index] = None;
                container.silent(index);
            }
        }
    }
}

fn exec_report(shim: &mut Shim, pid: u32) {
    let Some(exec) = shim.execs.get_mut(&pid) else { return };
    let Some(report) = &exec.process.report else { return };
    match receive(report) {
        Report::Nothing => {}
        Report::Terminal(master) => exec.fds = vec![master],
        Report::Failed(failure) => {
            exec.process.report = None;
            exec.fds.clear();
            if let Some(waiter) = exec.process.waiter.take() {
                reply(shim, waiter, failed(failure));
            }
        }
        Report::Runs => {
            exec.process.report = None;
            let fds = std::mem::take(&mut exec.fds);
            let Some((id, request)) = exec.process.waiter.take() else { return };
            let message = Message::Reply { id: request, answer: Answer::Exec { pid } };
            if let Some(connection) = shim.connections.get_mut(&id)
                && connection.send_with(&message, &fds).is_err()
            {
                shim.connections.remove(&id);
            }
        }
    }
}

fn exec_end(shim: &mut Shim, pid: u32) {
    while shim.execs.get(&pid).is_some_and(|e| e.process.report.is_some()) {
        exec_report(shim, pid);
    }
    let Some(exec) = shim.execs.get_mut(&pid) else { return };
    let Some(exit) = bury(&mut exec.process.pidfd) else { return };
    let connection = exec.connection;
    shim.execs.remove(&pid);
    send(shim, connection, &Message::ExecExit { pid, exit });
}

/// Reads one packet. A child that died without a word (killed on its way) counts as running until its end is seen.
fn receive(report: &OwnedFd) -> Report {
    let mut text = [0; 4096];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut text)];
    let received = rustix::net::recvmsg(report, &mut slices, &mut beside, RecvFlags::CMSG_CLOEXEC);
    let length = match received {
        Ok(message) => message.bytes,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Report::Nothing,
        Err(_) => return Report::Runs,
    };
    let mut fds = beside.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    if let Some(master) = fds.next().and_then(|mut fds| fds.next()) {
        return Report::Terminal(master);
    }
    if length == 0 {
        return Report::Runs;
    }
    let broken =
        |error: serde_json::Error| Fail { reason: format!("its report was cut short: {error}"), code: 128 };
    Report::Failed(serde_json::from_slice(&text[..length]).unwrap_or_else(broken))
}

fn bury(pidfd: &mut Option<OwnedFd>) -> Option<shim::Exit> {
    let fd = pidfd.as_ref()?;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = rustix::process::waitid(WaitId::PidFd(fd.as_fd()), options).ok()??;
    *pidfd = None;
    Some(sandbox::exit_of(status))
}

/// Gone already is success.
fn kill(pidfd: Option<&OwnedFd>, signal: i32) -> Answer {
    let Some(pidfd) = pidfd else { return Answer::Done };
    let Some(named) = Signal::from_named_raw(signal) else {
        return failed(Fail { reason: format!("signal {signal} does not exist"), code: 0 });
    };
    match rustix::process::pidfd_send_signal(pidfd, named) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Answer::Done,
        Err(error) => failed(Fail { reason: format!("send signal {signal}: {error}"), code: 0 }),
    }
}

fn end(mut shim: Shim, waiter: Waiter) {
    let group = shim.spec.group();
    let answer = match shim.spec.cgroups.remove(&group) {
        Ok(()) => Answer::Done,
        Err(error) => failed(Fail { reason: error.to_string(), code: 0 }),
    };
    let _ = std::fs::remove_file(shim.dir.join(shim::SOCKET));
    reply(&mut shim, waiter, answer);
}

fn reply(shim: &mut Shim, (connection, id): Waiter, answer: Answer) {
    send(shim, connection, &Message::Reply { id, answer });
}

fn publish(shim: &mut Shim, message: &Message) {
    shim.connections.retain(|_, connection| !connection.subscribed || connection.send(message).is_ok());
}

fn send(shim: &mut Shim, id: u64, message: &Message) {
    if let Some(connection) = shim.connections.get_mut(&id)
        && connection.send(message).is_err()
    {
        shim.connections.remove(&id);
    }
}

fn failed(failure: Fail) -> Answer {
    let refusal =
        if failure.reason.starts_with("no running container") { Refusal::NotFound } else { Refusal::Failed };
    Answer::Refused { refusal, reason: failure.reason, code: failure.code }
}

fn not_found() -> Answer {
    Answer::Refused { refusal: Refusal::NotFound, reason: "no such container".to_owned(), code: 0 }
}
