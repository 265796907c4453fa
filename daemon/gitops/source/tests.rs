#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reconcile::Tasks;
use tempfile::TempDir;

use super::*;

mod ailing;
mod gpg;

/// What an application sees of its source, and how often it was woken.
struct Seen {
    sourced: watch::Receiver<Arc<Sourced>>,
    wakes: Arc<AtomicUsize>,
}

fn slot() -> (Slot, Seen) {
    let wakes = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&wakes);
    let wake = move || {
        counter.fetch_add(1, Ordering::SeqCst);
    };
    let (slot, sourced) = Slot::new(wake, Arc::new(Timestamp::now));
    (slot, Seen { sourced, wakes })
}

impl Seen {
    /// Waits until the source tells what is asked for.
    async fn until(&mut self, what: &str, holds: impl Fn(&Sourced) -> bool) -> Arc<Sourced> {
        let last = self.sourced.clone();
        let wait = self.sourced.wait_for(|sourced| holds(sourced));
        match tokio::time::timeout(Duration::from_secs(20), wait).await {
            Ok(sourced) => Arc::clone(&sourced.unwrap()),
            Err(_) => panic!("{what} did not come; there is {:?}", last.borrow()),
        }
    }

    async fn until_files(&mut self, want: &[(&str, &str)]) -> Arc<Sourced> {
        self.until(&format!("{want:?}"), |sourced| sourced.trouble.is_none() && files(sourced) == *want).await
    }
}

/// Names (the last part) and contents.
fn files(sourced: &Sourced) -> Vec<(&str, &str)> {
    let Some(snapshot) = &sourced.snapshot else { return Vec::new() };
    snapshot
        .files
        .iter()
        .map(|(name, bytes)| (name.rsplit('/').next().unwrap(), std::str::from_utf8(bytes).unwrap()))
        .collect()
}

fn follow_directory(path: &Path) -> (Tasks, Seen) {
    let (slot, seen) = slot();
    let tasks = Tasks::new();
    let directory = Directory { path: path.to_path_buf(), slot };
    tasks.spawn("directory", |stop| directory.run(stop));
    (tasks, seen)
}

#[tokio::test]
async fn saves_new_files_and_nested_directories_are_noticed() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.yaml"), "1").unwrap();
    let (_tasks, mut seen) = follow_directory(dir.path());
    seen.until_files(&[("a.yaml", "1")]).await;
    fs::write(dir.path().join("a.yaml"), "2").unwrap();
    seen.until_files(&[("a.yaml", "2")]).await;
    fs::create_dir_all(dir.path().join("deep/er")).unwrap();
    fs::write(dir.path().join("deep/er/b.yml"), "3").unwrap();
    seen.until_files(&[("a.yaml", "2"), ("b.yml", "3")]).await;
    fs::write(dir.path().join("deep/er/b.yml"), "4").unwrap();
    seen.until_files(&[("a.yaml", "2"), ("b.yml", "4")]).await;
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    seen.until_files(&[("b.yml", "4")]).await;
    fs::rename(dir.path().join("deep"), dir.path().join("other")).unwrap();
    seen.until("the moved file", |sourced| {
        sourced.snapshot.as_ref().unwrap().files.keys().all(|name| name.contains("/other/"))
    })
    .await;
}

#[tokio::test]
async fn what_editors_leave_beside_a_file_is_not_a_manifest() {
    let dir = TempDir::new().unwrap();
    for name in
        ["a.yaml", ".a.yaml.swp", "a.yaml~", "4913", "#a.yaml#", ".hidden.yaml", "notes.txt", "a.yaml.tmp"]
    {
        fs::write(dir.path().join(name), name).unwrap();
    }
    let (_tasks, mut seen) = follow_directory(dir.path());
    seen.until_files(&[("a.yaml", "a.yaml")]).await;
    // vim: the old file becomes the backup, a new one is written.
    fs::rename(dir.path().join("a.yaml"), dir.path().join("a.yaml~")).unwrap();
    fs::write(dir.path().join("a.yaml"), "vim").unwrap();
    seen.until_files(&[("a.yaml", "vim")]).await;
    // Others: a new file is renamed over the old one.
    fs::write(dir.path().join(".a.yaml.new"), "atomic").unwrap();
    fs::rename(dir.path().join(".a.yaml.new"), dir.path().join("a.yaml")).unwrap();
    seen.until_files(&[("a.yaml", "atomic")]).await;
    assert_eq!(seen.wakes.load(Ordering::SeqCst), 3, "one wake for the start and one for each save");
}

