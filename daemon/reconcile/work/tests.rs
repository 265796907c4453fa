#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by panicking")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::Plan;

/// A counter per key that is to reach a goal; every nth effect fails, before or after it was done.
struct Counters {
    goals: BTreeMap<String, u32>,
    live: Mutex<BTreeMap<String, u32>>,
    calls: AtomicUsize,
    fail_every: usize,
    busy: Mutex<BTreeSet<String>>,
}

#[derive(Debug, thiserror::Error)]
#[error("injected")]
struct Injected;

impl Reconciler for Counters {
    type Key = String;
    type View = (u32, u32);
    type Step = u32;
    type Error = Injected;
    const NAME: &'static str = "counters";

    async fn observe(&self, key: &String) -> Result<(u32, u32), Injected> {
        assert!(self.busy.lock().unwrap().insert(key.clone()), "two rounds of {key} at once");
        tokio::task::yield_now().await;
        self.busy.lock().unwrap().remove(key);
        Ok((self.goals[key], self.live.lock().unwrap().get(key).copied().unwrap_or(0)))
    }

    fn plan((goal, live): &(u32, u32), now: Timestamp) -> Plan<u32> {
        if live < goal { Plan::in_turn(vec![live + 1]).again_at(now) } else { Plan::empty() }
    }

    async fn act(&self, key: &String, step: u32) -> Result<(), Injected> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        if call.is_multiple_of(self.fail_every) && call.is_multiple_of(2) {
            return Err(Injected);
        }
        self.live.lock().unwrap().insert(key.clone(), step);
        if call.is_multiple_of(self.fail_every) { Err(Injected) } else { Ok(()) }
    }
}

#[tokio::test(start_paused = true)]
async fn a_loop_with_failing_effects_and_lost_answers_ends_converged() {
    let goals: BTreeMap<String, u32> = (0..20).map(|n| (format!("key-{n}"), n)).collect();
    let counters = Arc::new(Counters {
        goals: goals.clone(),
        live: Mutex::default(),
        calls: AtomicUsize::new(0),
        fail_every: 3,
        busy: Mutex::default(),
    });
    let queue = Queue::new();
    let start = Instant::now();
    let work = Work {
        reconciler: Arc::clone(&counters),
        queue: queue.clone(),
        now: Arc::new(move || Timestamp::UNIX_EPOCH + (Instant::now() - start)),
        at_once: 4,
        backoff: Backoff::default(),
    };
    let tasks = crate::Tasks::new();
    tasks.spawn("counters", |stop| work.run(stop));
    for key in goals.keys() {
        queue.wake(key.clone());
        queue.wake(key.clone());
    }
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(tasks.stop(Duration::from_secs(1)).await.is_empty());
    let live = counters.live.lock().unwrap().clone();
    assert!(
        goals.iter().filter(|(_, goal)| **goal > 0).all(|(key, goal)| live.get(key) == Some(goal)),
        "{live:?}"
    );
}

#[test]
fn waits_double_and_are_capped() {
    let backoff = Backoff::default();
    assert_eq!(backoff.after(1), Duration::from_millis(10));
    assert_eq!(backoff.after(3), Duration::from_millis(40));
    assert_eq!(backoff.after(40), Duration::from_secs(60));
}

/// Notes when it was looked at, and asks to be looked at in a year.
struct Patient(tokio::sync::mpsc::UnboundedSender<()>);

impl Reconciler for Patient {
    type Key = String;
    type View = ();
    type Step = ();
    type Error = Injected;
    const NAME: &'static str = "patient";

    async fn observe(&self, _: &String) -> Result<(), Injected> {
        self.0.send(()).map_err(|_| Injected)
    }

    fn plan(_: &(), now: Timestamp) -> Plan<()> {
        Plan::empty().again_at(now + Duration::from_secs(365 * 24 * 3600))
    }

    async fn act(&self, _: &String, _: ()) -> Result<(), Injected> {
        Ok(())
    }
}

#[tokio::test]
async fn what_waits_is_looked_at_again_when_the_clock_leaps() {
    let (seen, mut looked) = tokio::sync::mpsc::unbounded_channel();
    let queue = Queue::new();
    queue.wake("key".to_owned());
    let work = Work {
        reconciler: Arc::new(Patient(seen)),
        queue,
        now: Arc::new(Timestamp::now),
        at_once: 1,
        backoff: Backoff::default(),
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(work.run(stop.clone()));
    looked.recv().await.unwrap();
    // The round may not have ended yet: then its wait begins after this leap, and another is needed.
    let mut again = None;
    while again.is_none() {
        crate::leapt();
        again = tokio::time::timeout(Duration::from_millis(20), looked.recv()).await.ok();
    }
    stop.cancel();
    running.await.unwrap();
}
