//! `git push` into the node: checked before it is accepted, then its plan and its progress in the push's own output.
//!
//! Invariant: a push with a defect in it moves no ref.
//! Invariant: what a client does not wait for happens all the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use reconcile::chain;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::Error;
use crate::build::Id;
use crate::check;
use crate::diff::{ChangeKind, Diff};
use crate::engine::Engine;
use crate::source::{self, Incoming, Push, PushReader, Pushed, Service, Snapshot, band};
use crate::status::Status;

/// A pack larger than this is not a repository of manifests.
const MOST_PACK: usize = 512 << 20;
/// How long something may look broken before a push calls it failed: a first crash or a missed probe may pass.
const GRACE: Duration = Duration::from_secs(20);
/// Lines of a plan or of defects that are printed.
const MOST_LINES: usize = 200;

/// Where the node's answer goes, in pieces; a client that went away takes no more.
pub type Answer = mpsc::Sender<Vec<u8>>;

/// Who asks, as far as the transport can tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// On this machine.
    pub is_local: bool,
    /// What was given as a password or bearer token.
    pub token: Option<String>,
}

/// Why a request is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    /// No such application, or it is not pushed into.
    NotFound,
    /// A token is wanted, and none or another one was given.
    Token,
    /// Only this machine is served.
    Remote,
    /// The token that the configuration names cannot be read.
    Unreadable(String),
}