#[tokio::test]
async fn a_burst_of_a_hundred_saves_ends_in_few_wakes_and_the_last_state() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.yaml"), "start").unwrap();
    let (_tasks, mut seen) = follow_directory(dir.path());
    seen.until_files(&[("a.yaml", "start")]).await;
    let path = dir.path().join("a.yaml");
    tokio::task::spawn_blocking(move || {
        for count in 1..=100 {
            fs::write(&path, count.to_string()).unwrap();
        }
    })
    .await
    .unwrap();
    seen.until_files(&[("a.yaml", "100")]).await;
    let wakes = seen.wakes.load(Ordering::SeqCst);
    assert!(wakes <= 5, "{wakes} wakes");
}

#[tokio::test]
async fn a_file_that_is_still_being_written_is_waited_for() {
    let dir = TempDir::new().unwrap();
    let (_tasks, mut seen) = follow_directory(dir.path());
    seen.until("the empty start", |sourced| sourced.snapshot.is_some()).await;
    let path = dir.path().join("a.yaml");
    tokio::task::spawn_blocking(move || {
        use std::io::Write as _;
        let mut file = fs::File::create(path).unwrap();
        for part in ["ha", "lf", " and", " whole"] {
            file.write_all(part.as_bytes()).unwrap();
            file.flush().unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
    })
    .await
    .unwrap();
    seen.until_files(&[("a.yaml", "half and whole")]).await;
    assert_eq!(seen.wakes.load(Ordering::SeqCst), 2, "no half of it was shown");
}

#[tokio::test]
async fn a_directory_that_vanishes_keeps_its_last_state_and_is_found_again() {
    let above = TempDir::new().unwrap();
    let dir = above.path().join("one/two");
    let (_tasks, mut seen) = follow_directory(&dir);
    let told = seen.until("trouble", |sourced| sourced.trouble.is_some()).await;
    assert!(told.trouble.as_ref().unwrap().contains("one/two"), "{told:?}");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("a.yaml"), "1").unwrap();
    seen.until_files(&[("a.yaml", "1")]).await;
    fs::rename(above.path().join("one"), above.path().join("away")).unwrap();
    let told = seen.until("trouble", |sourced| sourced.trouble.is_some()).await;
    assert_eq!(files(&told), [("a.yaml", "1")]);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("a.yaml"), "2").unwrap();
    seen.until_files(&[("a.yaml", "2")]).await;
}

#[tokio::test]
async fn a_link_that_is_switched_to_another_release_is_followed() {
    let above = TempDir::new().unwrap();
    for release in ["r1", "r2"] {
        fs::create_dir(above.path().join(release)).unwrap();
        fs::write(above.path().join(release).join("a.yaml"), release).unwrap();
    }
    let current = above.path().join("current");
    std::os::unix::fs::symlink("r1", &current).unwrap();
    let (_tasks, mut seen) = follow_directory(&current);
    seen.until_files(&[("a.yaml", "r1")]).await;
    std::os::unix::fs::symlink("r2", above.path().join("next")).unwrap();
    fs::rename(above.path().join("next"), &current).unwrap();
    seen.until_files(&[("a.yaml", "r2")]).await;
    fs::write(above.path().join("r2/a.yaml"), "r2 changed").unwrap();
    seen.until_files(&[("a.yaml", "r2 changed")]).await;
}

