//! Reads the past forward, from a revision on, without ever holding the writer up.
//!
//! Invariant: the cursor only grows; all matching events at or below it were given, none above it.

use std::sync::Arc;

use tokio::sync::watch::Receiver;

use crate::{
    Error, Event, Revision,
    history::{Bucket, Found, Shared, bucket_of},
};

/// Events given at once, so that a late reader does not hold a log for long.
const BATCH: usize = 256;

/// One watcher: where it looks, and up to where it has seen everything.
pub(crate) struct Reader<H> {
    shared: Arc<Shared<H>>,
    prefix: Arc<str>,
    scope: Scope<H>,
    bell: Receiver<()>,
    cursor: Revision,
}

enum Scope<H> {
    One(Arc<Bucket<H>>),
    /// The prefix is too short to lie in one bucket.
    All,
}

impl<H> Reader<H> {
    pub(crate) fn new(shared: Arc<Shared<H>>, prefix: &str, after: Revision) -> Result<Reader<H>, Error<H>> {
        let (scope, bell) = match bucket_of(prefix) {
            "" => (Scope::All, shared.any_bell()),
            name => {
                let bucket = shared.bucket(name);
                let bell = bucket.bell();
                (Scope::One(bucket), bell)
            }
        };
        let reader = Reader { shared, prefix: Arc::from(prefix), scope, bell, cursor: after };
        // Nothing is taken yet; this only refuses what is no longer kept.
        reader.look(reader.shared.horizon(), 0)?;
        Ok(reader)
    }

    pub(crate) async fn next(&mut self) -> Result<Vec<Event<H>>, Error<H>> {
        loop {
            // Read before looking: what was published before the end is then still found.
            let closed = self.shared.is_closed();
            let events = self.take()?;
            if !events.is_empty() {
                return Ok(events);
            }
            if closed || self.bell.changed().await.is_err() {
                return Err(Error::Closed);
            }
        }
    }

    pub(crate) fn progress(&self) -> Revision {
        let horizon = self.shared.horizon();
        match self.look(horizon, 0) {
            Ok((_, false)) => horizon.max(self.cursor),
            Ok((_, true)) | Err(_) => self.cursor,
        }
    }

    /// Takes what is there and moves the cursor past it.
    fn take(&mut self) -> Result<Vec<Event<H>>, Error<H>> {
        let horizon = self.shared.horizon();
        let (events, more) = self.look(horizon, BATCH)?;
        let seen = match events.last() {
            Some(last) if more => last.entry.modified,
            _ => horizon,
        };
        self.cursor = self.cursor.max(seen);
        Ok(events)
    }

    /// At most `limit` events after the cursor and not above `horizon`, in order, and whether there are more.
    fn look(&self, horizon: Revision, limit: usize) -> Result<(Vec<Event<H>>, bool), Error<H>> {
        match &self.scope {
            Scope::One(bucket) => self.find(bucket, horizon, limit),
            Scope::All => {
                if self.cursor < self.shared.start() {
                    return Err(self.compacted(self.shared.start()));
                }
                let (mut all, mut more) = (Vec::new(), false);
                for bucket in self.shared.buckets() {
                    let (events, cut_off) = self.find(&bucket, horizon, limit)?;
                    all.extend(events);
                    more |= cut_off;
                }
                all.sort_unstable_by_key(|event| event.entry.modified);
                // What lies behind the limit in one bucket lies behind it in the merged order too.
                more |= all.len() > limit;
                all.truncate(limit);
                Ok((all, more))
            }
        }
    }

    fn find(
        &self,
        bucket: &Bucket<H>,
        horizon: Revision,
        limit: usize,
    ) -> Result<(Vec<Event<H>>, bool), Error<H>> {
        match bucket.find(&self.prefix, self.cursor, horizon, limit) {
            Found::Events { events, more } => Ok((events, more)),
            Found::Compacted { oldest } => Err(self.compacted(oldest)),
        }
    }

    fn compacted(&self, oldest: Revision) -> Error<H> {
        Error::Compacted { prefix: self.prefix.clone(), oldest }
    }
}
