//! Images are built, pushed, saved and cleared away by the command line; what others made is taken.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::images::{Registry, once, prints};
use super::node::{Node, PATIENCE, Said, until};

/// A Dockerfile and files beside it.
fn context(node: &Node, dockerfile: &str) -> PathBuf {
    let dir = node.path("context");
    fs::create_dir_all(dir.join("site")).unwrap();
    fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
    fs::write(dir.join("site/index.html"), "hello\n").unwrap();
    dir
}

/// A program of Debian's that lies beside the build, with the libraries that came with it.
fn tool(name: &str, args: &[&str]) -> Said {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    let found =
        found.unwrap_or_else(|| panic!("this machine lacks {name}; `tests/run` fetches it from Debian"));
    let root = found.parent().and_then(Path::parent).unwrap().to_owned();
    let lib = root.join(format!("lib/{}-linux-gnu", std::env::consts::ARCH));
    let output =
        Command::new(found).args(args).env("LD_LIBRARY_PATH", lib).stdin(Stdio::null()).output().unwrap();
    Said::of(&output)
}

fn images(node: &Node) -> Vec<String> {
    let listed: Value = serde_json::from_str(&node.ok(&["image", "ls", "--json"])).unwrap();
    let names =
        listed.as_array().unwrap().iter().flat_map(|image| image["references"].as_array().unwrap().clone());
    names.map(|name| name.as_str().unwrap().to_owned()).collect()
}

const DOCKERFILE: &str = "FROM busybox:1 AS made\n\
    ARG WHO=nobody\n\
    RUN mkdir -p /out && echo \"made for $WHO by $(id -u)\" > /out/note && ln /out/note /out/again && rm /etc/origin\n\
    FROM busybox:1\n\
    COPY --from=made --chown=7:8 /out/ /srv/\n\
    COPY site /srv/site\n\
    RUN <<EOF\nset -e\nrm -r /etc/origin\nls -l /srv/note > /srv/owner\nEOF\n\
    USER 7\nWORKDIR /srv\nCMD [\"cat\", \"note\", \"site/index.html\"]\n";

#[test]
fn an_image_built_from_a_dockerfile_runs() {
    let node = Node::empty();
    node.load_busybox();
    let dir = context(&node, DOCKERFILE);
    let build = ["image", "build", dir.to_str().unwrap(), "-t", "built:1", "--build-arg", "WHO=a test"];
    let first = node.holdfast(&build);
    assert_eq!(first.code, 0, "{}", first.all());
    assert!(
        first.err.contains("] FROM busybox:1 AS made") && first.out.contains("built:1"),
        "{}",
        first.all()
    );
    let again = node.holdfast(&build);
    assert_eq!(again.err.matches("done before").count(), 5, "{}", again.err);
    node.save(
        "a.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  restartPolicy: Never\n  containers:\n  - {name: a, image: 'built:1', imagePullPolicy: Never}\n",
    );
    until("the pod is there", PATIENCE, || {
        node.find("pod", "a").map(|_| ()).ok_or("there is none".to_owned())
    });
    prints(&node, "a", "made for a test by 0\nhello\n");
    // What the build took away is not there, and nothing of its sandboxes is left.
    let inspected: Value = serde_json::from_str(&node.ok(&["image", "inspect", "built:1"])).unwrap();
    assert_eq!(inspected["configuration"]["config"]["User"], "7");
    assert!(!node.data().join("build").exists());
}

#[test]
fn a_step_that_fails_is_told_with_its_line_and_what_it_said() {
    let node = Node::empty();
    node.load_busybox();
    let dir = context(&node, "FROM busybox:1\nRUN echo look here; exit 3\n");
    let said = node.holdfast(&["image", "build", dir.to_str().unwrap(), "-t", "broken:1"]);
    assert_eq!(said.code, 1);
    assert!(said.err.contains("look here\n"), "{}", said.err);
    assert!(
        said.err.contains("Dockerfile:2: RUN echo look here; exit 3 ended with exit code 3"),
        "{}",
        said.err
    );
    assert!(!images(&node).iter().any(|name| name.contains("broken")));
}

#[test]
fn an_image_is_built_the_same_without_a_node_that_runs() {
    let mut node = Node::empty();
    node.load_busybox();
    let dir = context(&node, DOCKERFILE);
    let build = |name: &str, node: &Node| {
        let args = [
            "image",
            "build",
            dir.to_str().unwrap(),
            "-t",
            name,
            "--no-cache",
            "--json",
            "--build-arg",
            "SOURCE_DATE_EPOCH=1000000000",
        ];
        let built: Value = serde_json::from_str(&node.ok(&args)).unwrap();
        built[0]["digest"].as_str().unwrap().to_owned()
    };
    let with = build("with:1", &node);
    node.end(nix::sys::signal::Signal::SIGTERM);
    let without = build("without:1", &node);
    assert_eq!(with, without);
}