fn git(dir: &Path, args: &[&str]) -> String {
    let done = Command::new("git")
        .args(["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main"])
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .unwrap();
    assert!(done.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

/// A bare repository and a work tree that pushes into it.
struct Repositories {
    above: TempDir,
    bare: PathBuf,
    work: PathBuf,
}

impl Repositories {
    fn new() -> Repositories {
        let above = TempDir::new().unwrap();
        let (bare, work) = (above.path().join("bare.git"), above.path().join("work"));
        git(above.path(), &["init", "-q", "--bare", "bare.git"]);
        git(above.path(), &["init", "-q", "work"]);
        git(&work, &["remote", "add", "origin", bare.to_str().unwrap()]);
        Repositories { above, bare, work }
    }

    fn push(&self, file: &str, text: &str, message: &str) -> String {
        let path = self.work.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        git(&self.work, &["add", "-A"]);
        git(&self.work, &["commit", "-q", "-m", message]);
        git(&self.work, &["push", "-q", "--tags", "origin", "HEAD:main"]);
        git(&self.work, &["rev-parse", "HEAD"])
    }
}

fn follow_git(
    location: Location,
    wanted: &[(&str, &str)],
    dir: &Path,
    ssh: &Path,
) -> (Tasks, Arc<tokio::sync::Notify>, Vec<Seen>) {
    follow_patiently(location, wanted, dir, ssh, Patience::default())
}

fn follow_patiently(
    location: Location,
    wanted: &[(&str, &str)],
    dir: &Path,
    ssh: &Path,
    patience: Patience,
) -> (Tasks, Arc<tokio::sync::Notify>, Vec<Seen>) {
    let hurry = Arc::new(tokio::sync::Notify::new());
    let mut all = Vec::new();
    let wanted = wanted.iter().map(|(reference, path)| {
        let (slot, seen) = slot();
        all.push(seen);
        Wanted {
            reference: (*reference).to_owned(),
            path: (*path).to_owned(),
            verify: None,
            slot,
            index: std::sync::Mutex::default(),
        }
    });
    let git = Git {
        location,
        interval: Duration::from_secs(3600),
        wanted: wanted.collect(),
        mirror: dir.join("mirror"),
        ssh: ssh.into(),
        auth: Auth::default(),
        patience,
        hurry: Arc::clone(&hurry),
    };
    let tasks = Tasks::new();
    tasks.spawn("git", |stop| git.run(stop));
    (tasks, hurry, all)
}

#[tokio::test]
async fn a_push_into_a_bare_repository_is_noticed_with_its_author_and_message() {
    let repos = Repositories::new();
    let location = Location::parse(&format!("file://{}", repos.bare.display())).unwrap();
    let (_tasks, _, mut seen) =
        follow_git(location, &[("main", "deploy"), ("HEAD", "")], repos.above.path(), Path::new("ssh"));
    let told = seen[0].until("trouble", |sourced| sourced.trouble.is_some()).await;
    assert!(told.trouble.as_ref().unwrap().contains("no ref main"), "{told:?}");
    let first = repos.push("deploy/a.yaml", "1", "First\n\nwith a body");
    let told = seen[0].until_files(&[("a.yaml", "1")]).await;
    let snapshot = told.snapshot.as_ref().unwrap();
    assert_eq!(snapshot.revision, first);
    assert_eq!(snapshot.author.as_deref(), Some("Ada <ada@example.org>"));
    assert_eq!(snapshot.message.as_deref(), Some("First\n\nwith a body"));
    repos.push("b.yaml", "2", "Second");
    seen[1].until_files(&[("b.yaml", "2"), ("a.yaml", "1")]).await;
    seen[0].until_files(&[("a.yaml", "1")]).await;
    git(&repos.bare, &["pack-refs", "--all"]);
    git(&repos.bare, &["gc", "-q"]);
    repos.push("deploy/a.yaml", "3", "Third");
    seen[0].until_files(&[("a.yaml", "3")]).await;
    // A force push that goes back is followed as well.
    git(&repos.work, &["push", "-q", "-f", "origin", &format!("{first}:main")]);
    let told = seen[0].until_files(&[("a.yaml", "1")]).await;
    assert_eq!(told.snapshot.as_ref().unwrap().revision, first);
}

#[tokio::test]
async fn a_repository_that_vanishes_keeps_its_last_state_and_is_found_again() {
    let repos = Repositories::new();
    repos.push("a.yaml", "1", "First");
    let (_tasks, _, mut seen) = follow_git(
        Location::Local(repos.bare.clone()),
        &[("main", ""), ("v9", ""), ("main", "nowhere")],
        repos.above.path(),
        Path::new("ssh"),
    );
    seen[0].until_files(&[("a.yaml", "1")]).await;
    let told = seen[1].until("no such ref", |sourced| sourced.trouble.is_some()).await;
    assert!(told.trouble.as_ref().unwrap().contains("it has main"), "{told:?}");
    let told = seen[2].until("no such path", |sourced| sourced.trouble.is_some()).await;
    assert!(told.trouble.as_ref().unwrap().contains("nowhere"), "{told:?}");
    fs::rename(&repos.bare, repos.above.path().join("away")).unwrap();
    let told = seen[0].until("trouble", |sourced| sourced.trouble.is_some()).await;
    assert_eq!(files(&told), [("a.yaml", "1")]);
    fs::rename(repos.above.path().join("away"), &repos.bare).unwrap();
    seen[0].until_files(&[("a.yaml", "1")]).await;
    repos.push("a.yaml", "2", "Second");
    seen[0].until_files(&[("a.yaml", "2")]).await;
}

#[tokio::test]
async fn a_work_tree_a_tag_and_a_commit_are_followed() {
    let repos = Repositories::new();
    let first = repos.push("a.yaml", "1", "First");
    git(&repos.work, &["tag", "-a", "v1", "-m", "one"]);
    repos.push("a.yaml", "2", "Second");
    std::os::unix::fs::symlink("/etc/passwd", repos.work.join("link.yaml")).unwrap();
    repos.push("c.yaml", "3", "Third");
    let wanted = [("main", ""), ("v1", ""), (first.as_str(), "")];
    git(&repos.work, &["branch", "-q", "-M", "main"]);
    let (_tasks, _, mut seen) =
        follow_git(Location::Local(repos.work.clone()), &wanted, repos.above.path(), Path::new("ssh"));
    let told = seen[0].until_files(&[("a.yaml", "2"), ("c.yaml", "3")]).await;
    assert!(told.snapshot.as_ref().unwrap().unreadable["link.yaml"].contains("symbolic link"));
    seen[1].until_files(&[("a.yaml", "1")]).await;
    seen[2].until_files(&[("a.yaml", "1")]).await;
}

#[tokio::test]
async fn over_ssh_only_what_moved_is_fetched_and_the_copy_serves_without_the_network() {
    let repos = Repositories::new();
    repos.push("a.yaml", "1", "First");
    // Stands in for ssh: notes that it was called and runs what the far side would.
    let ssh = repos.above.path().join("ssh");
    let calls = repos.above.path().join("calls");
    let script =
        format!("#!/bin/sh\necho call >> {}\nfor last; do :; done\nexec sh -c \"$last\"\n", calls.display());
    fs::write(&ssh, script).unwrap();
    fs::set_permissions(&ssh, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let location = Location::parse(&format!("git@example.org:{}", repos.bare.display())).unwrap();
    let (tasks, hurry, mut seen) =
        follow_git(location.clone(), &[("main", ""), ("main", "sub")], repos.above.path(), &ssh);
    seen[0].until_files(&[("a.yaml", "1")]).await;
    assert_eq!(
        fs::read_to_string(&calls).unwrap().lines().count(),
        1,
        "one connection for both applications"
    );
    repos.push("sub/b.yaml", "2", "Second");
    hurry.notify_one();
    seen[1].until_files(&[("b.yaml", "2")]).await;
    seen[0].until_files(&[("a.yaml", "1"), ("b.yaml", "2")]).await;
    tasks.stop(Duration::from_secs(5)).await;

    fs::rename(&repos.bare, repos.above.path().join("away")).unwrap();
    let (_tasks, _, mut seen) = follow_git(location, &[("main", "")], repos.above.path(), &ssh);
    let told = seen[0].until("trouble with the copy", |sourced| sourced.trouble.is_some()).await;
    assert_eq!(files(&told), [("a.yaml", "1"), ("b.yaml", "2")]);
    assert!(told.trouble.as_ref().unwrap().contains("git@example.org"), "{told:?}");
}

/// A web server that runs git's own CGI program, as a hosting service does.
async fn serve_http(root: PathBuf) -> std::net::SocketAddr {
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let root = root.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut request = String::new();
                stream.read_line(&mut request).await.unwrap();
                let (mut length, mut kind, mut line) = (0, String::new(), String::new());
                while stream.read_line(&mut line).await.unwrap() > 2 {
                    let (name, value) = line.trim().split_once(": ").unwrap();
                    match name.to_ascii_lowercase().as_str() {
                        "content-length" => length = value.parse().unwrap(),
                        "content-type" => kind = value.to_owned(),
                        _ => {}
                    }
                    line.clear();
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).await.unwrap();
                let mut words = request.split_whitespace();
                let (method, target) = (words.next().unwrap(), words.next().unwrap());
                let (path, query) = target.split_once('?').unwrap_or((target, ""));
                let mut cgi = tokio::process::Command::new("git")
                    .arg("http-backend")
                    .env("GIT_PROJECT_ROOT", root)
                    .env("GIT_HTTP_EXPORT_ALL", "1")
                    .env("PATH_INFO", path)
                    .env("QUERY_STRING", query)
                    .env("REQUEST_METHOD", method)
                    .env("CONTENT_TYPE", kind)
                    .env("CONTENT_LENGTH", length.to_string())
                    .stdin(std::process::Stdio::piped())
                    .stdout(std::process::Stdio::piped())
                    .spawn()
                    .unwrap();
                cgi.stdin.take().unwrap().write_all(&body).await.unwrap();
                let answer = cgi.wait_with_output().await.unwrap().stdout;
                let split = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
                let head = String::from_utf8_lossy(&answer[..split]).into_owned();
                let status = head.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK");
                let head = format!("HTTP/1.1 {status}\r\n{head}\r\nConnection: close\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(&answer[split + 4..]).await.unwrap();
                stream.shutdown().await.unwrap();
            });
        }
    });
    address
}

