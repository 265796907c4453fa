//! The time that loops give to plans.

use jiff::Timestamp;
use tokio::time::Instant;

/// Wall time in a node; time that follows tokio's clock, which tests can pause, in a test.
#[derive(Debug, Clone, Copy)]
pub enum Clock {
    /// The machine's clock.
    Wall,
    /// A start time, plus what tokio's clock counted since.
    Tokio {
        /// The time at `started`.
        base: Timestamp,
        /// When the clock was made.
        started: Instant,
    },
}

impl Clock {
    /// A clock that starts at `base` and follows tokio's clock.
    pub fn paused_at(base: Timestamp) -> Clock {
        Clock::Tokio { base, started: Instant::now() }
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        match self {
            Clock::Wall => Timestamp::now(),
            Clock::Tokio { base, started } => *base + started.elapsed(),
        }
    }

    /// The clock as the function that a loop wants.
    pub fn teller(self) -> std::sync::Arc<dyn Fn() -> Timestamp + Send + Sync> {
        std::sync::Arc::new(move || self.now())
    }
}
