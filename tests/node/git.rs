//! A commit becomes running objects: real git, a bare repository, a push.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::node::{Node, PATIENCE, request, same, stays, until};

pub(crate) struct Repository {
    pub(crate) bare: PathBuf,
    pub(crate) work: PathBuf,
}

fn git(dir: &Path, args: &[&str]) -> String {
    let mut command = Command::new("git");
    command
        .current_dir(dir)
        .args(["-c", "user.name=Luke Marks", "-c", "user.email=luke@example.org"])
        .args(args);
    // Nothing of the person who runs the tests gets in.
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    let output = command.output().unwrap_or_else(|error| panic!("run git: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {}: {said}", args.join(" "));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Repository {
    pub(crate) fn new(node: &Node) -> Repository {
        let (bare, work) = (node.path("apps.git"), node.path("work"));
        fs::create_dir_all(&bare).unwrap();
        git(&bare, &["init", "-q", "--bare", "-b", "main"]);
        fs::create_dir_all(&work).unwrap();
        git(&work, &["init", "-q", "-b", "main"]);
        git(&work, &["remote", "add", "origin", bare.to_str().unwrap()]);
        Repository { bare, work }
    }

    /// Commits files (None deletes) and pushes; the commit.
    pub(crate) fn push(&self, message: &str, files: &[(&str, Option<&str>)]) -> String {
        for (name, text) in files {
            let path = self.work.join(name);
            match text {
                Some(text) => {
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(path, text).unwrap();
                }
                None => fs::remove_file(path).unwrap(),
            }
        }
        git(&self.work, &["add", "-A"]);
        git(&self.work, &["commit", "-q", "-m", message]);
        git(&self.work, &["push", "-q", "origin", "HEAD"]);
        git(&self.work, &["rev-parse", "HEAD"])
    }
}

pub(crate) fn follow(node: &Node, url: &str, rest: &str) {
    node.configure(&format!("[[application]]\nname = \"apps\"\ngit = {url:?}\n{rest}\n"));
}

pub(crate) fn config_map(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\ndata:\n  value: \"{value}\"\n")
}

pub(crate) fn shows(node: &Node, name: &str, wanted: &str) {
    until(&format!("ConfigMap {name} is {wanted}"), PATIENCE, || {
        let found = node.find("configmap", name).ok_or("there is none")?;
        same(found["data"]["value"].as_str(), Some(wanted))
    });
}

#[test]
fn a_push_into_a_local_repository_is_noticed_without_asking() {
    let mut node = Node::new();
    let repository = Repository::new(&node);
    repository.push("Say one", &[("a.yaml", Some(&config_map("a", "1")))]);
    // An interval far beyond the test's patience: only a notification can tell in time.
    follow(&node, repository.bare.to_str().unwrap(), "ref = \"main\"\ninterval = \"1h\"");
    node.up();
    shows(&node, "a", "1");
    node.good();
    let commit =
        repository.push("Say two\n\nBecause one is not enough.", &[("a.yaml", Some(&config_map("a", "2")))]);
    shows(&node, "a", "2");
    let source = until("the status tells of the commit", PATIENCE, || {
        let source = node.application("apps")["source"].clone();
        if source["revision"].to_string().contains(&commit) { Ok(source) } else { Err(source.to_string()) }
    });
    assert!(source["author"].as_str().unwrap().contains("Luke Marks"), "{source}");
    assert!(source["commitMessage"].as_str().unwrap().contains("Say two"), "{source}");
    node.good();
    let status = node.ok(&["status"]);
    for word in [&commit[..7], "Luke Marks", "Say two"] {
        assert!(status.contains(word), "{word} is in: {status}");
    }
    repository.push("Say no more", &[("a.yaml", None), ("b.yaml", Some(&config_map("b", "1")))]);
    until("a is pruned", PATIENCE, || node.find("configmap", "a").map_or(Ok(()), |a| Err(a.to_string())));
    shows(&node, "b", "1");
}

#[test]
fn a_path_at_a_tag_of_a_file_url_is_followed_and_nothing_else() {
    let mut node = Node::new();
    let repository = Repository::new(&node);
    let files = [
        (
            "clusters/home/a.yaml",
            Some("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {value: home}\n"),
        ),
        (
            "clusters/away/b.yaml",
            Some("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndata: {value: away}\n"),
        ),
    ];
    repository.push("Two clusters", &files);
    git(&repository.work, &["tag", "v1"]);
    git(&repository.work, &["push", "-q", "origin", "v1"]);
    repository.push("Later", &[("clusters/home/a.yaml", Some(&config_map("a", "later")))]);
    follow(&node, &format!("file://{}", repository.bare.display()), "ref = \"v1\"\npath = \"clusters/home\"");
    node.up();
    shows(&node, "a", "home");
    node.good();
    assert!(node.find("configmap", "b").is_none());
    // A tag that is moved is followed too.
    git(&repository.work, &["tag", "-f", "v1"]);
    git(&repository.work, &["push", "-qf", "origin", "v1"]);
    shows(&node, "a", "later");
}

#[test]
fn a_repository_that_vanishes_keeps_the_last_good_state() {
    let mut node = Node::new();
    let repository = Repository::new(&node);
    repository.push("Say one", &[("a.yaml", Some(&config_map("a", "1")))]);
    follow(&node, repository.bare.to_str().unwrap(), "interval = \"1s\"");
    node.up();
    shows(&node, "a", "1");
    node.good();
    let away = node.path("away.git");
    fs::rename(&repository.bare, &away).unwrap();
    node.holdfast(&["sync"]);
    let message = until("the status tells that the repository is gone", PATIENCE, || {
        let status = node.application("apps");
        let text = status["sync"].to_string() + &status["defects"].to_string();
        if text.contains("apps.git") { Ok(text) } else { Err(status.to_string()) }
    });
    assert!(!message.contains("Luke Marks"), "a source error is about the source: {message}");
    stays("a stays", Duration::from_secs(2), || {
        node.find("configmap", "a").map(|_| ()).ok_or("it is gone".to_owned())
    });
    node.kubectl(&["delete", "configmap", "a"]);
    shows(&node, "a", "1");
    fs::rename(&away, &repository.bare).unwrap();
    repository.push("Say two", &[("a.yaml", Some(&config_map("a", "2")))]);
    shows(&node, "a", "2");
    node.good();
}

#[test]
fn a_broken_url_and_a_missing_ref_are_named_while_the_rest_converges() {
    let mut node = Node::new();
    let repository = Repository::new(&node);
    repository.push("Say one", &[("a.yaml", Some(&config_map("a", "1")))]);
    let good = repository.bare.display();
    let absent = node.path("absent.git");
    node.configure(&format!(
        "[[application]]\nname = \"good\"\ngit = \"{good}\"\n\
         [[application]]\nname = \"noref\"\ngit = \"{good}\"\nref = \"nowhere\"\n\
         [[application]]\nname = \"nopath\"\ngit = \"{good}\"\npath = \"not/here\"\n\
         [[application]]\nname = \"absent\"\ngit = {absent:?}\n\
         [[application]]\nname = \"refused\"\ngit = \"http://127.0.0.1:1/x.git\"\n"
    ));
    node.up();
    shows(&node, "a", "1");
    let wanted =
        [("noref", "nowhere"), ("nopath", "not/here"), ("absent", "absent.git"), ("refused", "127.0.0.1:1")];
    for (application, word) in wanted {
        until(&format!("{application} tells of {word}"), PATIENCE, || {
            let status = node.application(application);
            let told = status["sync"]["message"].to_string() + &status["defects"].to_string();
            if told.contains(word) { Ok(()) } else { Err(status.to_string()) }
        });
        let status = node.ok_or_not(&["status"]);
        assert!(status.contains(word), "{word} is in: {status}");
    }
    assert_ne!(node.holdfast(&["status", "--wait", "1"]).code, 0);
}

#[test]
fn the_newest_commit_wins_also_in_the_middle_of_a_rollout() {
    let mut node = Node::new();
    let repository = Repository::new(&node);
    let deployment = |image: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: 2\n  selector: {{matchLabels: {{app: web}}}}\n  \
             template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      terminationGracePeriodSeconds: 1\n      \
             containers: [{{name: web, image: '{image}', imagePullPolicy: Never}}]\n"
        )
    };
    repository.push("Start", &[("web.yaml", Some(&deployment("kubia:1")))]);
    follow(&node, repository.bare.to_str().unwrap(), "");
    node.up();
    node.good();
    repository.push("Break it", &[("web.yaml", Some(&deployment("absent:1")))]);
    until("a pod of the broken revision waits", PATIENCE, || {
        let pods = node.list("pods", "app=web");
        let text = pods.iter().map(super::node::brief).collect::<Vec<_>>().join(", ");
        if text.contains("ErrImageNeverPull") { Ok(()) } else { Err(text) }
    });
    repository.push("Mend it", &[("web.yaml", Some(&deployment("kubia:1")))]);
    node.good();
    let pods = node.ready("app=web", 2);
    assert!(pods.iter().all(|pod| pod["spec"]["containers"][0]["image"] == "kubia:1"), "{pods:?}");
    let results: Vec<String> = node.application("apps")["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|revision| format!("{} {}", revision["message"], revision["result"]))
        .collect();
    assert!(
        results.last().unwrap().contains("Mend it") && results.last().unwrap().contains("Healthy"),
        "{results:?}"
    );
}

#[test]
fn a_webhook_and_a_sync_hurry_a_source_along() {
    let mut node = Node::new();
    let repository = Repository::new(&node);
    repository.push("Say one", &[("a.yaml", Some(&config_map("a", "1")))]);
    follow(&node, repository.bare.to_str().unwrap(), "interval = \"1h\"");
    node.up();
    shows(&node, "a", "1");
    let web = (Ipv4Addr::LOCALHOST, node.web);
    let fetched = || node.application("apps")["source"]["fetchedAt"].as_str().unwrap_or_default().to_owned();
    let body = "{\"ref\": \"refs/heads/main\"}";
    let (code, said) = request(web, "POST", "/webhook/apps", body).unwrap();
    assert!((200..300).contains(&code), "{code} {said}");
    assert!(!fetched().is_empty());
    let (code, said) = request(web, "POST", "/webhook/nobody", body).unwrap();
    assert_eq!(code, 404, "{said}");
    assert_ne!(request(web, "GET", "/webhook/apps", "").unwrap().0, 200);
    repository.push("Say two", &[("a.yaml", Some(&config_map("a", "2")))]);
    node.ok(&["sync"]);
    shows(&node, "a", "2");
}
