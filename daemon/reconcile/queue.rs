//! Wakes on their way to a loop: a set of keys, each at most once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The handle by which anything wakes a loop. Cheap to clone; waking never blocks and never fails.
#[derive(Debug)]
pub struct Queue<K> {
    shared: Arc<Shared<K>>,
}

#[derive(Debug)]
struct Shared<K> {
    keys: Mutex<BTreeSet<K>>,
    arrived: Notify,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Queue { shared: Arc::clone(&self.shared) }
    }
}

impl<K: Ord> Default for Queue<K> {
    fn default() -> Self {
        Queue { shared: Arc::new(Shared { keys: Mutex::new(BTreeSet::new()), arrived: Notify::new() }) }
    }
}

impl<K: Ord> Queue<K> {
    /// An empty queue.
    pub fn new() -> Queue<K> {
        Queue::default()
    }

    /// Asks for a round of this key. A key that already waits is not added twice.
    pub fn wake(&self, key: K) {
        if self.keys().insert(key) {
            self.shared.arrived.notify_one();
        }
    }

    /// Waits until at least one key is there and takes all of them. Cancel-safe: keys leave the set only at the return.
    pub(crate) async fn take(&self) -> BTreeSet<K> {
        loop {
            let keys = std::mem::take(&mut *self.keys());
            if !keys.is_empty() {
                return keys;
            }
            self.shared.arrived.notified().await;
        }
    }

    fn keys(&self) -> MutexGuard<'_, BTreeSet<K>> {
        // A panic cannot leave a set of keys half written.
        self.shared.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