impl Engine {
    /// Whether a caller may push into, and fetch from, an application's repository.
    ///
    /// # Errors
    /// Why not.
    pub fn admits(&self, application: &str, caller: &Caller) -> Result<(), Denied> {
        let (_, settings) = self.pushed(application).ok_or(Denied::NotFound)?;
        let Some(secret) = &settings.token else {
            return if caller.is_local { Ok(()) } else { Err(Denied::Remote) };
        };
        let wanted = secret.read().map_err(|error| Denied::Unreadable(chain(&error)))?;
        let given = caller.token.as_deref().unwrap_or_default();
        // Compared without an early end, so that time tells nothing of the token.
        let differences = given.bytes().zip(wanted.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b));
        if given.len() == wanted.len() && differences == 0 { Ok(()) } else { Err(Denied::Token) }
    }

    /// The refs of an application's repository, as a client of a service reads them.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn advertise(&self, application: &str, service: Service) -> Result<Vec<u8>, Error> {
        let (pushed, _) = self.find(application)?;
        let mut refs = pushed.refs()?;
        refs.remove("HEAD");
        let head = refs.contains_key(&pushed.followed).then_some(pushed.followed.as_str());
        Ok(source::advertisement(service, &refs, head))
    }

    /// Answers a fetch.
    ///
    /// # Errors
    /// When there is no such repository, or what is asked for is not in it.
    pub async fn serve_fetch(&self, application: &str, body: Vec<u8>, answer: Answer) -> Result<(), Error> {
        let (pushed, _) = self.find(application)?;
        let shown = pushed.shown();
        let fetch = source::fetch(&body).map_err(|why| Error::Protocol { url: shown.clone(), why })?;
        let served = tokio::task::spawn_blocking(move || {
            pushed.serve(&fetch, &mut |part| answer.blocking_send(part.to_vec()).is_ok())
        });
        let served = served.await.map_err(|_| Error::CutOff("serving a fetch"))?;
        served.map_err(|source| Error::ReadRepository {
            what: "what a client wants".to_owned(),
            repository: shown,
            source,
        })
    }

    /// Takes a push: its bytes from `body`, the answer to `answer`.
    ///
    /// # Errors
    /// When there is no such repository, or the client does not speak Git's protocol.
    pub async fn receive(
        &self,
        application: &str,
        mut body: mpsc::Receiver<Vec<u8>>,
        answer: Answer,
    ) -> Result<(), Error> {
        let (pushed, settings) = self.find(application)?;
        let protocol = |why| Error::Protocol { url: pushed.shown(), why };
        let mut reader = PushReader::default();
        let push = loop {
            match reader.advance().map_err(protocol)? {
                Some(push) => break push,
                None => match body.recv().await {
                    Some(bytes) => reader.lines.push(&bytes),
                    None => return Err(protocol("the push ends in the middle".to_owned())),
                },
            }
        };
        if push.commands.is_empty() {
            // A client asks so whether it may push at all.
            return Ok(());
        }
        let voice = Voice { answer, banded: push.side_band };
        let incoming = match self.unpack(&pushed, &push, reader.lines.rest(), body).await {
            Ok(incoming) => incoming,
            Err(error) => {
                let why = chain(&error);
                let refs = push
                    .commands
                    .iter()
                    .map(|command| (command.name.clone(), Err("not unpacked".to_owned())));
                voice.end(&push, Err(&why), &refs.collect::<Vec<_>>()).await;
                return Ok(());
            }
        };
        let mut results = Vec::new();
        let mut deployed = None;
        for command in &push.commands {
            let result = match (&command.new, command.name == pushed.followed) {
                (Some(new), true) => self.check(application, &pushed, incoming.as_ref(), new, &voice).await,
                (Some(new), false) if command.name.starts_with("refs/heads/") => {
                    whole(&pushed, incoming.as_ref(), new).map(|()| None)
                }
                _ => Ok(None),
            };
            match result {
                Ok(snapshot) => {
                    deployed = deployed.or(snapshot);
                    results.push((command.name.clone(), Ok(())));
                }
                Err(why) => results.push((command.name.clone(), Err(why))),
            }
        }
        // All or nothing: half a push is nobody's wish.
        if results.iter().all(|(_, result)| result.is_ok()) {
            if let Some(snapshot) = &deployed {
                self.foretell(application, snapshot, &voice).await;
            }
            results = land(&pushed, incoming, &push);
        }
        let moved = results.iter().all(|(_, result)| result.is_ok());
        if let (true, Some(snapshot)) = (moved, deployed) {
            self.hurry(application);
            self.follow(application, &snapshot.revision, settings.timeout.duration(), &voice).await;
        } else if moved {
            voice
                .say(&format!("{application} follows {}; nothing is deployed from here", pushed.followed))
                .await;
        }
        voice.end(&push, Ok(()), &results).await;
        Ok(())
    }

    fn find(&self, application: &str) -> Result<(Pushed, crate::config::PushInto), Error> {
        self.pushed(application).ok_or_else(|| Error::NoApplication(application.to_owned()))
    }

    /// Stores the pack apart. Nothing when there is none, as when refs are only deleted.
    async fn unpack(
        &self,
        pushed: &Pushed,
        push: &Push,
        first: Vec<u8>,
        mut body: mpsc::Receiver<Vec<u8>>,
    ) -> Result<Option<Incoming>, Error> {
        if push.commands.iter().all(|command| command.new.is_none()) {
            return Ok(None);
        }
        let failed = |source| Error::Write { path: pushed.dir.clone(), source };
        let incoming = pushed.incoming().map_err(failed)?;
        let mirror = incoming.mirror();
        let (sender, receiver) = mpsc::channel(8);
        let storing = tokio::task::spawn_blocking(move || mirror.store(receiver));
        let mut got = first.len();
        let mut next = Some(first);
        while let Some(bytes) = next {
            // A receiver that is gone has an error of its own to tell.
            let _ = sender.send(bytes).await;
            next = body.recv().await;
            got += next.as_ref().map_or(0, Vec::len);
            if got > MOST_PACK {
                return Err(Error::TooMuch {
                    path: pushed.shown(),
                    most: MOST_PACK,
                    what: "bytes in one push",
                });
            }
        }
        drop(sender);
        let stored = storing.await.map_err(|_| Error::CutOff("storing the pack"))?;
        stored.map_err(|source| Error::ReadRepository {
            what: "the pushed pack".to_owned(),
            repository: pushed.shown(),
            source,
        })?;
        Ok(Some(incoming))
    }

    /// Checks the commit that is to be deployed. Every defect is said with its place.
    async fn check(
        &self,
        application: &str,
        pushed: &Pushed,
        incoming: Option<&Incoming>,
        id: &str,
        voice: &Voice,
    ) -> Result<Option<Arc<Snapshot>>, String> {
        whole(pushed, incoming, id)?;
        let Some(declared) = self.declared(application) else { return Err("it is not declared".to_owned()) };
        let reading = pushed.reading(incoming, id, declared.path.as_deref().unwrap_or("").trim_matches('/'));
        let reading = source::Reading { verify: declared.verify.clone(), ..reading };
        let (namespace, substitute) = (declared.namespace.clone(), declared.substitute.clone());
        let read = tokio::task::spawn_blocking(move || {
            let snapshot = reading.snapshot()?;
            let findings = check::findings(&snapshot, &namespace, substitute);
            Ok::<_, Error>((snapshot, findings))
        });
        let read = read.await.map_err(|_| "checking it was cut off".to_owned())?;
        let (snapshot, findings) = read.map_err(|error| chain(&error))?;
        let lines = findings.defects.iter().map(|defect| format!("error: {defect}"));
        let lines = lines.chain(findings.notices.iter().map(|notice| format!("notice: {notice}")));
        voice.say_all(lines.collect()).await;
        match findings.defects.len() {
            0 => Ok(Some(Arc::new(snapshot))),
            1 => Err("one defect, see above".to_owned()),
            more => Err(format!("{more} defects, see above")),
        }
    }

    /// Says what the commit will change.
    async fn foretell(&self, application: &str, snapshot: &Arc<Snapshot>, voice: &Voice) {
        match self.diff_of(application, Arc::clone(snapshot)).await {
            Ok(diff) => voice.say_all(plan_lines(&diff)).await,
            Err(error) => voice.say(&format!("the plan cannot be told: {}", chain(&error))).await,
        }
    }

    /// Follows a revision until it is healthy or failed, or the time is over.
    async fn follow(&self, application: &str, revision: &str, patience: Duration, voice: &Voice) {
        let end = Instant::now() + patience;
        let mut changed = self.changed();
        let mut said: BTreeMap<Id, String> = BTreeMap::new();
        let mut broken: Option<Instant> = None;
        loop {
            let status = self.status(application).unwrap_or_default();
            if status.source.revision == revision {
                for line in news(&status, &mut said) {
                    voice.say(&line).await;
                }
                match verdict(&status, revision) {
                    Verdict::Done(sentence) => return voice.say(&sentence).await,
                    Verdict::Broken(sentence) => {
                        let since = *broken.get_or_insert_with(Instant::now);
                        if since.elapsed() >= GRACE {
                            return voice.say(&sentence).await;
                        }
                    }
                    Verdict::Going => broken = None,
                }
            }
            let until = broken.map_or(end, |since| end.min(since + GRACE));
            let next = tokio::time::timeout_at(until, changed.changed()).await;
            if Instant::now() >= end {
                let why = if status.health.message.is_empty() {
                    &status.sync.message
                } else {
                    &status.health.message
                };
                let late =
                    format!("not healthy after {}s: {why}; it goes on without you", patience.as_secs());
                return voice.say(&late).await;
            }
            if matches!(next, Ok(Err(_))) || voice.is_gone() {
                return;
            }
        }
    }
}

