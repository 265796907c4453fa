//! What hostile and ordinary layers become on disk.

use crate::fixture::{Sample, Store, Tar, chain, gzip};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use tar::EntryType;

#[tokio::test]
async fn nothing_is_ever_written_outside_of_the_layer() {
    let store = Store::new();
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    let out = outside.path().to_str().unwrap();
    let deep = format!("../../../../../../../..{out}/climbed");
    let through = format!("../../../../../../../..{out}");
    let layer = Tar::new()
        .file(&deep, b"x")
        .file(&format!("{out}/absolute"), b"x")
        .symlink("root", "/")
        .file(&format!("root{out}/linked"), b"x")
        .symlink("up", &through)
        .file("up/climbed-by-link", b"x")
        .symlink("over", victim.to_str().unwrap())
        .file("over", b"the link is replaced, not followed")
        .directory("away")
        .symlink("away", out)
        .directory("away/made")
        .done();
    let image = store.load("hostile:1", &[layer]).await.unwrap();
    let inside = image.layers[0].join(out.trim_start_matches('/'));
    for name in ["climbed", "absolute", "linked", "climbed-by-link", "made"] {
        assert!(inside.join(name).exists(), "{name} is inside");
        assert!(!outside.path().join(name).exists(), "{name} is not outside");
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_hard_link_reaches_only_files_of_its_layer() {
    let store = Store::new();
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    for target in [secret.to_str().unwrap(), &format!("../../../../../../..{}", secret.display())] {
        let error =
            store.load("hostile:1", &[Tar::new().hardlink("stolen", target).done()]).await.unwrap_err();
        let text = chain(&error);
        assert!(text.contains("\"stolen\": its hard link target is not in this layer"), "{text}");
    }
    let through =
        Tar::new().symlink("s", outside.path().to_str().unwrap()).hardlink("stolen", "s/secret").done();
    assert!(store.load("hostile:1", &[through]).await.is_err());
    assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1);
    let fine = Tar::new().file("a", b"x").hardlink("b", "/a").symlink("s", "a").hardlink("t", "s").done();
    let image = store.load("fine:1", &[fine]).await.unwrap();
    assert_eq!(fs::metadata(image.layers[0].join("a")).unwrap().nlink(), 2);
    assert!(fs::symlink_metadata(image.layers[0].join("t")).unwrap().is_symlink());
}

#[tokio::test]
async fn owners_modes_times_and_attributes_are_kept() {
    let store = Store::new();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = Tar::new()
        .raw("./", EntryType::Directory, "", 0o711, &[])
        .raw("d/", EntryType::Directory, "", 0o1777, &[])
        .raw("d/su", EntryType::Regular, "", 0o4755, b"x")
        .pax(&[("SCHILY.xattr.security.capability", &capability), ("SCHILY.xattr.user.a", b"b")])
        .file("capable", b"x")
        .pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc"), ("SCHILY.xattr.security.selinux", b"x")])
        .directory("planted")
        .raw("null", EntryType::Char, "", 0o666, &[])
        .raw("sda", EntryType::Block, "", 0o666, &[])
        .raw("pipe", EntryType::Fifo, "", 0o622, &[])
        .done();
    let image = store.load("meta:1", &[layer]).await.unwrap();
    let root = &image.layers[0];
    let mode = |name: &str| fs::symlink_metadata(root.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(""), mode("d"), mode("d/su"), mode("pipe")), (0o711, 0o1777, 0o4755, 0o622));
    let directory = fs::metadata(root.join("d")).unwrap();
    assert_eq!((directory.uid(), directory.gid(), directory.mtime()), (1000, 1001, 1_000_000));
    let xattr = |path: &Path, name: &str| {
        let mut value = vec![0; 64];
        rustix::fs::getxattr(path, name, &mut value).map(|length| value[..length].to_vec()).ok()
    };
    assert_eq!(xattr(&root.join("capable"), "security.capability").unwrap(), capability);
    assert_eq!(xattr(&root.join("capable"), "user.a").unwrap(), b"b");
    assert_eq!(xattr(&root.join("planted"), "trusted.overlay.redirect"), None);
    assert!(!root.join("null").exists() && !root.join("sda").exists());
}

