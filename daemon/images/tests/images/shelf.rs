//! Loading, building, keeping, removing.

use crate::fixture::{Sample, Store, Tar, chain, gzip};
use bytes::Bytes;
use images::{Build, Images, InUse, Layer, Reference};
use std::collections::BTreeSet;
use std::fs;

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn tar(content: &[u8]) -> Vec<u8> {
    Tar::new().file("a", content).done()
}

fn kubia() -> Build {
    Build::new(&["/kubia"]).layer(Layer::base()).layer(Layer::default().file(
        "/kubia",
        0o755,
        Bytes::from_static(b"program"),
    ))
}

#[tokio::test]
async fn what_docker_saves_can_be_loaded() {
    let sample = Sample::plain(&[tar(b"below"), tar(b"above")]);
    let blob = |digest: &str| sample.blobs[digest].clone();
    let manifest = br#"[{"Config": "c.json", "RepoTags": ["kubia:1", "luksa/kubia:2"],
        "Layers": ["0/layer.tar", "1/layer.tar", "2/layer.tar"]}]"#;
    // The third layer is the first again: old versions store a link for it.
    let config = String::from_utf8(blob(&sample.config)).unwrap();
    let first = crate::fixture::sha256(&tar(b"below"));
    let config = config.replace(r#""diff_ids":["#, &format!(r#""diff_ids":["{first}","#));
    let archive = Tar::new()
        .file("0/layer.tar", &blob(&sample.layers[0]))
        .symlink("1/layer.tar", "../0/layer.tar")
        .file("2/layer.tar", &blob(&sample.layers[1]))
        .file("c.json", config.as_bytes())
        .file("manifest.json", manifest)
        .done();
    let store = Store::new();
    for bytes in [archive.clone(), gzip(&archive)] {
        let path = store.dir.path().join("saved.tar");
        fs::write(&path, bytes).unwrap();
        let image = store.images.load(&path).await.unwrap().remove(0);
        assert_eq!(image.references, [reference("kubia:1"), reference("luksa/kubia:2")]);
        assert_eq!(image.layers[0], image.layers[1]);
        assert_eq!(fs::read(image.layers[2].join("a")).unwrap(), b"above");
        assert_eq!((image.config.user.as_str(), &image.config.cmd[..]), ("1000", &["/a".to_owned()][..]));
        assert_eq!(store.images.list().len(), 1);
    }
}

#[tokio::test]
async fn a_layout_can_be_a_directory_or_an_archive_and_names_its_images() {
    let store = Store::new();
    let sample = Sample::plain(&[tar(b"x")]);
    for (name, expected) in
        [("kubia:1", "kubia:1"), ("localhost:5000/x:2", "localhost:5000/x:2"), ("7", "app:7")]
    {
        let path = store.dir.path().join("app.tar.gz");
        fs::write(&path, gzip(&sample.layout_tar(name))).unwrap();
        store.images.load(&path).await.unwrap();
        let image = store.images.get(&reference(expected)).unwrap();
        assert_eq!(
            (image.id.as_str(), image.digest.as_str()),
            (sample.config.as_str(), sample.manifest.as_str())
        );
        let from_directory = sample.layout(&store.dir.path().join("app"), name);
        assert_eq!(store.images.load(&from_directory).await.unwrap()[0].digest, image.digest);
    }
    assert_eq!(store.images.list().len(), 1);
    assert_eq!(store.images.list()[0].references.len(), 3);
}