fn whole(pushed: &Pushed, incoming: Option<&Incoming>, id: &str) -> Result<(), String> {
    if pushed.is_whole(incoming, id) { Ok(()) } else { Err("some of its history is missing".to_owned()) }
}

/// Takes in the objects and moves the refs.
fn land(pushed: &Pushed, incoming: Option<Incoming>, push: &Push) -> Vec<(String, Result<(), String>)> {
    let accepted = incoming.as_ref().map_or(Ok(()), |incoming| pushed.accept(incoming));
    let update = |command: &source::Command| match &accepted {
        Ok(()) => pushed.update(command),
        Err(error) => Err(format!("its objects cannot be stored: {error}")),
    };
    push.commands.iter().map(|command| (command.name.clone(), update(command))).collect()
}

/// What is said to the client.
struct Voice {
    answer: Answer,
    banded: bool,
}

impl Voice {
    async fn say(&self, line: &str) {
        if self.banded {
            let plain: String = line.chars().filter(|c| !c.is_control()).collect();
            // Who does not listen is not told.
            let _ = self.answer.send(band(2, format!("{plain}\n").as_bytes())).await;
        }
    }

    async fn say_all(&self, lines: Vec<String>) {
        let more = lines.len().saturating_sub(MOST_LINES);
        for line in lines.iter().take(MOST_LINES) {
            self.say(line).await;
        }
        if more > 0 {
            self.say(&format!("… and {more} more")).await;
        }
    }