#[tokio::test]
async fn over_http_a_commit_is_fetched_and_a_missing_repository_is_told() {
    let repos = Repositories::new();
    repos.push("a.yaml", "1", "First");
    let address = serve_http(repos.above.path().to_path_buf()).await;
    let at = |name: &str| Location::parse(&format!("http://me:s3cret@{address}/{name}")).unwrap();
    let (_tasks, hurry, mut seen) =
        follow_git(at("bare.git"), &[("main", "")], &repos.above.path().join("m1"), Path::new("ssh"));
    seen[0].until_files(&[("a.yaml", "1")]).await;
    for count in 2..5 {
        let text = count.to_string();
        repos.push("a.yaml", &text, "More");
        hurry.notify_one();
        seen[0].until_files(&[("a.yaml", &text)]).await;
    }
    let (_tasks, _, mut seen) =
        follow_git(at("none.git"), &[("main", "")], &repos.above.path().join("m2"), Path::new("ssh"));
    let told = seen[0].until("trouble", |sourced| sourced.trouble.is_some()).await;
    let trouble = told.trouble.as_ref().unwrap();
    assert!(
        trouble.contains("404") && trouble.contains("none.git") && !trouble.contains("s3cret"),
        "{trouble}"
    );
}

#[tokio::test]
async fn an_address_where_nobody_answers_is_told_by_name() {
    let dir = TempDir::new().unwrap();
    let location = Location::parse("http://127.0.0.1:9/x.git").unwrap();
    let (_tasks, _, mut seen) = follow_git(location, &[("main", "")], dir.path(), Path::new("ssh"));
    let told = seen[0].until("trouble", |sourced| sourced.trouble.is_some()).await;
    assert!(told.trouble.as_ref().unwrap().contains("http://127.0.0.1:9/x.git"), "{told:?}");
}

