//! kill -9 at any moment: what was acknowledged is there, and no revision comes twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use store::{Config, Durability, Revision, fjall_disk::FjallDisk};

use crate::{Dice, delete, open, put};

const CHILD_DIR: &str = "STORE_CRASH_CHILD_DIR";
const NAME: &str = "crash::nothing_acknowledged_is_lost_and_no_revision_repeats";
const ROUNDS: u64 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_and_no_revision_repeats() {
    if let Ok(dir) = std::env::var(CHILD_DIR) {
        return commit_until_killed(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("store");
    let mut revisions = BTreeSet::new();
    let mut known = BTreeMap::new();
    for round in 0..ROUNDS {
        let lines = run_and_kill(&dir, Dice(round).roll(60));
        for line in &lines {
            learn(line, &mut known, &mut revisions);
        }
        let store = open(FjallDisk::open(&dir).unwrap(), &Config::default());
        let snapshot = store.snapshot();
        assert!(snapshot.revision() >= *revisions.last().unwrap());
        for (key, known) in &mut known {
            match snapshot.get(key) {
                Some(held) => {
                    let fell_back =
                        held.modified < known.revision || known.deleted && held.modified == known.revision;
                    assert!(!fell_back, "{key} of revision {} fell back to {held:?}", known.revision);
                    *known = Known { revision: held.modified, deleted: false, may_be_gone: false };
                }
                None => {
                    assert!(
                        known.deleted || known.may_be_gone,
                        "{key} of revision {} is lost",
                        known.revision
                    );
                    *known = Known { deleted: true, ..*known };
                }
            }
        }
        for entry in snapshot.range("/", None) {
            let expected = format!("{} holds {} ", entry.key, entry.modified);
            assert!(entry.value.starts_with(expected.as_bytes()), "{entry:?}");
        }
        store.close().await;
    }
    assert!(revisions.len() > ROUNDS as usize * 10, "only {} changes in all rounds", revisions.len());
}

/// What the durable answers for a key promise.
struct Known {
    revision: Revision,
    deleted: bool,
    /// A deletion was asked for after that; its answer may have been cut off.
    may_be_gone: bool,
}

/// A line of the child; those of one key come in the order of its changes.
fn learn(line: &str, known: &mut BTreeMap<String, Known>, revisions: &mut BTreeSet<Revision>) {
    let [answer, kind, key, revision] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
    let known =
        known.entry(key.to_owned()).or_insert(Known { revision: 0, deleted: true, may_be_gone: false });
    if answer == "asked" {
        known.may_be_gone |= kind == "delete";
        return;
    }
    let revision: Revision = revision.parse().unwrap();
    assert!(revisions.insert(revision), "revision {revision} was handed out twice");
    if answer == "synced" {
        *known = Known { revision, deleted: kind == "delete", may_be_gone: false };
    }
}

/// Runs this test as a child, kills it some milliseconds after its first line and gives its whole lines.
fn run_and_kill(dir: &Path, after_ms: u64) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    while !text.contains("synced ") {
        assert!(output.read_line(&mut text).unwrap() > 0, "the child ended early: {text}");
    }
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(after_ms));
        child.kill().unwrap();
        child.wait().unwrap();
    });
    std::io::Read::read_to_string(&mut output, &mut text).unwrap();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let is_ours =
        |line: &&str| ["asked ", "synced ", "journalled "].iter().any(|word| line.starts_with(word));
    whole.lines().filter(is_ours).map(str::to_owned).collect()
}

/// Eight committers, each with keys of its own, one change after the other, every answer printed.
async fn commit_until_killed(dir: &Path) {
    let store = open(FjallDisk::open(dir).unwrap(), &Config::default());
    let mut committers = tokio::task::JoinSet::new();
    for committer in 0..8 {
        let store = store.clone();
        committers.spawn(async move {
            let mut dice = Dice(store.revision() + committer);
            loop {
                let key = format!("/core/pods/{committer}/{}", dice.roll(50));
                let durability = [Durability::Synced, Durability::Journalled][usize::from(dice.roll(4) == 0)];
                let deletes = dice.roll(5) == 0 && store.snapshot().get(&key).is_some();
                let change = if deletes {
                    delete(&key, durability)
                } else {
                    let mut change = put(&key, "", durability);
                    let value = store::Template::numbered(format!("{key} holds "), " x".repeat(1000));
                    change.write = store::Write::Put { value, head: 0 };
                    change
                };
                let kind = if deletes { "delete" } else { "put" };
                say(&format!("asked {kind} {key} 0\n"));
                let entry = store.commit(change).await.unwrap();
                let durability = if durability == Durability::Synced { "synced" } else { "journalled" };
                say(&format!("{durability} {kind} {key} {}\n", entry.modified));
            }
        });
    }
    while committers.join_next().await.is_some() {}
}

fn say(line: &str) {
    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
}
