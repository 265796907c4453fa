//! Leaps of the wall clock: it was set, or the machine slept. Waits are measured by a clock that notices neither.
//!
//! Invariant: after a leap every loop looks again at what it was waiting to look at.

use std::sync::LazyLock;

use tokio::sync::watch;

/// One machine has one clock, so a leap concerns every loop of the process.
static LEAPS: LazyLock<watch::Sender<u64>> = LazyLock::new(|| watch::Sender::new(0));

/// Says that the wall clock leaped.
pub fn leapt() {
    LEAPS.send_modify(|leaps| *leaps += 1);
}

/// Leaps from now on.
pub(crate) fn leaps() -> watch::Receiver<u64> {
    LEAPS.subscribe()
}
