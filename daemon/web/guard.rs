//! Who may ask for what: the page is plain HTTP without a login, so a browser must not be made to act for a stranger.
//!
//! Invariant: a page of another site can neither read nor change anything here.
//! Invariant: images are changed only by who can read the token's file, which is root.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use http::{HeaderMap, Method, header};

/// The file in the node's data directory that holds the token.
pub const TOKEN_FILE: &str = "web.token";

/// The token that requests which change images carry (`Authorization: Bearer …`): read from the node's data directory,
/// made there (mode 0600) when it is missing.
///
/// # Errors
/// When the file can be neither read nor written.
pub fn token(data_dir: &Path) -> io::Result<String> {
    let path = data_dir.join(TOKEN_FILE);
    match fs::read_to_string(&path) {
        // A shorter one is what a crash while writing left.
        Ok(token) if token.trim().len() == 64 => return Ok(token.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut bytes = [0_u8; 32];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&path)?;
    file.write_all(token.as_bytes())?;
    Ok(token)
}

/// Why a request is not answered: status and what to tell.
pub(crate) type Denial = (u16, String);

/// Looks at what every request must fulfil.
pub(crate) fn admit(method: &Method, headers: &HeaderMap, peer: SocketAddr) -> Result<(), Denial> {
    host(headers, peer)?;
    if matches!(*method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    same_origin(headers)
}

/// A page of another site can make its own name point at 127.0.0.1 (DNS rebinding); the browser then takes us for that
/// site and lets it read everything. Its requests give themselves away by the name in `Host`. Addresses cannot be
/// rebound, nor can `localhost`.
fn host(headers: &HeaderMap, peer: SocketAddr) -> Result<(), Denial> {
    if !peer.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    let host = text(headers, header::HOST).unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    if name == "localhost" || name.ends_with(".localhost") || name.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    Err((403, format!("host {host:?} is not answered on the loopback address: use 127.0.0.1 or localhost")))
}

/// A browser sends a form or a simple request of any site to us, only the answer is kept from that site. So whatever
/// changes something is refused when a browser says that another origin sent it. Programs that are no browser (curl, a
/// forge's webhook) send neither header and are let through.
fn same_origin(headers: &HeaderMap) -> Result<(), Denial> {
    let denial = || Err((403, "requests from pages of other origins are refused".to_owned()));
    match text(headers, header::HeaderName::from_static("sec-fetch-site")) {
        Some("same-origin" | "none") => return Ok(()),
        Some(_) => return denial(),
        None => {}
    }
    let Some(origin) = text(headers, header::ORIGIN) else { return Ok(()) };
    let host = text(headers, header::HOST).unwrap_or_default();
    let own = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    if own == Some(host) && !host.is_empty() { Ok(()) } else { denial() }
}

/// Looks at the token of a request that changes images.
pub(crate) fn authorize(headers: &HeaderMap, token: &str) -> Result<(), Denial> {
    let given = text(headers, header::AUTHORIZATION)
        .and_then(|value| value.strip_prefix("Bearer "))
        .unwrap_or_default();
    // Compared without an early end, so that time tells nothing of the token.
    let differences = given.bytes().zip(token.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b));
    if given.len() == token.len() && differences == 0 {
        return Ok(());
    }
    Err((
        401,
        format!("images are changed only with the token of file {TOKEN_FILE} in the node's data directory"),
    ))
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn check(method: Method, peer: &str, headers: &[(&'static str, &str)]) -> bool {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (header::HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        admit(&method, &headers, peer.parse().unwrap()).is_ok()
    }

    #[test]
    fn a_rebound_name_is_not_answered_on_loopback() {
        for (host, answered) in [
            ("127.0.0.1:9440", true),
            ("localhost:9440", true),
            ("[::1]:9440", true),
            ("evil.example:9440", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("", false),
        ] {
            assert_eq!(check(Method::GET, "127.0.0.1:5", &[("host", host)]), answered, "{host}");
        }
        assert!(check(Method::GET, "192.0.2.7:5", &[("host", "box.lan:9440")]));
        assert!(!check(Method::GET, "[::ffff:127.0.0.1]:5", &[("host", "evil.example")]));
    }

    #[test]
    fn a_page_of_another_origin_changes_nothing() {
        let host = ("host", "127.0.0.1:9440");
        for (header, answered) in [
            (("sec-fetch-site", "same-origin"), true),
            (("sec-fetch-site", "cross-site"), false),
            (("sec-fetch-site", "same-site"), false),
            (("origin", "http://127.0.0.1:9440"), true),
            (("origin", "http://127.0.0.1:8080"), false),
            (("origin", "null"), false),
            (("user-agent", "curl"), true),
        ] {
            assert_eq!(check(Method::POST, "127.0.0.1:5", &[host, header]), answered, "{header:?}");
        }
    }

    #[test]
    fn a_token_is_made_once_and_for_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        let made = token(dir.path()).unwrap();
        assert_eq!(made.len(), 64);
        assert_eq!(token(dir.path()).unwrap(), made);
        let mode = fs::metadata(dir.path().join(TOKEN_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let headers = |value: String| HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
        assert!(authorize(&headers(format!("Bearer {made}")), &made).is_ok());
        assert!(authorize(&headers(format!("Bearer {}", &made[1..])), &made).is_err());
        assert!(authorize(&HeaderMap::new(), &made).is_err());
    }
}
