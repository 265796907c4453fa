//! Named tasks that stop in order, the last started first.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

/// The tasks of one node, or of one test. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    token: CancellationToken,
    running: Arc<Mutex<Vec<Running>>>,
}

#[derive(Debug)]
struct Running {
    name: String,
    token: CancellationToken,
    handle: JoinHandle<()>,
}

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Tasks {
        Tasks::default()
    }

    /// The token that ends with everything: cancelled by `cancel`, and when a task panics.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Starts a task. It gets a token of its own, cancelled when it is this task's turn to stop, and has to return
    /// soon after. A panic is logged and ends the whole node: a room that is gone must not look like one that is idle.
    pub fn spawn<F>(&self, name: impl Into<String>, task: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let name = name.into();
        let token = CancellationToken::new();
        let future = task(token.clone());
        let everything = self.token.clone();
        let logged = name.clone();
        let handle = tokio::spawn(async move {
            let inner = tokio::spawn(future);
            let abort = inner.abort_handle();
            let _end_with_me = AbortOnDrop(abort);
            if let Err(end) = inner.await
                && end.is_panic()
            {
                error!(task = %logged, "task panicked; the node stops");
                everything.cancel();
            }
        });
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|task| !task.handle.is_finished());
        running.push(Running { name, token, handle });
    }

    /// Stops the tasks one by one, the last started first, each with this much time to end. Returns the names of those
    /// that had to be cut off.
    pub async fn stop(&self, patience: Duration) -> Vec<String> {
        let mut stubborn = Vec::new();
        loop {
            let last = self.running.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut task) = last else { break };
            task.token.cancel();
            if tokio::time::timeout(patience, &mut task.handle).await.is_err() {
                warn!(task = %task.name, "task did not stop in time, cut off");
                task.handle.abort();
                stubborn.push(task.name);
            } else {
                debug!(task = %task.name, "task stopped");
            }
        }
        self.token.cancel();
        stubborn
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