#[tokio::test]
async fn a_kustomization_brings_its_bases_from_beside_the_directory_and_they_are_watched() {
    let dir = TempDir::new().unwrap();
    for sub in ["over", "base"] {
        fs::create_dir(dir.path().join(sub)).unwrap();
    }
    fs::write(dir.path().join("over/kustomization.yaml"), "resources: [../base]\n").unwrap();
    fs::write(
        dir.path().join("base/kustomization.yaml"),
        "configMapGenerator: [{name: g, files: [x.conf]}]\n",
    )
    .unwrap();
    fs::write(dir.path().join("base/x.conf"), "1").unwrap();
    let (_tasks, mut seen) = follow_directory(&dir.path().join("over"));
    let has = |text: &'static str| {
        move |sourced: &Sourced| files(sourced).contains(&("x.conf", text)) && files(sourced).len() == 3
    };
    seen.until("the base", has("1")).await;
    fs::write(dir.path().join("base/x.conf"), "2").unwrap();
    seen.until("the base's new file", has("2")).await;
}

#[tokio::test]
async fn a_hostile_repository_reads_nothing_but_itself_and_hides_nothing() {
    let repositories = Repositories::new();
    let work = &repositories.work;
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, work.join(name)).unwrap();
    fs::write(work.join("good.yaml"), "good").unwrap();
    link("good.yaml", "linked.yaml");
    link("/etc/passwd", "absolute.yaml");
    link("../../etc/passwd", "up.yaml");
    link("b.yaml", "c.yaml");
    link("c.yaml", "b.yaml");
    link("/etc", "dir");
    fs::write(work.join("huge.yaml"), vec![b'#'; MOST_FILE_BYTES + 1]).unwrap();
    repositories.push("kustomization.yaml", "resources: [../../etc/passwd, good.yaml]\n", "hostile");
    let location = Location::Local(repositories.bare.clone());
    let (_tasks, _, mut seen) =
        follow_git(location, &[("main", "")], repositories.above.path(), Path::new("ssh"));
    let sourced = seen[0].until("the snapshot", |sourced| sourced.snapshot.is_some()).await;
    let snapshot = sourced.snapshot.as_ref().unwrap();
    let read: Vec<&str> = snapshot.files.keys().map(|file| &**file).collect();
    assert_eq!(read, ["good.yaml", "kustomization.yaml", "linked.yaml"]);
    let hidden: Vec<(&str, &str)> =
        snapshot.unreadable.iter().map(|(file, why)| (&**file, why.as_str())).collect();
    for (file, word) in [
        ("absolute.yaml", "out of the repository"),
        ("up.yaml", "out of"),
        ("b.yaml", "ring"),
        ("huge.yaml", "larger"),
    ] {
        assert!(hidden.iter().any(|(name, why)| *name == file && why.contains(word)), "{file}: {hidden:?}");
    }
}

