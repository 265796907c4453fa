//! Pulling from a registry that lives in the test and misbehaves on demand.

use crate::fixture::{Sample, Store, Tar, chain, gzip, sha256};
use images::{Credentials, Reference};
use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What the registry answers, by path; it remembers what it was asked.
#[derive(Default)]
struct Shelf {
    answers: BTreeMap<String, (u16, Vec<u8>)>,
    /// Announced lengths that differ from what is sent.
    lengths: BTreeMap<String, usize>,
    /// After so many bytes the connection is cut, unless the rest alone is asked for.
    cuts: BTreeMap<String, usize>,
    basic: Option<&'static str>,
    asked: Mutex<Vec<String>>,
}

impl Shelf {
    fn of(sample: &Sample) -> Shelf {
        let mut shelf = Shelf::default();
        for (digest, bytes) in &sample.blobs {
            shelf.answers.insert(format!("/v2/x/blobs/{digest}"), (200, bytes.clone()));
            shelf.answers.insert(format!("/v2/x/manifests/{digest}"), (200, bytes.clone()));
        }
        shelf.answers.insert("/v2/x/manifests/1".into(), (200, sample.blobs[&sample.manifest].clone()));
        shelf
    }

    async fn open(self) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, shelf) = (listener.local_addr().unwrap().to_string(), Arc::new(self));
        let served = shelf.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, served.clone()));
            }
        });
        Registry { address, shelf, task }
    }
}

struct Registry {
    address: String,
    shelf: Arc<Shelf>,
    task: tokio::task::JoinHandle<()>,
}

impl Registry {
    fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.address).parse().unwrap()
    }

    fn asked(&self, part: &str) -> usize {
        self.shelf.asked.lock().unwrap().iter().filter(|path| path.contains(part)).count()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, shelf: Arc<Shelf>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut request, mut line, mut allowed) = (String::new(), String::new(), shelf.basic.is_none());
    let mut from = 0;
    stream.read_line(&mut request).await?;
    while stream.read_line(&mut line).await? > 2 {
        let header = line.to_ascii_lowercase();
        if header.starts_with("authorization: basic") {
            allowed = shelf.basic.is_some_and(|basic| line.trim().ends_with(basic));
        }
        let range = header.strip_prefix("range: bytes=").and_then(|range| range.trim().strip_suffix('-'));
        from = range.map_or(from, |range| range.parse().unwrap());
        line.clear();
    }
    let target = request.split(' ').nth(1).unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default().to_owned();
    shelf.asked.lock().unwrap().push(path.clone());
    let missing = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown","detail":null}]}"#;
    let (status, body) = match (allowed, path.as_str()) {
        (false, _) => (401, Vec::new()),
        (true, "/v2/") => (200, b"{}".to_vec()),
        (true, path) => shelf.answers.get(path).cloned().unwrap_or_else(|| (404, missing.to_vec())),
    };
    let (status, mut body) =
        if from > 0 && status == 200 { (206, body[from..].to_vec()) } else { (status, body) };
    let length = shelf.lengths.get(&path).copied().unwrap_or(body.len());
    let head = format!(
        "HTTP/1.1 {status} x\r\nContent-Length: {length}\r\nConnection: close\r\nContent-Type: {}\r\n\
         WWW-Authenticate: Basic realm=\"test\"\r\n\r\n",
        "application/vnd.oci.image.manifest.v1+json"
    );
    stream.write_all(head.as_bytes()).await?;
    if let (Some(cut), 0) = (shelf.cuts.get(&path), from) {
        body.truncate(*cut);
    }
    stream.write_all(&body).await?;
    stream.flush().await
}

fn provide_crypto() {
    // Another test of this process may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn sample() -> Sample {
    let (below, above) = (Tar::new().file("a", b"below").done(), Tar::new().file("b", b"above").done());
    Sample::new(&[(below.clone(), gzip(&below)), (above.clone(), gzip(&above))])
}

