//! Names of images, by the rules every user of Docker knows.
//!
//! Invariant: a `Reference` is valid and complete: registry and repository are spelled out, and it has a tag
//! or a digest. Two texts that mean the same image parse to equal values.

use crate::digest::Digest;
use crate::error::Error;
use std::fmt;
use std::str::FromStr;

const DOCKER_HUB: &str = "docker.io";
const NAME_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

/// The name of an image: `kubia:1` means `docker.io/library/kubia:1`. `Display` is the familiar, short form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Host, and port where one is given: `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path in the registry: `library/kubia`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` when the text had neither tag nor digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest (`sha256:…`) of a manifest or an index, which wins over the tag.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_ref().map(Digest::as_str)
    }

    /// The full spelling, with registry: `docker.io/library/kubia:1`.
    pub fn canonical(&self) -> String {
        format!("{}/{}{}", self.registry, self.repository, self.suffix())
    }

    /// The familiar name without tag and digest: `kubia`, `localhost:5000/x`.
    pub fn familiar_name(&self) -> String {
        if self.registry != DOCKER_HUB {
            return format!("{}/{}", self.registry, self.repository);
        }
        match self.repository.strip_prefix("library/") {
            // `library/a/b` would read as another repository without its first part.
            Some(short) if !short.contains('/') => short.to_owned(),
            _ => self.repository.clone(),
        }
    }

    /// The same image in another registry.
    pub(crate) fn at(&self, registry: &str) -> Result<Reference, Error> {
        check_registry(registry).map_err(|reason| Error::Reference { text: registry.to_owned(), reason })?;
        Ok(Reference { registry: registry.to_owned(), ..self.clone() })
    }

    fn suffix(&self) -> String {
        let mut suffix = String::new();
        if let Some(tag) = &self.tag {
            suffix.push(':');
            suffix.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            suffix.push('@');
            suffix.push_str(digest.as_str());
        }
        suffix
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.familiar_name(), self.suffix())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).map_err(|reason| Error::Reference { text: text.to_owned(), reason })
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
        None => (text, None),
    };
    let (name, tag) = match rest.rsplit_once(':') {
        // A colon before the last slash belongs to the registry's port.
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if name.len() == 64 && tag.is_none() && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("a 64-byte hexadecimal string is an image id, not a name".into());
    }
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, path) = split_registry(name);
    check_registry(registry)?;
    check_repository(path)?;
    let repository = match registry {
        DOCKER_HUB if !path.contains('/') => format!("library/{path}"),
        _ => path.to_owned(),
    };
    if registry.len() + 1 + repository.len() > NAME_BYTES_MAX {
        return Err(format!("repository name must not be more than {NAME_BYTES_MAX} characters"));
    }
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some("latest".to_owned()),
    };
    Ok(Reference { registry: registry.to_owned(), repository, tag, digest })
}

/// The first part is a registry when it could not be a path: it has a dot, a port, a capital, or is localhost.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (if first == "index.docker.io" { DOCKER_HUB } else { first }, rest)
        }
        _ => (DOCKER_HUB, name),
    }
}

fn check_registry(registry: &str) -> Result<(), String> {
    let bad = || format!("registry {registry:?} is not host or host:port");
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !registry.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    };
    if let Some(port) = port
        && port.parse::<u16>().is_err()
    {
        return Err(bad());
    }
    if let Some(address) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().map(drop).map_err(|_| bad());
    }
    let label = |l: &str| {
        !l.is_empty()
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if host.split('.').all(label) { Ok(()) } else { Err(bad()) }
}

fn check_repository(path: &str) -> Result<(), String> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!("repository name ({path}) must be lowercase"));
    }
    for part in path.split('/') {
        if !is_path_component(part) {
            return Err(format!(
                "repository part {part:?} must be lowercase letters and digits, separated by one of . _ __ or dashes"
            ));
        }
    }
    Ok(())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(part: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    if !bytes.first().is_some_and(|b| word(*b)) || !bytes.last().is_some_and(|b| word(*b)) {
        return false;
    }
    part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|between| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-'))
}

fn check_tag(tag: &str) -> Result<(), String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let valid = tag.len() <= TAG_BYTES_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'));
    if valid {
        return Ok(());
    }
    Err(format!("tag {tag:?} must be up to {TAG_BYTES_MAX} letters, digits, _ . - and not begin with . or -"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_docker_reads_them() {
        let d = format!("sha256:{}", "a".repeat(64));
        for (text, canonical, familiar) in [
            ("kubia", "docker.io/library/kubia:latest", "kubia:latest"),
            ("kubia:1", "docker.io/library/kubia:1", "kubia:1"),
            ("luksa/kubia", "docker.io/luksa/kubia:latest", "luksa/kubia:latest"),
            ("index.docker.io/library/kubia:1", "docker.io/library/kubia:1", "kubia:1"),
            ("localhost:5000/x:tag", "localhost:5000/x:tag", "localhost:5000/x:tag"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("127.0.0.1:5000/a/b-c__d:v1.0", "127.0.0.1:5000/a/b-c__d:v1.0", "127.0.0.1:5000/a/b-c__d:v1.0"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
            ("library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.canonical(), canonical, "{text}");
            assert_eq!(reference.to_string(), familiar, "{text}");
            assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference, "{text}");
            assert_eq!(reference.canonical().parse::<Reference>().unwrap(), reference, "{text}");
        }
        let pinned: Reference = format!("kubia:1@{d}").parse().unwrap();
        assert_eq!((pinned.tag(), pinned.digest()), (Some("1"), Some(d.as_str())));
        let bare: Reference = format!("kubia@{d}").parse().unwrap();
        assert_eq!((bare.tag(), bare.digest()), (None, Some(d.as_str())));
    }

    #[test]
    fn bad_names_are_refused_with_what_is_wrong() {
        for (text, expected) in [
            ("", "it is empty"),
            ("Kubia", "repository name (Kubia) must be lowercase"),
            ("kubia:", "tag \"\" must be"),
            ("kubia:-x", "tag \"-x\" must be"),
            ("a..b", "repository part \"a..b\""),
            ("a//b", "repository part \"\""),
            ("-a", "repository part \"-a\""),
            ("kubia@sha256:12", "digest \"sha256:12\""),
            ("kubia@md5:12", "digest \"md5:12\""),
            ("../../etc/passwd", "registry \"..\""),
            ("host:99999/x", "registry \"host:99999\""),
            (&"a".repeat(64), "image id"),
            (&format!("x/{}", "a".repeat(300)), "255"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.starts_with("invalid reference format: "), "{error}");
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_parses_prints_to_the_same_reference(text in "[a-zA-Z0-9._:/@-]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                proptest::prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
