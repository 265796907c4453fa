//! Images built from Dockerfiles, their programs run by a stand-in that only writes files.

use crate::fixture::{Store, Tar, chain};
use futures::FutureExt;
use futures::future::BoxFuture;
use images::{Image, News, Program, Ran, Recipe, Runner, Said};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::{Arc, Mutex};

/// Understands `write PATH TEXT`, `fail CODE` and `say TEXT`.
#[derive(Default)]
struct Scribe {
    ran: Mutex<Vec<Program>>,
}

impl Runner for Scribe {
    fn run<'a>(&'a self, program: Program, said: Said<'a>) -> BoxFuture<'a, Result<Ran, String>> {
        let dir = tempfile::tempdir().unwrap();
        let line = program.args.last().unwrap().clone();
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut code = 0;
        match words.as_slice() {
            ["write", path, text] => {
                let path = dir.path().join(path.trim_start_matches('/'));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, text).unwrap();
            }
            ["fail", with] => code = with.parse().unwrap(),
            _ => said(line.as_bytes()),
        }
        self.ran.lock().unwrap().push(program);
        let ran = Ran { code, changes: dir.path().to_owned(), hold: Box::new(dir) };
        futures::future::ready(Ok(ran)).boxed()
    }
}

struct Bench {
    store: Store,
    context: tempfile::TempDir,
    scribe: Scribe,
    news: Mutex<Vec<News>>,
}