fn follow_verified(repositories: &Repositories, reference: &str, verify: Verify) -> (Tasks, Seen) {
    let (slot, seen) = slot();
    let git = Git {
        location: Location::Local(repositories.bare.clone()),
        interval: Duration::from_secs(3600),
        wanted: vec![Wanted {
            reference: reference.to_owned(),
            path: String::new(),
            verify: Some(verify),
            slot,
            index: std::sync::Mutex::default(),
        }],
        mirror: repositories.above.path().join("mirror"),
        ssh: "ssh".into(),
        auth: Auth::default(),
        patience: Patience::default(),
        hurry: Arc::new(tokio::sync::Notify::new()),
    };
    let tasks = Tasks::new();
    tasks.spawn("git", |stop| git.run(stop));
    (tasks, seen)
}

/// Makes an SSH key and returns its path.
fn ssh_key(dir: &Path, name: &str, kind: &[&str]) -> PathBuf {
    let path = dir.join(name);
    let mut made = Command::new("ssh-keygen");
    made.args(["-q", "-N", "", "-C", "", "-t"]).args(kind).arg("-f").arg(&path);
    assert!(made.output().unwrap().status.success());
    path
}

#[tokio::test]
async fn only_what_a_known_ssh_key_signed_is_deployed() {
    let repositories = Repositories::new();
    let dir = repositories.above.path();
    let signers = dir.join("signers");
    let kinds: [&[&str]; 3] = [&["ed25519"], &["ecdsa", "-b", "384"], &["rsa", "-b", "2048"]];
    let mut text = String::from("# who may deploy\n");
    let keys: Vec<PathBuf> =
        kinds.iter().enumerate().map(|(at, kind)| ssh_key(dir, &format!("key{at}"), kind)).collect();
    for key in &keys {
        let public = fs::read_to_string(key.with_extension("pub")).unwrap();
        text.push_str(&format!("ada@example.org namespaces=\"git\" {public}"));
    }
    fs::write(&signers, text).unwrap();
    let stranger = ssh_key(dir, "stranger", &["ed25519"]);
    let commit = |key: Option<&Path>, text: &str| {
        fs::write(repositories.work.join("a.yaml"), text).unwrap();
        git(&repositories.work, &["add", "-A"]);
        match key {
            Some(key) => {
                let signing = format!("user.signingkey={}", key.display());
                git(
                    &repositories.work,
                    &["-c", "gpg.format=ssh", "-c", &signing, "commit", "-q", "-S", "-m", text],
                );
            }
            None => drop(git(&repositories.work, &["commit", "-q", "-m", text])),
        }
        git(&repositories.work, &["push", "-q", "origin", "HEAD:main"]);
    };
    commit(Some(&keys[0]), "signed 0");
    let verify = Verify { ssh_signers: Some(signers), gpg_keyring: None };
    let (_tasks, mut seen) = follow_verified(&repositories, "main", verify);
    seen.until_files(&[("a.yaml", "signed 0")]).await;
    for (key, text, word) in [(None, "plain", "not signed"), (Some(&*stranger), "strange", "is not in")] {
        commit(key, text);
        let sourced =
            seen.until(word, |sourced| sourced.trouble.as_ref().is_some_and(|why| why.contains(word))).await;
        assert_eq!(files(&sourced), [("a.yaml", "signed 0")], "the last good state stays");
    }
    for (at, key) in keys.iter().enumerate() {
        commit(Some(key), &format!("signed again {at}"));
        let text: &'static str = format!("signed again {at}").leak();
        seen.until_files(&[("a.yaml", text)]).await;
    }
}

