//! Event TTL: events go an hour after they were told last.
//!
//! Invariant: one timer, set to the moment at which the next event goes; between two of them nothing is read or written.

use std::fmt::{self, Display};
use std::time::Duration;

use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::core::ObjectList;
use reconcile::{Plan, Reconciler};

use crate::Error;
use crate::step::{self, Door, Step};

/// How long an event stays, as by default.
const TTL: Duration = Duration::from_secs(3600);
/// Events that go within this are taken together.
const TOGETHER: Duration = Duration::from_secs(60);

/// All events.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct All;

impl Display for All {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("all")
    }
}

/// Takes old events away.
pub(crate) struct EventTtl(pub(crate) Door);

impl Reconciler for EventTtl {
    type Key = All;
    type View = Vec<Event>;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "event-ttl";

    /// Asked of the cluster and not of a cache: there are many, and they are looked at once an hour.
    async fn observe(&self, _: &All) -> Result<Vec<Event>, Error> {
        let request = Request::get("/api/v1/events").body(Vec::new()).expect("a path of our own");
        let listed: Result<ObjectList<Event>, kube::Error> = self.0.request(request).await;
        let failed = |source| Error::Read { what: "events".to_owned(), source: Box::new(source) };
        listed.map(|list| list.items).map_err(failed)
    }

    fn plan(events: &Vec<Event>, now: Timestamp) -> Plan<Step> {
        plan(events, now)
    }

    async fn act(&self, _: &All, step: Step) -> Result<(), Error> {
        step::act(&self.0, step, &|_| ()).await
    }
}

/// Those that are due, and when to look again: an event that comes meanwhile is not due before that.
pub(crate) fn plan(events: &[Event], now: Timestamp) -> Plan<Step> {
    let due = |event: &Event| told(event).map_or(now, |told| told + TTL);
    let gone: Vec<Step> =
        events.iter().filter(|event| due(event) <= now).map(|event| Step::delete(event, None)).collect();
    let next = events.iter().map(due).filter(|due| *due > now).min();
    let again = next.map_or(now + TTL, |next| (next + TOGETHER).min(now + TTL));
    let steps = if gone.is_empty() { Vec::new() } else { vec![Step::Together(gone)] };
    Plan::in_turn(steps).again_at(again)
}

/// When an event was told last.
fn told(event: &Event) -> Option<Timestamp> {
    let made = event.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let times = [
        event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0),
        event.last_timestamp.as_ref().map(|time| time.0),
        event.event_time.as_ref().map(|time| time.0),
        made,
    ];
    times.into_iter().flatten().max()
}
