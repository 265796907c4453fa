//! What the design promises about the source itself, read from the source: floors, unsafe, sizes, the options' file.
//!
//! Invariant: every rule is read from the manifests and files as they are; there is no list to forget to extend.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use toml::{Table, Value};

/// Lines of a file without its tests: beyond it a file has become two.
const FILE_LINES_MOST: usize = 900;
/// Rooms that may talk to the kernel where no safe wrapper does.
const UNSAFE_ROOMS: [&str; 2] = ["shim", "network"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn manifest(dir: &Path) -> Table {
    let path = dir.join("Cargo.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    text.parse().unwrap_or_else(|error| panic!("parse {}: {error}", path.display()))
}

/// The workspace's members in the order of the root manifest: path and manifest.
fn members() -> Vec<(String, Table)> {
    let own = manifest(&root());
    let list = own["workspace"]["members"].as_array().unwrap();
    let paths = list.iter().map(|path| path.as_str().unwrap().to_owned());
    paths.map(|path| (path.clone(), manifest(&root().join(&path)))).collect()
}

fn name(manifest: &Table) -> &str {
    manifest["package"]["name"].as_str().unwrap()
}

/// Every crate named in any table of dependencies, also those of a target.
fn dependencies(manifest: &Table) -> BTreeSet<String> {
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    let places = std::iter::once(manifest).chain(targets.filter_map(Value::as_table));
    let tables = places.flat_map(|place| kinds.iter().filter_map(|kind| place.get(*kind)));
    tables.filter_map(Value::as_table).flat_map(|table| table.keys().cloned()).collect()
}

/// The floors, as the comments among the members name them: member name → floor.
fn floors() -> BTreeMap<String, String> {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let inside = text.split_once("members = [").unwrap().1.split_once(']').unwrap().0;
    let mut floor = String::new();
    let mut found = BTreeMap::new();
    for line in inside.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix('#') {
            floor = comment.split(':').next().unwrap().trim().to_owned();
        } else if let Some(path) = line.split('"').nth(1) {
            found.insert(name(&manifest(&root().join(path))).to_owned(), floor.clone());
        }
    }
    found
}

/// Every Rust file below a directory, but not what cargo builds.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("read {}: {error}", dir.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name() != Some("target".as_ref()) {
                open.push(path);
            } else if path.extension() == Some("rs".as_ref()) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The files that are compiled for tests and benches only, as the manifests and `#[cfg(test)] mod name;` say.
fn test_files() -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for (path, manifest) in members() {
        let targets = ["test", "bench"].iter().filter_map(|kind| manifest.get(*kind)?.as_array()).flatten();
        found.extend(
            targets.filter_map(|target| Some(root().join(&path).join(target.get("path")?.as_str()?))),
        );
    }
    for path in sources(&root().join("daemon")) {
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for at in lines.iter().enumerate().filter(|(_, line)| **line == "#[cfg(test)]").map(|(at, _)| at) {
            let declared = lines[at..].iter().take(6).find_map(|line| {
                let rest = line.trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ");
                rest.strip_prefix("mod ")?.strip_suffix(';')
            });
            let named = lines[at..]
                .iter()
                .take(6)
                .find_map(|line| line.strip_prefix("#[path = \"")?.strip_suffix("\"]"));
            let dir = path.parent().unwrap();
            let inner = path.with_extension("");
            if let Some(name) = declared {
                let file = named.map_or_else(|| format!("{name}.rs"), str::to_owned);
                found.extend([dir.join(&file), inner.join(&file), inner.join(name).join("mod.rs")]);
            }
        }
    }
    found
}

/// Every source of the daemon that is part of the product.
fn product() -> Vec<PathBuf> {
    let tests = test_files();
    let mut all = sources(&root().join("daemon"));
    all.retain(|path| {
        let below = |file: &PathBuf| path.starts_with(file.with_extension(""));
        let in_tests = path.strip_prefix(root()).is_ok_and(|path| path.iter().any(|part| part == "tests"));
        !tests.contains(path) && !tests.iter().any(below) && !in_tests
    });
    all
}

