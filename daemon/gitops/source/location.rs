//! Where a repository lives, as a person writes it.
//!
//! Invariant: what is shown never holds a password or a token.

use std::fmt;
use std::path::PathBuf;

/// A repository's place.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Location {
    /// A path on this machine, or `file://`.
    Local(PathBuf),
    /// `https://` or `http://`, as written, with credentials if there are any.
    Http(String),
    /// `ssh://` or `user@host:path`.
    Ssh {
        /// `host` or `user@host`.
        host: String,
        /// Nothing for ssh's own default.
        port: Option<u16>,
        /// The path on that host.
        path: String,
    },
}

impl Location {
    /// Reads a path or a URL.
    ///
    /// # Errors
    /// A sentence that names what is wrong.
    pub(crate) fn parse(text: &str) -> Result<Location, String> {
        let text = text.trim();
        if let Some(path) = text.strip_prefix("file://") {
            return absolute(path.strip_prefix("localhost").unwrap_or(path), text);
        }
        if text.starts_with("https://") || text.starts_with("http://") {
            let host = text.split("://").nth(1).unwrap_or("").split('/').next().unwrap_or("");
            let host = host.rsplit('@').next().unwrap_or("");
            return if host.is_empty() {
                Err(format!("{} names no host", redact(text)))
            } else {
                Ok(Location::Http(text.trim_end_matches('/').to_owned()))
            };
        }
        if let Some(rest) = text.strip_prefix("ssh://") {
            return ssh_url(rest, text);
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(format!(
                "{scheme}:// is not a way to a repository here; use a path, file://, https:// or ssh://"
            ));
        }
        match text.split_once(':') {
            // As git does: a colon before the first slash makes it a host.
            Some((host, path)) if !host.contains('/') => ssh(host, None, path, text),
            _ if text.is_empty() => Err("`git` is empty; write a path or a URL".to_owned()),
            _ => Ok(Location::Local(PathBuf::from(text))),
        }
    }

    /// The name without secrets, for people and for keys.
    pub(crate) fn shown(&self) -> String {
        self.to_string()
    }
}

fn absolute(path: &str, text: &str) -> Result<Location, String> {
    if path.starts_with('/') {
        Ok(Location::Local(PathBuf::from(path)))
    } else {
        Err(format!("{text} is not absolute; write file:///path"))
    }
}

fn ssh_url(rest: &str, text: &str) -> Result<Location, String> {
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => {
            let port = port.parse().map_err(|_| format!("{text} has a port that is not a number"))?;
            (host, Some(port))
        }
        None => (authority, None),
    };
    ssh(host, port, &format!("/{path}"), text)
}

fn ssh(host: &str, port: Option<u16>, path: &str, text: &str) -> Result<Location, String> {
    let path = path.strip_prefix("/~").map_or(path.to_owned(), |home| format!("~{home}"));
    let name = host.rsplit('@').next().unwrap_or("");
    // A host or path that begins with a dash would be read by ssh or git as an option.
    if name.is_empty() || host.starts_with('-') || name.starts_with('-') {
        return Err(format!("{text} names no host"));
    }
    if path.trim_matches('/').is_empty() || path.starts_with('-') {
        return Err(format!("{text} names no repository on that host"));
    }
    Ok(Location::Ssh { host: host.to_owned(), port, path })
}

/// A URL without what stands before the `@`.
pub(crate) fn redact(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit('@').next().unwrap_or(authority);
            format!("{scheme}://{host}{path}")
        }
        None => url.to_owned(),
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Local(path) => write!(f, "{}", path.display()),
            Location::Http(url) => f.write_str(&redact(url)),
            Location::Ssh { host, port: Some(port), path } => write!(f, "ssh://{host}:{port}{path}"),
            Location::Ssh { host, port: None, path } => write!(f, "{host}:{path}"),
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({self})")
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_repository_is_understood() {
        for (text, want) in [
            ("/srv/r.git", "/srv/r.git"),
            ("file:///srv/r.git", "/srv/r.git"),
            ("repo", "repo"),
            ("https://me:secret@example.org/a/b.git/", "https://example.org/a/b.git"),
            ("ssh://git@host:2222/a.git", "ssh://git@host:2222/a.git"),
            ("ssh://git@host/a.git", "git@host:/a.git"),
            ("ssh://git@host/~me/a.git", "git@host:~me/a.git"),
            ("git@host:a/b.git", "git@host:a/b.git"),
        ] {
            assert_eq!(Location::parse(text).unwrap().to_string(), want);
        }
    }

    #[test]
    fn what_is_no_repository_is_refused_by_name() {
        for text in [
            "",
            "ftp://x/y",
            "https:///x",
            "ssh://host",
            "ssh://host:x/y",
            "file://rel",
            "-oProxyCommand=x:y",
        ] {
            assert!(Location::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_token_is_never_shown() {
        let location = Location::parse("https://x:t0ken@example.org/a").unwrap();
        assert!(!format!("{location} {location:?}").contains("t0ken"));
    }
}