impl Bench {
    async fn new(dockerfile: &str, files: &[(&str, &str)]) -> Bench {
        let store = Store::new();
        let base = Tar::new()
            .directory("etc")
            .file("etc/passwd", b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n")
            .file("etc/group", b"root:x:0:\nlogs:x:40:\n")
            .raw("tmp", tar::EntryType::Directory, "", 0o1777, b"")
            .directory("usr/bin")
            .symlink("bin", "usr/bin")
            .done();
        store.load("base:1", &[base]).await.unwrap();
        let context = tempfile::tempdir().unwrap();
        let bench = Bench { store, context, scribe: Scribe::default(), news: Mutex::default() };
        for (name, text) in files {
            bench.write(name, text);
        }
        bench.write("Dockerfile", dockerfile);
        bench
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.context.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn recipe(&self) -> Recipe {
        Recipe {
            context: self.context.path().to_owned(),
            names: vec!["built:1".to_owned()],
            epoch: Some(1_000),
            ..Recipe::default()
        }
    }

    async fn build(&self, recipe: &Recipe) -> Result<Arc<Image>, String> {
        self.news.lock().unwrap().clear();
        let tell = |news| self.news.lock().unwrap().push(news);
        self.store.images.build_file(recipe, &self.scribe, &tell).await.map_err(|error| chain(&error))
    }

    fn cached(&self) -> usize {
        self.news.lock().unwrap().iter().filter(|news| **news == News::Cached).count()
    }
}

/// A file of the image, as the topmost layer that has it shows it.
fn read(image: &Image, path: &str) -> String {
    let here = image.layers.iter().rev().map(|layer| layer.join(path)).find(|path| path.exists());
    fs::read_to_string(here.unwrap_or_else(|| panic!("{path} is in the image"))).unwrap()
}

fn attributes(image: &Image, path: &str) -> (u32, u32, u32) {
    let here = image.layers.iter().rev().map(|layer| layer.join(path)).find(|path| path.exists()).unwrap();
    let meta = fs::symlink_metadata(here).unwrap();
    (meta.mode() & 0o7777, meta.uid(), meta.gid())
}

#[tokio::test]
async fn stages_copies_and_runs_become_layers_and_settings() {
    let text = "ARG BASE=base:1\nFROM $BASE AS tools\nARG WHAT=x\nRUN write /out/tool made-$WHAT\n\
        FROM tools AS unused\nRUN fail 1\n\
        FROM ${BASE}\nENV A=1\nWORKDIR /srv/app\nCOPY --from=tools /out/ bin/\n\
        COPY --chown=web:logs --chmod=0750 a.txt b/ ./\nCOPY c.txt /bin/\nCOPY <<EOF /etc/note\nsays \"$A\"\nEOF\n\
        RUN write /srv/late $A\nUSER web\nEXPOSE 80\nENTRYPOINT [\"/bin/tool\"]\nCMD serve $A\n";
    let files = [
        ("a.txt", "a"),
        ("b/inner.txt", "inner"),
        ("c.txt", "c"),
        ("b/skip.log", "no"),
        (".dockerignore", "**/*.log\n"),
    ];
    let bench = Bench::new(text, &files).await;
    let image = bench.build(&bench.recipe()).await.unwrap();
    // Only a shell puts variables into the words of a RUN; its environment has them.
    assert_eq!(read(&image, "srv/app/bin/tool"), "made-$WHAT");
    assert_eq!(attributes(&image, "srv/app/a.txt"), (0o750, 33, 40));
    assert_eq!(read(&image, "srv/app/inner.txt"), "inner");
    assert!(!image.layers.iter().any(|layer| layer.join("srv/app/skip.log").exists()));
    // Through the link of the base image, not over it.
    assert_eq!(read(&image, "usr/bin/c.txt"), "c");
    assert_eq!(read(&image, "etc/note"), "says \"1\"\n");
    assert_eq!(read(&image, "srv/late"), "$A");
    assert_eq!(image.config.entrypoint, ["/bin/tool"]);
    assert_eq!(image.config.cmd, ["/bin/sh", "-c", "serve $A"]);
    assert_eq!((image.config.user.as_str(), image.config.working_dir.as_str()), ("web", "/srv/app"));
    let ran = bench.scribe.ran.lock().unwrap();
    assert_eq!(ran.len(), 2, "the stage that nothing needs is not built");
    assert_eq!(ran[0].args, ["/bin/sh", "-c", "write /out/tool made-$WHAT"]);
    assert!(ran[0].env.contains(&("WHAT".to_owned(), "x".to_owned())));
    assert_eq!(ran[1].cwd, "/srv/app");
}

#[tokio::test]
async fn the_same_context_gives_the_same_image_and_a_change_only_what_depends_on_it() {
    let text = "FROM base:1\nCOPY a.txt /a\nRUN write /r 1\nCOPY b.txt /b\nRUN write /s 2\n";
    let bench = Bench::new(text, &[("a.txt", "a"), ("b.txt", "b")]).await;
    let first = bench.build(&bench.recipe()).await.unwrap();
    let again = bench.build(&bench.recipe()).await.unwrap();
    assert_eq!((again.digest.as_str(), bench.cached()), (first.digest.as_str(), 4));
    let other = Bench::new(text, &[("a.txt", "a"), ("b.txt", "b")]).await;
    // Another machine, another time.
    fs::File::open(other.context.path().join("a.txt"))
        .unwrap()
        .set_modified(std::time::SystemTime::now())
        .unwrap();
    assert_eq!(other.build(&other.recipe()).await.unwrap().digest, first.digest);
    bench.write("b.txt", "changed");
    let changed = bench.build(&bench.recipe()).await.unwrap();
    assert_eq!(bench.cached(), 2);
    assert_eq!(read(&changed, "b"), "changed");
    let fresh = Recipe { no_cache: true, ..bench.recipe() };
    assert_eq!(bench.build(&fresh).await.unwrap().digest, changed.digest);
    assert_eq!(bench.cached(), 0);
}

#[tokio::test]
async fn a_build_remembers_its_layers_until_told_to_forget() {
    let bench = Bench::new("FROM base:1\nRUN write /r 1\n", &[]).await;
    let image = bench.build(&bench.recipe()).await.unwrap();
    let name = image.references[0].clone();
    let nobody = images::InUse::default();
    bench.store.images.remove(&name).await.unwrap();
    bench.store.images.collect(&nobody).await.unwrap();
    bench.build(&bench.recipe()).await.unwrap();
    assert_eq!(bench.cached(), 1);
    bench.store.images.remove(&name).await.unwrap();
    bench.store.images.evict(&Default::default(), &nobody, images::Builds::Forget).await.unwrap();
    bench.build(&bench.recipe()).await.unwrap();
    assert_eq!(bench.cached(), 0);
}

#[tokio::test]
async fn attributes_of_directories_above_a_copy_stay_those_of_the_image() {
    let bench = Bench::new("FROM base:1\nCOPY a /tmp/a\nCOPY a /new/dir/a\n", &[("a", "a")]).await;
    let image = bench.build(&bench.recipe()).await.unwrap();
    assert_eq!(attributes(&image, "tmp"), (0o1777, 1000, 1001));
    assert_eq!(attributes(&image, "new"), (0o755, 0, 0));
    assert_eq!(attributes(&image, "new/dir/a"), (0o644, 0, 0));
}

#[tokio::test]
async fn sources_never_leave_the_context() {
    let bench = Bench::new("FROM base:1\nCOPY link /stolen\n", &[]).await;
    symlink("/etc/hostname", bench.context.path().join("link")).unwrap();
    let error = bench.build(&bench.recipe()).await.unwrap_err();
    assert!(error.contains("Dockerfile:2: \"link\" is not there"), "{error}");
    bench.write("Dockerfile", "FROM base:1\nCOPY ../../../../../etc/passwd /stolen\n");
    let error = bench.build(&bench.recipe()).await.unwrap_err();
    assert!(error.contains("is not there"), "{error}");
}

#[tokio::test]
async fn an_archive_is_unpacked_by_add_and_copied_by_copy() {
    let bench = Bench::new("FROM base:1\nADD a.tar /d/\nCOPY a.tar /c/\n", &[]).await;
    let archive =
        Tar::new().directory("x").file("x/f", b"f").symlink("x/l", "f").hardlink("x/h", "x/f").done();
    fs::write(bench.context.path().join("a.tar"), crate::fixture::gzip(&archive)).unwrap();
    let image = bench.build(&bench.recipe()).await.unwrap();
    assert_eq!((read(&image, "d/x/f"), read(&image, "d/x/h")), ("f".to_owned(), "f".to_owned()));
    assert!(image.layers.iter().any(|layer| layer.join("c/a.tar").is_file()));
}

#[tokio::test]
async fn what_cannot_be_built_is_told_with_file_and_line() {
    for (text, part) in [
        ("FROM base:1\nRUN fail 3\n", "Dockerfile:2: RUN fail 3 ended with exit code 3"),
        ("FROM base:1\n\nCOPY nothing /x\n", "Dockerfile:3: \"nothing\" is not there"),
        ("FROM base:1\nCOPY --parents a /x\n", "Dockerfile:2: COPY --parents is not served"),
        ("FROM base:1\nRUN --mount=type=ssh x\n", "Dockerfile:2: --mount=type=ssh is not served"),
        (
            "FROM base:1\nADD https://example.org/x /x\n",
            "Dockerfile:2: ADD https://example.org/x: nothing is downloaded",
        ),
        (
            "FROM base:1\nCOPY --chown=nobody a /x\n",
            "Dockerfile:2: --chown=nobody: the image's /etc/passwd has no user",
        ),
        (
            "FROM --platform=linux/s390x base:1\n",
            "Dockerfile:1: --platform=linux/s390x: this machine builds for",
        ),
        ("FROM base:1\nCOPY a a /x\n", "Dockerfile:2: \"/x\" must end with /"),
        ("FROM scratch\nRUN x\n", "Dockerfile:2: there is nothing to run in an empty image"),
        ("FROM Base:1\n", "Dockerfile:1: invalid reference format"),
    ] {
        let bench = Bench::new(text, &[("a", "a")]).await;
        let error = bench.build(&bench.recipe()).await.unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[tokio::test]
async fn arguments_secrets_and_scripts_reach_the_program() {
    let text = "FROM base:1\nARG V=1\nRUN --mount=type=secret,id=key --mount=type=cache,target=/c --network=none say hello\n\
        RUN <<EOF\n#!/bin/ruby\nputs 1\nEOF\n";
    let bench = Bench::new(text, &[]).await;
    let secret = bench.context.path().join("secret");
    let recipe = Recipe {
        arguments: BTreeMap::from([("V".to_owned(), "2".to_owned()), ("TYPO".to_owned(), "x".to_owned())]),
        secrets: BTreeMap::from([("key".to_owned(), secret.clone())]),
        ..bench.recipe()
    };
    bench.build(&recipe).await.unwrap();
    let ran = bench.scribe.ran.lock().unwrap();
    assert!(ran[0].env.contains(&("V".to_owned(), "2".to_owned())));
    assert!(ran[0].env.contains(&("SOURCE_DATE_EPOCH".to_owned(), "1000".to_owned())));
    assert_eq!((ran[0].network, ran[1].network), (false, true));
    assert_eq!(ran[0].mounts[0].source.as_deref(), Some(secret.as_path()));
    assert_eq!((ran[0].mounts[0].target.as_str(), ran[0].mounts[0].read_only), ("/run/secrets/key", true));
    assert!(ran[0].mounts[1].source.as_ref().is_some_and(|dir| dir.is_dir()));
    assert_eq!(ran[1].args, [ran[1].mounts[0].target.as_str()]);
    let news = bench.news.lock().unwrap();
    assert!(news.contains(&News::Output(b"say hello".to_vec())));
    assert!(news.contains(&News::Warning("no ARG TYPO takes the value that was given for it".to_owned())));
}

#[tokio::test]
async fn instructions_left_by_the_base_image_are_done_first() {
    let bench = Bench::new("FROM base:1\nONBUILD COPY a /from-base\nCMD [\"x\"]\n", &[("a", "a")]).await;
    bench.build(&bench.recipe()).await.unwrap();
    bench.write("Dockerfile", "FROM built:1\n");
    let recipe = Recipe { names: vec!["next:1".to_owned()], ..bench.recipe() };
    let image = bench.build(&recipe).await.unwrap();
    assert_eq!(read(&image, "from-base"), "a");
    assert!(image.config.on_build.is_empty());
}
