//! Git's smart protocol (versions 0 and 1), the client's half: pure text in, text out, no socket.
//!
//! One request carries everything (want, shallow, deepen, have, done), so that it is the same for stateless HTTP and
//! for a pipe to `ssh`. libgit2's own transports would want OpenSSL and libssh2, and registering another one is not
//! safe Rust; a pack that arrived is given to libgit2's object database.
//!
//! Invariant: however the bytes are cut into pieces, the same comes out.

use std::collections::BTreeMap;

/// The refs of a repository, and what its server can do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Advertisement {
    /// Full name → object id, as hex. `HEAD` is one of them.
    pub(crate) refs: BTreeMap<String, String>,
    pub(crate) capabilities: Vec<String>,
}

impl Advertisement {
    fn can(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|known| known == capability)
    }
}

/// Takes packet lines off a stream of bytes that arrives in pieces.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    buffer: Vec<u8>,
    at: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Data(Vec<u8>),
    Flush,
}

impl Lines {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// All that was not read as lines.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let rest = self.buffer.split_off(self.at);
        self.buffer.clear();
        self.at = 0;
        rest
    }

    /// The next whole line, if it has arrived.
    pub(crate) fn next(&mut self) -> Result<Option<Line>, String> {
        let rest = &self.buffer[self.at..];
        let Some(head) = rest.get(..4) else { return Ok(None) };
        let length = std::str::from_utf8(head).ok().and_then(|hex| usize::from_str_radix(hex, 16).ok());
        let Some(length) = length else {
            let said = String::from_utf8_lossy(&rest[..rest.len().min(80)]).into_owned();
            return Err(format!("expected a packet line, got {said:?}"));
        };
        if length < 4 {
            self.at += 4;
            return Ok(Some(Line::Flush));
        }
        let Some(data) = rest.get(4..length) else { return Ok(None) };
        let data = data.to_vec();
        self.at += length;
        if let Some(error) = data.strip_prefix(b"ERR ") {
            return Err(String::from_utf8_lossy(error).trim().to_owned());
        }
        Ok(Some(Line::Data(data)))
    }
}

/// Reads an advertisement from lines; `Ok(None)` until its last line has arrived.
#[derive(Debug, Default)]
pub(crate) struct AdvertisementReader {
    pub(crate) lines: Lines,
    got: Advertisement,
    any: bool,
}

impl AdvertisementReader {
    pub(crate) fn advance(&mut self) -> Result<Option<Advertisement>, String> {
        while let Some(line) = self.lines.next()? {
            match line {
                // Over HTTP a first section names the service.
                Line::Flush if !self.any => {}
                Line::Flush => return Ok(Some(std::mem::take(&mut self.got))),
                Line::Data(data) if data.starts_with(b"# service=") => {}
                Line::Data(data) if data.starts_with(b"version ") => {}
                Line::Data(data) => self.reference(&data)?,
            }
        }
        Ok(None)
    }

    fn reference(&mut self, data: &[u8]) -> Result<(), String> {
        let text = String::from_utf8_lossy(data);
        let (reference, capabilities) = match text.split_once('\0') {
            Some((reference, capabilities)) => (reference, Some(capabilities)),
            None => (&*text, None),
        };
        if let Some(capabilities) = capabilities {
            self.got.capabilities = capabilities.split_whitespace().map(str::to_owned).collect();
        }
        self.any = true;
        let (id, name) = reference
            .trim_end()
            .split_once(' ')
            .ok_or_else(|| format!("expected a ref, got {reference:?}"))?;
        if name != "capabilities^{}" && id != "shallow" {
            self.got.refs.insert(name.to_owned(), id.to_owned());
        }
        Ok(())
    }
}

/// What to ask for: one object with nothing of its history, given what is there already.
pub(crate) fn request(advertised: &Advertisement, want: &str, have: &[String]) -> Vec<u8> {
    let mut body = Vec::new();
    let mut line = |text: &str| body.extend_from_slice(format!("{:04x}{text}", text.len() + 4).as_bytes());
    let shallow = advertised.can("shallow");
    let mut capabilities = vec!["agent=holdfast"];
    for capability in ["side-band-64k", "ofs-delta", "no-progress", "shallow"] {
        if advertised.can(capability) {
            capabilities.push(capability);
        }
    }
    line(&format!("want {want} {}\n", capabilities.join(" ")));
    if shallow {
        for id in have {
            line(&format!("shallow {id}\n"));
        }
        line("deepen 1\n");
    }
    body.extend_from_slice(b"0000");
    let mut line = |text: &str| body.extend_from_slice(format!("{:04x}{text}", text.len() + 4).as_bytes());
    for id in have {
        line(&format!("have {id}\n"));
    }
    line("done\n");
    body
}

/// Reads the answer to a request: takes bytes, gives the bytes of the pack.
#[derive(Debug)]
pub(crate) struct Answer {
    lines: Lines,
    side_band: bool,
    in_pack: bool,
    /// Bytes of the pack given so far.
    pub(crate) given: usize,
}

impl Answer {
    pub(crate) fn new(advertised: &Advertisement) -> Answer {
        Answer {
            lines: Lines::default(),
            side_band: advertised.can("side-band-64k"),
            in_pack: false,
            given: 0,
        }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        self.lines.push(bytes);
        let mut pack = Vec::new();
        loop {
            if self.in_pack && !self.side_band {
                pack.extend(self.lines.buffer.drain(self.lines.at..));
                break;
            }
            let Some(line) = self.lines.next()? else { break };
            match line {
                Line::Flush => {}
                Line::Data(data) if !self.in_pack => {
                    self.in_pack = data.starts_with(b"ACK ") || data.starts_with(b"NAK");
                }
                Line::Data(data) => match data.split_first() {
                    Some((1, bytes)) => pack.extend_from_slice(bytes),
                    Some((3, error)) => return Err(String::from_utf8_lossy(error).trim().to_owned()),
                    _ => {}
                },
            }
        }
        self.given += pack.len();
        Ok(pack)
    }
}

