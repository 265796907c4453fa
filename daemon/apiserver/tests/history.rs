//! Watchers against a model, through the whole server: writers, watchers, a past that is forgotten, a server that dies.

use std::collections::{BTreeMap, BTreeSet};

use tokio::task::JoinSet;

use super::*;

const LIVES: usize = 3;

/// Numbers that look random and are the same in every run (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % sides
    }
}

/// What one client knows: the objects it was told of, and from which version on it saw what.
struct Watcher {
    selector: &'static str,
    dice: Dice,
    known: BTreeMap<String, u64>,
    /// None when it has to list.
    version: Option<u64>,
    /// Stretches of history: from, to, versions of what was put in between.
    seen: Vec<(u64, u64, Vec<u64>)>,
}

fn version_of(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap().to_owned()
}

/// Creates, changes and deletes; gives the versions that were acknowledged.
async fn write(server: Server, mut dice: Dice) -> BTreeSet<u64> {
    let mut acknowledged = BTreeSet::new();
    for _ in 0..60 {
        let name = format!("m{}", dice.roll(6));
        let label = ["in", "out"][dice.roll(2) as usize];
        let path = format!("{MAPS}/{name}");
        let (status, object) = match dice.roll(4) {
            0 => send(&server, Method::DELETE, &path, Value::Null).await,
            1 => send(&server, Method::POST, MAPS, map(&name, label)).await,
            _ => {
                let data = dice.roll(4).to_string();
                let change = json!({ "metadata": { "labels": { "app": label } }, "data": { "v": data } });
                send(&server, Method::PATCH, &path, change).await
            }
        };
        assert!(matches!(status, 200 | 201 | 404 | 409), "{object}");
        if status < 300 && object["kind"] == "ConfigMap" && object["metadata"]["name"] == name.as_str() {
            acknowledged.insert(version_of(&object));
        }
    }
    acknowledged
}

impl Watcher {
    fn query(&self) -> String {
        if self.selector.is_empty() {
            String::new()
        } else {
            format!("&labelSelector=app%3D{}", self.selector)
        }
    }

    /// Lists, whole or in pages that writers come between.
    async fn list(&mut self, server: &Server) {
        let limit = [0, 1, 3][self.dice.roll(3) as usize];
        self.known.clear();
        let mut next = String::new();
        loop {
            let (status, list) = get(server, &format!("{MAPS}?limit={limit}{}{next}", self.query())).await;
            assert_eq!(status, 200, "{list}");
            let items = list["items"].as_array().unwrap();
            self.known.extend(items.iter().map(|item| (name_of(item), version_of(item))));
            let version = version_of(&list);
            assert!(self.version.is_none_or(|first| first == version), "pages are of one state");
            self.version = Some(version);
            match list["metadata"]["continue"].as_str() {
                Some(token) => next = format!("&continue={token}"),
                None => break,
            }
        }
        let version = self.version.unwrap();
        self.seen.push((version, version, Vec::new()));
    }