#[tokio::test]
async fn deletions_hide_what_is_below_in_a_real_overlay() {
    let store = Store::new();
    let below = Tar::new()
        .directory("keep")
        .file("keep/a", b"a")
        .file("keep/b", b"b")
        .directory("opaque")
        .file("opaque/old", b"old")
        .directory("gone")
        .file("gone/x", b"x")
        .directory("again")
        .file("again/old", b"old")
        .file("file", b"1")
        .done();
    let above = Tar::new()
        .directory("keep")
        .file("keep/.wh.a", b"")
        .directory("opaque")
        .file("opaque/new", b"new")
        .file("opaque/.wh..wh..opq", b"")
        .file(".wh.gone", b"")
        .file(".wh.again", b"")
        .directory("again")
        .file("again/new", b"new")
        .file("file", b"2")
        .file(".wh.file", b"")
        .file(".wh..wh.plnk", b"")
        .done();
    let image = store.load("deletes:1", &[below, above]).await.unwrap();
    assert!(fs::symlink_metadata(image.layers[1].join("gone")).unwrap().file_type().is_char_device());
    let target = store.dir.path().join("merged");
    fs::create_dir(&target).unwrap();
    let lower = format!("lowerdir={}:{}", image.layers[1].display(), image.layers[0].display());
    let options = std::ffi::CString::new(lower).unwrap();
    rustix::mount::mount("overlay", &target, "overlay", rustix::mount::MountFlags::RDONLY, Some(&*options))
        .unwrap();
    let names = |dir: &str| {
        let entries = fs::read_dir(target.join(dir)).map(|entries| {
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        });
        entries.unwrap_or_default()
    };
    let seen = (names(""), names("keep"), names("opaque"), names("again"));
    let file = fs::read_to_string(target.join("file"));
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(seen.0, ["again", "file", "keep", "opaque"]);
    assert_eq!((seen.1, seen.2, seen.3), (vec!["b".into()], vec!["new".into()], vec!["new".to_owned()]));
    assert_eq!(file.unwrap(), "2");
}

#[tokio::test]
async fn layers_are_read_whatever_compresses_them() {
    let store = Store::new();
    let tar = |name: &str| Tar::new().file(name, b"content").done();
    let layers = [
        (tar("plain"), tar("plain")),
        (tar("gz"), gzip(&tar("gz"))),
        (tar("zst"), zstd::encode_all(&tar("zst")[..], 1).unwrap()),
    ];
    let layout = tempfile::tempdir().unwrap();
    Sample::new(&layers).layout(layout.path(), "mixed:1");
    let image = store.images.load(layout.path()).await.unwrap().remove(0);
    for (layer, name) in image.layers.iter().zip(["plain", "gz", "zst"]) {
        assert_eq!(fs::read(layer.join(name)).unwrap(), b"content");
    }
}

#[tokio::test]
async fn bombs_and_lies_are_refused_and_leave_nothing() {
    let config =
        images::Config { layer_bytes_max: 64 << 10, layer_files_max: 10, ..images::Config::default() };
    let store = Store::with(&config);
    let bomb = Tar::new().file("big", &vec![0; 1 << 20]).done();
    let many = (0..11).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), b"")).done();
    let lie = (Tar::new().file("a", b"told").done(), Tar::new().file("a", b"stored").done());
    let cut = Tar::new().file("a", &[1; 2000]).done();
    let cases = [
        ((bomb.clone(), gzip(&bomb)), "\"big\": more than the limit of 65536 bytes"),
        ((many.clone(), many), "more than the limit of 10 files"),
        (lie, "content has digest"),
        ((cut.clone(), cut[..1000].to_vec()), "unexpected end of file"),
        ((cut.clone(), gzip(&cut)[..60].to_vec()), "unpack layer"),
        ((b"no tar at all".to_vec(), vec![b'x'; 600]), "not a tar header"),
    ];
    for (layer, expected) in cases {
        let layout = tempfile::tempdir().unwrap();
        Sample::new(&[layer]).layout(layout.path(), "bad:1");
        let text = chain(&store.images.load(layout.path()).await.unwrap_err());
        assert!(text.contains(expected), "{expected}: {text}");
        assert!(store.images.get(&"bad:1".parse().unwrap()).is_none());
        assert_eq!(fs::read_dir(store.dir.path().join("images/layers")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(store.dir.path().join("images/tmp")).unwrap().count(), 0);
    }
}