async fn pull(
    shelf: Shelf,
    name: &str,
    auth: Option<Credentials>,
) -> (Store, Result<Arc<images::Image>, String>) {
    provide_crypto();
    let (store, registry) = (Store::new(), shelf.open().await);
    let pulled = store.images.pull(&registry.reference(name), auth).await.map_err(|error| chain(&error));
    (store, pulled)
}

#[tokio::test]
async fn an_image_is_pulled_once_however_many_want_it() {
    provide_crypto();
    let (store, sample) = (Store::new(), sample());
    let registry = Shelf::of(&sample).open().await;
    let reference = registry.reference("x:1");
    let pulls = (0..8).map(|_| store.images.pull(&reference, None));
    let images = futures::future::try_join_all(pulls).await.unwrap();
    assert!(images.iter().all(|image| *image == images[0]));
    assert_eq!(images[0].digest, sample.manifest);
    assert_eq!(fs::read(images[0].layers[1].join("b")).unwrap(), b"above");
    assert_eq!((registry.asked("/manifests/1"), registry.asked("/blobs/")), (1, 3));
    // The next pull asks what the tag means now, and fetches no blob that is here.
    store.images.pull(&reference, None).await.unwrap();
    assert_eq!((registry.asked("/manifests/1"), registry.asked("/blobs/")), (2, 3));
    assert!(store.images.progress().borrow().is_empty());
    let pinned = registry.reference(&format!("x@{}", sample.manifest));
    assert_eq!(store.images.get(&pinned).unwrap().id, images[0].id);
    let freed = store.images.collect(&images::InUse::default()).await.unwrap();
    assert_eq!(freed.references, [reference]);
    assert!(store.images.list().is_empty());
}

