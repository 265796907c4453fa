//! How fast a server has to send: one that drips is given up like one that is silent.
//!
//! Invariant: no server holds a source for ever without its trouble being told.

use std::time::Duration;

use tokio::time::Instant;

/// Less than this in a whole span is no progress: a server that counts its objects for long still says more.
const LEAST_BYTES: usize = 16 << 10;

/// How long a server is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For its next bytes.
    pub(crate) silence: Duration,
    /// For the first word of an answer, and for each `LEAST_BYTES` of it.
    pub(crate) span: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { silence: Duration::from_secs(60), span: Duration::from_secs(300) }
    }
}

/// The pace of one answer.
#[derive(Debug)]
pub(crate) struct Pace {
    span: Duration,
    since: Instant,
    got: usize,
}

impl Pace {
    pub(crate) fn new(patience: Patience, now: Instant) -> Pace {
        Pace { span: patience.span, since: now, got: 0 }
    }

    /// Counts bytes that came.
    ///
    /// # Errors
    /// When a span has passed with too few of them.
    pub(crate) fn took(&mut self, bytes: usize, now: Instant) -> Result<(), String> {
        self.got = self.got.saturating_add(bytes);
        if now.duration_since(self.since) < self.span {
            return Ok(());
        }
        if self.got < LEAST_BYTES {
            let (got, span) = (self.got, self.span.as_secs());
            return Err(format!(
                "it sent only {got} bytes in {span} s and is given up until it is asked again"
            ));
        }
        (self.since, self.got) = (now, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_drips_is_given_up_and_a_slow_one_is_not() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut slow = Pace::new(Patience::default(), start);
        for minute in 1..600 {
            assert_eq!(slow.took(4 << 10, at(minute * 60)), Ok(()));
        }
        let mut dripping = Pace::new(Patience::default(), start);
        for second in 1..300 {
            assert_eq!(dripping.took(1, at(second)), Ok(()));
        }
        let told = dripping.took(1, at(300)).expect_err("300 bytes in five minutes");
        assert!(told.contains("only 300 bytes in 300 s"), "{told}");
    }
}