    /// Follows the changes until it knows of the object that ends a server's life.
    async fn follow(mut self, server: Server, end: String) -> Watcher {
        while !self.known.contains_key(&end) {
            let Some(version) = self.version else {
                self.list(&server).await;
                continue;
            };
            let path = format!("{MAPS}?watch=true&resourceVersion={version}{}", self.query());
            let request = Request::get(&path).body(kube::client::Body::empty()).unwrap();
            let response = server.door(User::room("test")).oneshot(request).await.unwrap();
            if response.status() != 200 {
                assert_eq!(response.status(), 410);
                self.version = None;
                continue;
            }
            let mut frames = response.into_body().into_data_stream();
            let mut text = Vec::new();
            while let Some(frame) = frames.next().await {
                text.extend_from_slice(&frame.unwrap());
                while let Some(at) = text.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = text.drain(..=at).collect();
                    self.hear(&serde_json::from_slice(&line).unwrap());
                }
                if self.version.is_none() || self.known.contains_key(&end) {
                    break;
                }
                for _ in 0..self.dice.roll(20) {
                    tokio::task::yield_now().await;
                }
            }
        }
        self
    }

    fn hear(&mut self, event: &Value) {
        let object = &event["object"];
        if event["type"] == "ERROR" {
            assert_eq!(object["code"], 410, "{object}");
            self.version = None;
            return;
        }
        let (name, version) = (name_of(object), version_of(object));
        assert!(self.version.is_some_and(|last| last < version), "{name} came late or twice at {version}");
        self.version = Some(version);
        let stretch = self.seen.last_mut().unwrap();
        stretch.1 = version;
        let before = match event["type"].as_str().unwrap() {
            "DELETED" => self.known.remove(&name).is_some(),
            kind => {
                stretch.2.push(version);
                let before = self.known.insert(name.clone(), version).is_some();
                assert_eq!(before, kind == "MODIFIED", "{kind} of {name} at {version}");
                return;
            }
        };
        assert!(before, "{name} was deleted and not known, at {version}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_client_knows_exactly_what_is_there_whatever_the_timing() {
    let mut lists = 0;
    for seed in 0..4 {
        lists += check(seed).await;
    }
    assert!(lists > 4 * 8, "nobody was ever told to list again");
}

/// Gives how often clients listed.
async fn check(seed: u64) -> usize {
    let disk = MemoryDisk::default();
    let config =
        store::Config { history_events: [6, 30, 200, 10_000][seed as usize % 4], ..Default::default() };
    let watcher = |number: usize| Watcher {
        selector: ["", "in", "out", ""][number % 4],
        dice: Dice(seed * 100 + number as u64),
        known: BTreeMap::new(),
        version: None,
        seen: Vec::new(),
    };
    let mut watchers: Vec<Watcher> = (0..8).map(watcher).collect();
    let mut acknowledged = BTreeSet::new();
    let mut last = Value::Null;
    for life in 0..LIVES {
        let store = Store::open(Box::new(disk.clone()), Head::parse, &config).unwrap();
        let server = Server::open(store, &Config::default(), Arc::new(Timestamp::now)).await.unwrap();
        // Both are of the selection of everybody, one after the other.
        let end = |label: &str| format!("end-{life}-{label}");
        let mut following = JoinSet::new();
        for watcher in watchers {
            let end = end(if watcher.selector == "in" { "in" } else { "out" });
            following.spawn(watcher.follow(server.clone(), end));
        }
        let mut writers = JoinSet::new();
        for number in 0..3 {
            writers.spawn(write(server.clone(), Dice(seed * 1000 + (life * 10 + number) as u64)));
        }
        acknowledged.extend(writers.join_all().await.into_iter().flatten());
        for label in ["in", "out"] {
            let (status, made) = send(&server, Method::POST, MAPS, map(&end(label), label)).await;
            assert_eq!(status, 201, "{made}");
            acknowledged.insert(version_of(&made));
        }
        watchers = following.join_all().await;
        last = get(&server, MAPS).await.1;
    }
    for watcher in &watchers {
        let there = last["items"].as_array().unwrap().iter();
        let wanted = there.filter(|item| {
            watcher.selector.is_empty() || item["metadata"]["labels"]["app"] == watcher.selector
        });
        let wanted: BTreeMap<_, _> = wanted.map(|item| (name_of(item), version_of(item))).collect();
        assert_eq!(watcher.known, wanted, "seed {seed}, selector {:?}", watcher.selector);
        for (from, to, versions) in watcher.seen.iter().filter(|_| watcher.selector.is_empty()) {
            let within = |version: &&u64| from < *version && *version <= to;
            let wanted: Vec<u64> = acknowledged.iter().filter(within).copied().collect();
            assert_eq!(*versions, wanted, "seed {seed}, from {from} to {to}");
        }
    }
    watchers.iter().map(|watcher| watcher.seen.len()).sum()
}