    async fn end(&self, push: &Push, unpacked: Result<(), &str>, refs: &[(String, Result<(), String>)]) {
        if !push.report {
            return;
        }
        let report = source::report(unpacked, refs);
        let mut last = if self.banded { band(1, &report) } else { report };
        if self.banded {
            last.extend_from_slice(b"0000");
        }
        let _ = self.answer.send(last).await;
    }

    fn is_gone(&self) -> bool {
        self.answer.is_closed()
    }
}

fn plan_lines(diff: &Diff) -> Vec<String> {
    let mut lines = Vec::new();
    for change in &diff.changes {
        let (sign, word) = match change.kind {
            ChangeKind::Create => ("+", "created"),
            ChangeKind::Change => ("~", "changed"),
            ChangeKind::Recreate => ("±", "deleted and made anew"),
            ChangeKind::Prune => ("-", "pruned"),
            ChangeKind::Hold => ("=", "kept"),
            ChangeKind::Fail => ("!", "cannot be applied"),
        };
        let mut line = format!("{sign} {} {word}", change.object);
        if !change.reason.is_empty() {
            let _ = write!(line, ": {}", change.reason);
        }
        lines.push(line);
        lines.extend(change.effects.iter().map(|effect| format!("    {}", effect.message)));
    }
    if lines.is_empty() {
        lines.push("nothing changes: live is what the files say".to_owned());
    }
    if !diff.waits.is_empty() {
        lines.push(format!("waits for {}", diff.waits));
    }
    lines
}

/// What changed with the objects since it was said last.
fn news(status: &Status, said: &mut BTreeMap<Id, String>) -> Vec<String> {
    let mut lines = Vec::new();
    for object in &status.objects {
        let sign = match (object.sync.as_str(), object.health.code.as_str()) {
            ("Failed", _) | (_, "Degraded") => "✗",
            ("Synced", "Healthy" | "Suspended") => "✓",
            _ => "…",
        };
        let why = if object.message.is_empty() { &object.health.message } else { &object.message };
        let mut line = format!("{sign} {}", object.id());
        if !why.is_empty() {
            let _ = write!(line, ": {why}");
        }
        let before = said.insert(object.id(), line.clone());
        // What was well from the start is no news.
        let is_news = match &before {
            None => sign != "✓",
            Some(before) => *before != line,
        };
        if is_news {
            lines.push(line);
        }
    }
    lines
}

enum Verdict {
    Done(String),
    Broken(String),
    Going,
}

fn verdict(status: &Status, revision: &str) -> Verdict {
    let short = revision.get(..12).unwrap_or(revision);
    if let Some(quarantined) = status.decisions.quarantined.iter().find(|known| known.revision == revision) {
        return Verdict::Done(format!("✗ {short} is quarantined: {}", quarantined.reason));
    }
    if !status.sync.waits_for.is_empty() {
        return Verdict::Done(format!("{short} waits: {}", status.sync.waits_for));
    }
    if status.sync.revision != revision {
        return Verdict::Going;
    }
    match (status.sync.state.as_str(), status.health.code.as_str()) {
        ("Synced", "Healthy" | "Suspended") => Verdict::Done(format!("✓ {short} is in sync and healthy")),
        ("Failed", _) => Verdict::Broken(format!("✗ {short} failed: {}", status.sync.message)),
        (_, "Degraded") => Verdict::Broken(format!("✗ {short} is not healthy: {}", status.health.message)),
        _ => Verdict::Going,
    }
}