#[tokio::test]
async fn a_pull_given_up_at_any_point_does_not_hinder_the_next() {
    provide_crypto();
    let sample = sample();
    for steps in 0..20 {
        let (store, registry) = (Store::new(), Shelf::of(&sample).open().await);
        let reference = registry.reference("x:1");
        {
            let mut given_up = std::pin::pin!(store.images.pull(&reference, None));
            for _ in 0..steps * 10 {
                if futures::poll!(given_up.as_mut()).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        let image = store.images.pull(&reference, None).await.unwrap();
        assert_eq!(fs::read(image.layers[1].join("b")).unwrap(), b"above", "after {steps} steps");
    }
}

#[tokio::test]
async fn the_manifest_of_this_platform_is_chosen_from_an_index() {
    let sample = sample();
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let index = |arch: &str| {
        serde_json::json!({"schemaVersion": 2, "manifests": [
            {"digest": sha256(b"other"), "size": 5, "platform": {"os": "windows", "architecture": arch}},
            {"digest": sample.manifest, "size": 1, "platform": {"os": "linux", "architecture": arch}}]})
        .to_string()
        .into_bytes()
    };
    let mut shelf = Shelf::of(&sample);
    shelf.answers.insert("/v2/x/manifests/many".into(), (200, index(arch)));
    shelf.answers.insert("/v2/x/manifests/foreign".into(), (200, index("s390x")));
    assert_eq!(pull(shelf, "x:many", None).await.1.unwrap().digest, sample.manifest);
    let mut shelf = Shelf::of(&sample);
    shelf.answers.insert("/v2/x/manifests/foreign".into(), (200, index("s390x")));
    let error = pull(shelf, "x:foreign", None).await.1.unwrap_err();
    assert!(error.contains("only for: windows/s390x, linux/s390x"), "{error}");
}

#[tokio::test]
async fn what_is_not_there_is_said_with_the_way_out() {
    let (_, pulled) = pull(Shelf::of(&sample()), "x:2", None).await;
    let error = pulled.unwrap_err();
    assert!(error.starts_with("registry 127.0.0.1:"), "{error}");
    assert!(error.contains("/x:2 not found (404): push it there or `holdfast image load` it"), "{error}");
    let store = Store::new();
    let error = store.images.pull(&"127.0.0.1:1/x:1".parse().unwrap(), None).await.unwrap_err();
    assert!(
        error.to_string().contains("registry 127.0.0.1:1: cannot be reached for image"),
        "{}",
        chain(&error)
    );
}

#[tokio::test]
async fn blobs_that_are_wrong_short_or_too_long_are_refused_and_leave_nothing() {
    let sample = sample();
    let path = format!("/v2/x/blobs/{}", sample.layers[1]);
    let honest = sample.blobs[&sample.layers[1]].clone();
    let mut wrong = honest.clone();
    wrong[10] ^= 1;
    let half = honest[..honest.len() / 2].to_vec();
    let long = [honest.clone(), vec![0; 1 << 16]].concat();
    for (bytes, length, expected) in [
        (wrong.clone(), wrong.len(), "content has digest"),
        (half.clone(), honest.len(), "ended early"),
        (half.clone(), half.len(), "content has digest"),
        (long.clone(), long.len(), "the registry sends more than its"),
    ] {
        let mut shelf = Shelf::of(&sample);
        shelf.answers.insert(path.clone(), (200, bytes));
        shelf.lengths.insert(path.clone(), length);
        let (store, pulled) = pull(shelf, "x:1", None).await;
        let error = pulled.unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(store.images.list().is_empty());
        assert!(!store.dir.path().join("images/blobs/sha256").join(&sample.layers[1][7..]).exists());
    }
}

#[tokio::test]
async fn a_private_registry_wants_the_right_credentials() {
    let sample = sample();
    let private = || Shelf { basic: Some("dTpw"), ..Shelf::of(&sample) };
    let credentials =
        |password: &str| Some(Credentials::Basic { username: "u".into(), password: password.into() });
    assert!(pull(private(), "x:1", credentials("p")).await.1.is_ok());
    for auth in [None, credentials("wrong")] {
        let error = pull(private(), "x:1", auth).await.1.unwrap_err();
        assert!(error.contains("denied: it is private or not there; give credentials"), "{error}");
    }
    provide_crypto();
    let registry = private().open().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let json = format!(r#"{{"auths": {{"{}": {{"auth": "dTpw"}}}}}}"#, registry.address);
    fs::write(file.path(), json).unwrap();
    let config = images::Config { docker_config: file.path().into(), ..images::Config::default() };
    assert!(Store::with(&config).images.pull(&registry.reference("x:1"), None).await.is_ok());
}

#[tokio::test]
async fn a_download_that_breaks_off_goes_on_where_it_was() {
    let sample = sample();
    let path = format!("/v2/x/blobs/{}", sample.layers[1]);
    let mut shelf = Shelf::of(&sample);
    shelf.cuts.insert(path.clone(), 20);
    provide_crypto();
    let (store, registry) = (Store::new(), shelf.open().await);
    let image = store.images.pull(&registry.reference("x:1"), None).await.unwrap();
    assert_eq!(fs::read_to_string(image.layers[1].join("b")).unwrap(), "above");
    assert_eq!(registry.asked(&path), 2, "the rest was asked for, not the whole again");
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_the_registry_when_it_is_of_no_use() {
    let sample = sample();
    provide_crypto();
    let (own, mirror) = (Shelf::of(&sample).open().await, Shelf::of(&sample).open().await);
    let with = |mirrors: Vec<String>| {
        let host = images::Host { name: own.address.clone(), mirrors, ..images::Host::default() };
        Store::with(&images::Config { registry: vec![host], ..images::Config::default() })
    };
    with(vec![mirror.address.clone()]).images.pull(&own.reference("x:1"), None).await.unwrap();
    assert_eq!(own.asked("/manifests/"), 0);
    assert!(mirror.asked("/manifests/") > 0 && mirror.asked("/blobs/") > 0);
    let empty = Shelf::default().open().await;
    with(vec![empty.address.clone()]).images.pull(&own.reference("x:1"), None).await.unwrap();
    assert!(empty.asked("/manifests/") > 0 && own.asked("/manifests/") > 0);
}