/// The lines of a file up to its tests, with what is quoted and commented taken out: (number from 1, code).
fn code(text: &str) -> Vec<(usize, String)> {
    let end = text.find("\n#[cfg(test)]").map_or(text.len(), |at| at + 1);
    let lines = text[..end].lines().enumerate();
    lines.map(|(at, line)| (at + 1, line.split("//").next().unwrap().to_owned())).collect()
}

fn fail_if_any(defects: &[String], rule: &str) {
    assert!(defects.is_empty(), "{rule}:\n  {}", defects.join("\n  "));
}

#[test]
fn a_crate_depends_only_on_crates_listed_before_it() {
    let members = members();
    let order: Vec<&str> = members.iter().map(|(_, manifest)| name(manifest)).collect();
    let mut defects = Vec::new();
    for (at, (path, manifest)) in members.iter().enumerate() {
        for dependency in dependencies(manifest) {
            let place = order.iter().position(|member| *member == dependency);
            if place.is_some_and(|place| place >= at) {
                defects.push(format!("{path} depends on {dependency}, which stands above it"));
            }
        }
    }
    fail_if_any(&defects, "the members of the root Cargo.toml are listed ground floor first");
}

#[test]
fn the_rooms_of_floor_four_never_depend_on_each_other() {
    let floors = floors();
    let fourth = |name: &str| floors.get(name).is_some_and(|floor| floor == "floor 4");
    assert!(floors.keys().filter(|name| fourth(name)).count() > 3, "floor 4 is in the members: {floors:?}");
    let mut defects = Vec::new();
    for (path, manifest) in members() {
        let neighbours = dependencies(&manifest).into_iter().filter(|name| fourth(name));
        if fourth(name(&manifest)) {
            defects.extend(neighbours.map(|name| format!("{path} depends on {name}")));
        }
    }
    fail_if_any(&defects, "rooms of floor 4 meet in the API, as in Kubernetes");
}

#[test]
fn only_the_api_server_touches_the_store() {
    let mut defects = Vec::new();
    for (path, manifest) in members() {
        // A room's tests may hold a store to put an API server on it.
        let table = manifest.get("dependencies").and_then(Value::as_table);
        if name(&manifest) != "apiserver" && table.is_some_and(|table| table.contains_key("store")) {
            defects.push(path);
        }
    }
    fail_if_any(&defects, "everyone else goes through the door");
}

#[test]
fn every_crate_keeps_the_lints_of_the_house() {
    let mut defects = Vec::new();
    for (path, manifest) in members().into_iter().chain([("Cargo.toml".to_owned(), manifest(&root()))]) {
        let lints = manifest.get("lints").and_then(Value::as_table).cloned().unwrap_or_default();
        let inherits = lints.get("workspace").and_then(Value::as_bool) == Some(true);
        let may_be_unsafe = UNSAFE_ROOMS.contains(&name(&manifest));
        let own = may_be_unsafe && lints.contains_key("rust");
        if !(inherits || own) {
            defects.push(format!("{path} has no `[lints] workspace = true`"));
        }
    }
    fail_if_any(&defects, "lints are the same everywhere");
}

#[test]
fn unsafe_code_is_only_in_the_two_rooms_that_may_hold_it() {
    let mut defects = Vec::new();
    for path in ["daemon", "manifests", "tests"].iter().flat_map(|dir| sources(&root().join(dir))) {
        let room = path.strip_prefix(root().join("daemon")).ok().and_then(|inside| inside.iter().next());
        let allowed = room.is_some_and(|room| UNSAFE_ROOMS.iter().any(|name| room == *name));
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap();
            let opens = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|word| {
                code.find(word).is_some_and(|place| code[..place].matches('"').count().is_multiple_of(2))
            });
            if !opens {
                continue;
            }
            let reasoned = lines[at.saturating_sub(8)..=at]
                .iter()
                .any(|line| line.contains("SAFETY:") || line.contains("# Safety"));
            if !allowed {
                defects.push(format!("{}:{}: unsafe outside of {UNSAFE_ROOMS:?}", shown(&path), at + 1));
            } else if !reasoned {
                defects.push(format!("{}:{}: unsafe without a `// SAFETY:`", shown(&path), at + 1));
            }
        }
    }
    fail_if_any(&defects, "unsafe is rare, in two rooms, and says why it holds");
}

