//! The loop that keeps everything true: observe → plan → act, once per key, for ever.
//!
//! Invariant: a wake says which key to look at, never what happened.
//! Invariant: of one key never two rounds run at once; a key woken while its round runs gets one more round.
//! Invariant: `plan` is a pure function of the view and the time; only the loop owns a clock.

mod leaps;
mod queue;
mod tasks;
mod work;

use std::fmt::{Debug, Display};
use std::future::Future;

use jiff::Timestamp;

pub use leaps::leapt;
pub use queue::Queue;
pub use tasks::Tasks;
pub use work::{Backoff, Work};

/// What a room keeps true, one key at a time.
///
/// The reconciler never learns why it was woken. An error of `observe` or `act` is retried with the loop's back-off;
/// a plan that is empty means that the key is as it should be.
pub trait Reconciler: Send + Sync + 'static {
    /// Names one thing that is kept true, e.g. a namespace and a name.
    type Key: Ord + Clone + Debug + Display + Send + Sync + 'static;
    /// Everything the plan may look at, as plain data.
    type View: Send + Sync;
    /// One effect with every choice already made.
    type Step: Debug + Send;
    /// What an observation or an effect fails with.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Shown in logs and as the task's name, e.g. `replicaset`.
    const NAME: &'static str;

    /// Reads what there is. Changes nothing.
    fn observe(&self, key: &Self::Key) -> impl Future<Output = Result<Self::View, Self::Error>> + Send;

    /// Decides. No self, no await, no clock, no randomness.
    fn plan(view: &Self::View, now: Timestamp) -> Plan<Self::Step>;

    /// Does exactly what the step says. Doing it twice is the same as once: what is there already, or gone already, is
    /// success.
    fn act(&self, key: &Self::Key, step: Self::Step) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// What is to be done for one key, and when to look again although nothing woke it.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan<S> {
    /// The effects, in order.
    pub steps: Vec<S>,
    /// Whether a step waits for the one before it.
    pub order: Order,
    /// The moment at which the plan would come out differently by time alone (a back-off ends, a deadline passes).
    pub again: Option<Timestamp>,
}

/// How the steps of one plan relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// One after the other; the first failure ends the round.
    InTurn,
    /// All at once; the round fails with the first failure, after all have ended.
    Together,
}

impl<S> Plan<S> {
    /// Everything is as it should be.
    pub fn empty() -> Plan<S> {
        Plan::in_turn(Vec::new())
    }

    /// Steps that build on each other.
    pub fn in_turn(steps: Vec<S>) -> Plan<S> {
        Plan { steps, order: Order::InTurn, again: None }
    }

    /// Steps that know nothing of each other.
    pub fn together(steps: Vec<S>) -> Plan<S> {
        Plan { steps, order: Order::Together, again: None }
    }

    /// Looks again at that time at the latest; of several times the earliest holds.
    pub fn again_at(mut self, at: Timestamp) -> Plan<S> {
        self.look_again(at);
        self
    }

    /// The same for a plan that is being made.
    pub fn look_again(&mut self, at: Timestamp) {
        self.again = Some(self.again.map_or(at, |known| known.min(at)));
    }

    /// Nothing to do now. A plan may be empty and still ask to look again.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

/// An error with all its causes on one line: `attempt: cause: cause of the cause`.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // Some libraries repeat their source in their own words; said once is enough.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    line
}