#[test]
fn an_image_travels_through_a_registry_and_back() {
    let node = Node::empty();
    let registry = Registry::start(&node);
    node.load_busybox();
    let dir =
        context(&node, "FROM busybox:1\nRUN echo built > /etc/origin\nCMD [\"cat\", \"/etc/origin\"]\n");
    node.ok(&["image", "build", dir.to_str().unwrap(), "-t", "built:1"]);
    let name = format!("{}/team/built:v1", registry.host);
    let pushed = node.ok(&["image", "push", "built:1", &name]);
    assert!(pushed.contains("pushed") && pushed.contains("sha256:"), "{pushed}");
    // Foreign eyes read what was pushed, and send it on.
    let copy = format!("{}/team/copied:v1", registry.host);
    let copied = tool(
        "skopeo",
        &[
            "copy",
            "--insecure-policy",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            &format!("docker://{name}"),
            &format!("docker://{copy}"),
        ],
    );
    assert_eq!(copied.code, 0, "{}", copied.all());
    node.ok(&["image", "rm", "built:1"]);
    node.ok(&["image", "pull", &copy]);
    node.save("a.yaml", &once("a", &copy, "Always"));
    until("the pod is there", PATIENCE, || {
        node.find("pod", "a").map(|_| ()).ok_or("there is none".to_owned())
    });
    prints(&node, "a", "built\n");
}

#[test]
fn what_is_saved_is_read_by_others_and_what_they_make_is_loaded() {
    let node = Node::empty();
    node.load_busybox();
    let at = |name: &str| node.path(name).to_str().unwrap().to_owned();
    for (format, transport) in [("oci", "oci-archive"), ("docker", "docker-archive")] {
        let file = at(&format!("{format}.tar"));
        node.ok(&["image", "save", "busybox:1", "-o", &file, "--format", format]);
        let to = format!("oci:{}:skopeo-{format}", at("layout"));
        let copied = tool("skopeo", &["copy", "--insecure-policy", &format!("{transport}:{file}"), &to]);
        assert_eq!(copied.code, 0, "{format}: {}", copied.all());
    }
    // A layer by umoci on top: a file more, one gone, a directory replaced.
    let (layout, bundle) = (at("layout"), at("bundle"));
    let umoci = |args: &[&str]| {
        let said = tool("umoci", args);
        assert_eq!(said.code, 0, "umoci {args:?}: {}", said.all());
    };
    umoci(&["unpack", "--image", &format!("{layout}:skopeo-oci"), &bundle]);
    let root = node.path("bundle/rootfs");
    fs::write(root.join("etc/origin"), "made by umoci\n").unwrap();
    fs::remove_file(root.join("bin/yes")).unwrap();
    fs::create_dir(root.join("opt")).unwrap();
    fs::hard_link(root.join("etc/origin"), root.join("opt/linked")).unwrap();
    fs::set_permissions(root.join("opt"), fs::Permissions::from_mode(0o700)).unwrap();
    umoci(&["repack", "--image", &format!("{layout}:umoci"), &bundle]);
    let archive = format!("oci-archive:{}:foreign:1", at("foreign.tar"));
    let packed = tool(
        "skopeo",
        &[
            "copy",
            "--insecure-policy",
            "--dest-compress-format=zstd",
            &format!("oci:{layout}:umoci"),
            &archive,
        ],
    );
    assert_eq!(packed.code, 0, "{}", packed.all());
    let loaded = node.ok(&["image", "load", &at("foreign.tar")]);
    assert!(loaded.contains("foreign:1"), "{loaded}");
    node.save(
        "a.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  restartPolicy: Never\n  containers:\n  - {name: a, image: 'foreign:1', imagePullPolicy: Never, command: [sh, -c, 'exec 2>&1; cat /etc/origin /opt/linked; ls /bin/yes; stat -c %a /opt']}\n",
    );
    until("the pod is there", PATIENCE, || {
        node.find("pod", "a").map(|_| ()).ok_or("there is none".to_owned())
    });
    prints(&node, "a", "made by umoci\nmade by umoci\nls: /bin/yes: No such file or directory\n700\n");
}

#[test]
fn names_are_given_and_taken_and_what_nothing_needs_is_freed() {
    let node = Node::empty();
    node.load_busybox();
    node.ok(&["image", "tag", "busybox:1", "other/name:2"]);
    let names = images(&node);
    assert!(
        names.contains(&"other/name:2".to_owned()) && names.contains(&"busybox:1".to_owned()),
        "{names:?}"
    );
    node.ok(&["image", "rm", "busybox:1", "other/name:2"]);
    node.ok(&["image", "prune"]);
    let said = node.holdfast(&["image", "inspect", "busybox:1"]);
    assert!(said.code == 1 && said.err.contains("no image \"busybox:1\" is here"), "{}", said.all());
    let left = fs::read_dir(node.data().join("images/layers")).unwrap().count();
    assert_eq!(left, 2, "the demo's layers alone are left");
    // The demo's image is used by nobody here.
    node.ok(&["image", "prune", "--all"]);
    assert_eq!(fs::read_dir(node.data().join("images/layers")).unwrap().count(), 0);
}

#[test]
fn an_image_that_a_pod_uses_is_not_pruned() {
    let node = Node::empty();
    node.load_busybox();
    node.save(
        "a.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - {name: a, image: 'busybox:1', imagePullPolicy: Never, command: [sleep, '1000']}\n",
    );
    until("the pod runs", PATIENCE, || match node.find("pod", "a") {
        Some(pod) if pod["status"]["phase"] == "Running" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    node.ok(&["image", "prune", "--all"]);
    assert!(images(&node).contains(&"busybox:1".to_owned()));
    // Its name may go, what it runs on stays.
    node.ok(&["image", "rm", "busybox:1"]);
    node.ok(&["image", "prune", "--all"]);
    assert_eq!(node.kubectl(&["exec", "a", "--", "cat", "/etc/origin"]), "made by a test\n");
}