/// A range of versions begins so.
pub(crate) const SEMVER: &str = "semver:";

/// The newest version among the tags that is in a range. Tags that are no versions are passed over.
fn newest(refs: &BTreeMap<String, String>, range: &str) -> Option<(String, String)> {
    let range = semver::VersionReq::parse(range).ok()?;
    let version = |name: &str| {
        let tag = name.strip_prefix("refs/tags/")?;
        let version = semver::Version::parse(tag.strip_prefix('v').unwrap_or(tag)).ok()?;
        range.matches(&version).then_some(version)
    };
    let fitting = refs.iter().filter_map(|(name, id)| Some((version(name)?, name, id)));
    fitting.max_by(|a, b| a.0.cmp_precedence(&b.0)).map(|(_, name, id)| (name.clone(), id.clone()))
}

/// The full name and object id of what a person calls `main`, `v1`, `refs/pull/1/head` or a commit.
pub(crate) fn resolve(refs: &BTreeMap<String, String>, reference: &str) -> Option<(String, String)> {
    if let Some(range) = reference.strip_prefix(SEMVER) {
        return newest(refs, range);
    }
    let names = [reference.to_owned(), format!("refs/heads/{reference}"), format!("refs/tags/{reference}")];
    let named = names.iter().find_map(|name| refs.get(name).map(|id| (name.clone(), id.clone())));
    let commit = || {
        let hex = reference.len() == 40 && reference.bytes().all(|byte| byte.is_ascii_hexdigit());
        hex.then(|| (reference.to_owned(), reference.to_ascii_lowercase()))
    };
    named.or_else(commit)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    fn packet(text: &str) -> String {
        format!("{:04x}{text}", text.len() + 4)
    }

    const ONE: &str = "1111111111111111111111111111111111111111";
    const TWO: &str = "2222222222222222222222222222222222222222";

    #[test]
    fn an_advertisement_is_read_however_it_is_cut() {
        let text = [
            packet("# service=git-upload-pack\n"),
            "0000".to_owned(),
            packet(&format!("{ONE} HEAD\0side-band-64k shallow symref=HEAD:refs/heads/main\n")),
            packet(&format!("{ONE} refs/heads/main\n")),
            packet(&format!("{TWO} refs/tags/v1\n")),
            "0000".to_owned(),
        ]
        .concat();
        for cut in 0..text.len() {
            let mut reader = AdvertisementReader::default();
            reader.lines.push(&text.as_bytes()[..cut]);
            assert_eq!(reader.advance().unwrap(), None);
            reader.lines.push(&text.as_bytes()[cut..]);
            let got = reader.advance().unwrap().unwrap();
            assert_eq!(got.refs.len(), 3);
            assert!(got.can("shallow"));
            assert_eq!(resolve(&got.refs, "v1"), Some(("refs/tags/v1".to_owned(), TWO.to_owned())));
            assert_eq!(resolve(&got.refs, "HEAD").unwrap().1, ONE);
            assert_eq!(resolve(&got.refs, TWO).unwrap().1, TWO);
            assert_eq!(resolve(&got.refs, "nope"), None);
        }
    }

    #[test]
    fn a_range_of_versions_finds_its_newest_tag() {
        let tags = ["v1.2.0", "1.10.1", "v1.9.9", "v2.0.0", "v1.11.0-rc.1", "latest", "v1"];
        let refs = tags.iter().map(|tag| (format!("refs/tags/{tag}"), format!("id of {tag}"))).collect();
        for (range, want) in
            [("^1.2", Some("1.10.1")), (">=1.0, <1.10", Some("v1.9.9")), ("*", Some("v2.0.0")), ("3", None)]
        {
            let found = resolve(&refs, &format!("{SEMVER}{range}")).map(|(name, _)| name);
            assert_eq!(found, want.map(|tag| format!("refs/tags/{tag}")), "{range}");
        }
    }

    #[test]
    fn a_web_page_is_not_mistaken_for_git() {
        let mut reader = AdvertisementReader::default();
        reader.lines.push(b"<!DOCTYPE html><html>");
        assert!(reader.advance().unwrap_err().contains("DOCTYPE"));
    }

    #[test]
    fn the_pack_comes_out_of_the_side_band() {
        let can =
            Advertisement { capabilities: vec!["side-band-64k".to_owned()], ..Advertisement::default() };
        let text = [
            packet(&format!("shallow {ONE}\n")),
            "0000".to_owned(),
            packet("NAK\n"),
            packet("\u{2}counting"),
            packet("\u{1}PACK"),
            packet("\u{1}rest"),
            "0000".to_owned(),
        ]
        .concat();
        for cut in 0..text.len() {
            let mut answer = Answer::new(&can);
            let mut pack = answer.push(&text.as_bytes()[..cut]).unwrap();
            pack.extend(answer.push(&text.as_bytes()[cut..]).unwrap());
            assert_eq!(pack, b"PACKrest");
        }
        let mut answer = Answer::new(&can);
        assert_eq!(
            answer.push(packet("ERR upload-pack: not our ref\n").as_bytes()).unwrap_err(),
            "upload-pack: not our ref"
        );
    }
}
