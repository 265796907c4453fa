//! Hears of leaps of the wall clock from the kernel: it was set, or the machine woke from sleep.
//!
//! Invariant: between two leaps nothing runs: the timer itself is never due.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

/// A moment that does not come: the year 2200.
const NEVER_SECONDS: i64 = 7_258_118_400;

/// Tells every loop of each leap, until the token is cancelled.
pub(crate) async fn follow(stop: CancellationToken) {
    // Cancel-safe: a token stays cancelled, and nothing is half done between two leaps.
    if let Some(Err(error)) = stop.run_until_cancelled(heard(reconcile::leapt)).await {
        tracing::warn!(%error, "leaps of the clock are not heard of: what is due by the clock may come late after one");
    }
}

#[expect(deprecated, reason = "its successor is unsafe; an OwnedFd keeps the promise that asks for")]
async fn heard(mut leapt: impl FnMut()) -> io::Result<()> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = AsyncFd::new(timerfd_create(TimerfdClockId::Realtime, flags)?)?;
    loop {
        arm(&timer)?;
        let mut ready = timer.readable().await?;
        let mut count = [0; 8];
        match rustix::io::read(&timer, &mut count) {
            // The kernel's word for a clock that was set.
            Err(Errno::CANCELED) => leapt(),
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
    }
}

fn arm(timer: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let never = Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec { tv_sec: NEVER_SECONDS, tv_nsec: 0 },
    };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(timer, flags, &never).map(drop).map_err(io::Error::from)
}