#[tokio::test]
async fn a_file_that_holds_no_image_is_refused_by_name() {
    let store = Store::new();
    let path = store.dir.path().join("thing.tar");
    for (bytes, expected) in [
        (tar(b"x"), "thing.tar: neither an OCI layout"),
        (b"text".to_vec(), "read archive"),
        (Tar::new().file("index.json", b"{").done(), "read index.json of"),
        (
            Tar::new().file("manifest.json", br#"[{"Config":"../../etc/passwd","Layers":[]}]"#).done(),
            "is missing",
        ),
    ] {
        fs::write(&path, bytes).unwrap();
        let text = chain(&store.images.load(&path).await.unwrap_err());
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let gone = store.images.load(&store.dir.path().join("gone")).await.unwrap_err();
    assert!(chain(&gone).contains("load images from"), "{gone}");
    let sample = Sample::plain(&[tar(b"x")]);
    let dir = sample.layout(&store.dir.path().join("app"), "app:1");
    fs::write(dir.join("blobs/sha256").join(&sample.layers[0][7..]), "changed").unwrap();
    let text = chain(&store.images.load(&dir).await.unwrap_err());
    assert!(text.contains("content has digest"), "{text}");
}

#[tokio::test]
async fn building_what_is_there_writes_nothing() {
    let store = Store::new();
    let built = store.images.build(&reference("kubia:1"), kubia()).await.unwrap();
    assert_eq!(fs::read(built.layers[1].join("kubia")).unwrap(), b"program");
    assert_eq!(built.config.entrypoint, ["/kubia"]);
    let (before, changes) = (store.listing(), *store.images.changed().borrow());
    let again = store.images.build(&reference("kubia:1"), kubia()).await.unwrap();
    assert_eq!(again, built);
    assert_eq!((store.listing(), *store.images.changed().borrow()), (before, changes));
    let other = kubia().layer(Layer::default().file("/more", 0o644, Bytes::from_static(b"more")));
    let other = store.images.build(&reference("kubia:1"), other).await.unwrap();
    assert_ne!(other.id, built.id);
    assert_eq!(other.layers[..2], built.layers[..]);
}

#[tokio::test]
async fn everything_is_there_again_after_a_crash_and_nothing_else() {
    let store = Store::new();
    let built = store.images.build(&reference("kubia:1"), kubia()).await.unwrap();
    let dir = store.dir.path().join("images");
    fs::create_dir_all(dir.join("tmp/half/etc")).unwrap();
    fs::write(dir.join("tmp/part"), "part of a blob").unwrap();
    // A layer that was lost is made again from its blob.
    fs::remove_dir_all(&built.layers[1]).unwrap();
    let store = store.reopen();
    assert_eq!(store.images.get(&reference("kubia:1")).unwrap(), built);
    assert_eq!(fs::read(built.layers[1].join("kubia")).unwrap(), b"program");
    assert_eq!(fs::read_dir(dir.join("tmp")).unwrap().count(), 0);
    // An image whose blob was lost is not offered, and can be had again.
    fs::remove_file(dir.join("blobs/sha256").join(&built.id[7..])).unwrap();
    let store = store.reopen();
    assert_eq!(store.images.get(&reference("kubia:1")), None);
    assert_eq!(store.images.build(&reference("kubia:1"), kubia()).await.unwrap(), built);
}

#[tokio::test]
async fn a_store_is_open_in_one_place_at_a_time() {
    let store = Store::new();
    let second = Images::open(&store.dir.path().join("images"), &images::Config::default());
    let text = second.map(drop).unwrap_err().to_string();
    assert!(text.contains("is in use by another process"), "{text}");
}

#[tokio::test]
async fn files_go_only_when_no_image_and_no_container_needs_them() {
    let store = Store::new();
    let one = store.load("one:1", &[tar(b"shared"), tar(b"one")]).await.unwrap();
    let two = store.load("two:1", &[tar(b"shared"), tar(b"two")]).await.unwrap();
    assert_eq!(one.layers[0], two.layers[0]);
    let none = InUse::default();
    let freed = store.images.collect(&none).await.unwrap();
    assert_eq!((freed.references.len(), freed.bytes), (0, 0), "loaded images stay");
    store.images.remove(&reference("one:1")).await.unwrap();
    assert_eq!(store.images.get(&reference("one:1")), None);
    let running = InUse { ids: BTreeSet::from([one.id.clone()]), ..InUse::default() };
    store.images.collect(&running).await.unwrap();
    assert!(one.layers[1].exists(), "a container runs on it");
    // Also when the daemon has forgotten the image's name over a restart.
    let store = store.reopen();
    store.images.collect(&running).await.unwrap();
    assert!(one.layers[1].exists(), "a container still runs on it");
    // Or when all that is known is what the container's root is made of.
    let mounted = InUse { layers: one.layers.clone(), ..InUse::default() };
    store.images.collect(&mounted).await.unwrap();
    assert!(one.layers[1].exists(), "its root is made of it");
    let freed = store.images.collect(&none).await.unwrap();
    assert!(freed.bytes > 0);
    assert!(!one.layers[1].exists() && two.layers[0].exists() && two.layers[1].exists());
    let error = store.images.remove(&reference("one:1")).await.unwrap_err();
    assert!(error.to_string().contains("image one:1 is not in the store"), "{error}");
    assert_eq!(store.reopen().images.get(&reference("two:1")).unwrap(), two);
}