#[test]
fn a_file_is_about_one_thing_and_not_longer_than_that() {
    let mut defects = Vec::new();
    for path in product() {
        let lines = code(&fs::read_to_string(&path).unwrap()).len();
        if lines > FILE_LINES_MOST {
            defects.push(format!("{}: {lines} lines", shown(&path)));
        }
    }
    fail_if_any(&defects, "a file has at most some 600 lines without its tests");
}

#[test]
fn every_file_begins_with_its_duty() {
    let mut defects = Vec::new();
    for path in product().into_iter().chain(sources(&root().join("tests"))) {
        let text = fs::read_to_string(&path).unwrap();
        if !text.starts_with("//!") {
            defects.push(shown(&path));
        }
    }
    fail_if_any(&defects, "the first line of a file is `//!` and its duty");
}

#[test]
fn nothing_is_left_to_be_done_later() {
    // Put together here, so that this file does not hold the words.
    let later = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["X", "XX:"].concat()];
    let stubs = [["todo", "!("].concat(), ["unimplemented", "!("].concat(), ["dbg", "!("].concat()];
    let mut defects = Vec::new();
    for path in ["daemon", "manifests", "tests"].iter().flat_map(|dir| sources(&root().join(dir))) {
        for (at, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let found = later.iter().chain(&stubs).find(|word| line.contains(word.as_str()));
            if let Some(word) = found {
                defects.push(format!("{}:{}: {word}", shown(&path), at + 1));
            }
        }
    }
    fail_if_any(&defects, "do it or file it");
}

#[test]
fn the_daemon_does_not_unwrap_what_may_fail() {
    let mut defects = Vec::new();
    for path in product() {
        for (line, code) in code(&fs::read_to_string(&path).unwrap()) {
            if code.contains(".unwrap()") || code.contains("#[allow(") || code.contains("#![allow(") {
                defects.push(format!("{}:{line}: {}", shown(&path), code.trim()));
            }
        }
    }
    fail_if_any(
        &defects,
        "an impossible case is `expect(\"why\")`, all else is an error; lints are `#[expect]`ed",
    );
}

#[test]
fn only_the_runtime_starts_programs() {
    // ssh is Git's own transport for ssh:// and has no other form.
    let allowed =
        ["daemon/runtime/", "daemon/shim/", "daemon/guest.rs", "daemon/build.rs", "daemon/gitops/source/"];
    let mut defects = Vec::new();
    for path in product() {
        let place = shown(&path);
        if allowed.iter().any(|prefix| place.starts_with(prefix)) {
            continue;
        }
        for (line, code) in code(&fs::read_to_string(&path).unwrap()) {
            if code.contains("process::Command") || code.contains("Command::new(\"") {
                defects.push(format!("{place}:{line}: {}", code.trim()));
            }
        }
    }
    fail_if_any(&defects, "no room but the runtime spawns programs");
}

#[test]
fn config_toml_is_equal_to_the_defaults() {
    let holdfast = env!("CARGO_BIN_EXE_holdfast");
    let printed = |args: &[&str], dir: &Path| {
        let output = Command::new(holdfast).args(args).current_dir(dir).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "holdfast {args:?}: {} {said}", output.status);
        let text = String::from_utf8(output.stdout).unwrap();
        text.parse::<Table>()
            .unwrap_or_else(|error| panic!("holdfast {args:?} printed no TOML: {error}\n{text}"))
    };
    // With no file in sight the defaults are printed; with ours, what ours says.
    let nowhere = tempfile::tempdir().unwrap();
    let defaults = printed(&["config"], nowhere.path());
    assert_eq!(printed(&["config", "--config", "config.toml"], &root()), defaults);
    // Also each key is there for a person to see, not only filled in.
    let written: Table = fs::read_to_string(root().join("config.toml")).unwrap().parse().unwrap();
    for (section, keys) in defaults.iter().filter_map(|(name, value)| Some((name, value.as_table()?))) {
        for key in keys.keys() {
            let there = written.get(section).and_then(|section| section.get(key));
            assert!(there.is_some(), "config.toml does not show {section}.{key}");
        }
    }
}