#[tokio::test]
async fn a_commit_that_does_not_touch_an_application_does_not_wake_it() {
    let repositories = Repositories::new();
    repositories.push("one/kustomization.yaml", "resources: [../base]\n", "one");
    repositories.push("base/kustomization.yaml", "configMapGenerator: [{name: g}]\n", "base");
    let first = repositories.push("two/b.yaml", "1", "two");
    let location = Location::Local(repositories.bare.clone());
    let wanted = [("main", "one"), ("main", "two")];
    let (_tasks, _, mut seen) = follow_git(location, &wanted, repositories.above.path(), Path::new("ssh"));
    for seen in &mut seen {
        seen.until("the first commit", |sourced| {
            sourced.snapshot.as_ref().is_some_and(|it| it.revision == first)
        })
        .await;
    }
    let wakes = seen[0].wakes.load(Ordering::SeqCst);
    repositories.push("two/b.yaml", "2", "touch two");
    seen[1].until_files(&[("b.yaml", "2")]).await;
    assert_eq!(seen[0].wakes.load(Ordering::SeqCst), wakes);
    assert_eq!(seen[0].sourced.borrow().snapshot.as_ref().unwrap().revision, first);
    // What lies beside it and belongs to it does.
    let base =
        repositories.push("base/kustomization.yaml", "configMapGenerator: [{name: h}]\n", "touch the base");
    seen[0]
        .until("the base", |sourced| sourced.snapshot.as_ref().is_some_and(|it| it.revision == base))
        .await;
}
