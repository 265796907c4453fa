//! Git's smart protocol, the server's half: what a client may push and fetch, as text in and text out, no socket.
//!
//! Invariant: however the bytes are cut into pieces, the same comes out; nothing a client says is trusted for a path.

use std::collections::BTreeMap;

use super::smart::{Line, Lines};

/// Ref updates that one push may ask for.
const MOST_COMMANDS: usize = 1000;
/// What goes into one packet of a side band.
const BAND: usize = 65_515;

/// Which way the objects go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// `git push`.
    Receive,
    /// `git fetch`.
    Upload,
}

impl Service {
    /// As it is asked for.
    pub fn parse(name: &str) -> Option<Service> {
        match name {
            "git-receive-pack" => Some(Service::Receive),
            "git-upload-pack" => Some(Service::Upload),
            _ => None,
        }
    }

    /// As it is called.
    pub fn name(self) -> &'static str {
        match self {
            Service::Receive => "git-receive-pack",
            Service::Upload => "git-upload-pack",
        }
    }
}

/// A packet.
pub(crate) fn packet(text: &str) -> Vec<u8> {
    format!("{:04x}{text}", text.len() + 4).into_bytes()
}

/// The list of refs.
pub(crate) fn advertisement(
    service: Service,
    refs: &BTreeMap<String, String>,
    head: Option<&str>,
) -> Vec<u8> {
    let mut text = packet(&format!("# service={}\n", service.name()));
    text.extend_from_slice(b"0000");
    let mut capabilities = match service {
        // A pack without its bases would not pass the check before it is accepted.
        Service::Receive => "report-status delete-refs side-band-64k ofs-delta no-thin".to_owned(),
        Service::Upload => "side-band-64k ofs-delta no-progress include-tag".to_owned(),
    };
    capabilities.push_str(" agent=holdfast");
    if let (Service::Upload, Some(head)) = (service, head) {
        capabilities.push_str(&format!(" symref=HEAD:{head}"));
    }
    let mut names: Vec<(&str, &str)> = Vec::new();
    if service == Service::Upload {
        names.extend(head.and_then(|head| refs.get(head)).map(|id| ("HEAD", id.as_str())));
    }
    names.extend(
        refs.iter().filter(|(name, _)| *name != "HEAD").map(|(name, id)| (name.as_str(), id.as_str())),
    );
    if names.is_empty() {
        let zero = "0".repeat(40);
        text.extend(packet(&format!("{zero} capabilities^{{}}\0{capabilities}\n")));
    }
    for (at, (name, id)) in names.into_iter().enumerate() {
        let capabilities = if at == 0 { format!("\0{capabilities}") } else { String::new() };
        text.extend(packet(&format!("{id} {name}{capabilities}\n")));
    }
    text.extend_from_slice(b"0000");
    text
}

/// A wish to move a ref.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command {
    /// Nothing for a ref that is to be made.
    pub(crate) old: Option<String>,
    /// Nothing for a ref that is to go.
    pub(crate) new: Option<String>,
    pub(crate) name: String,
}

/// What a push asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Push {
    pub(crate) commands: Vec<Command>,
    pub(crate) side_band: bool,
    pub(crate) report: bool,
}

/// Reads the commands of a push; `Ok(None)` until the last one has arrived. What follows in `lines` is the pack.
#[derive(Debug, Default)]
pub(crate) struct PushReader {
    pub(crate) lines: Lines,
    got: Push,
}

impl PushReader {
    pub(crate) fn advance(&mut self) -> Result<Option<Push>, String> {
        while let Some(line) = self.lines.next()? {
            let Line::Data(data) = line else { return Ok(Some(std::mem::take(&mut self.got))) };
            let text = String::from_utf8(data).map_err(|_| "a ref's name is not UTF-8".to_owned())?;
            let (command, capabilities) = text.split_once('\0').unwrap_or((&text, ""));
            if command.starts_with("shallow ") {
                return Err("a push from a shallow clone is not taken; fetch its history first".to_owned());
            }
            for capability in capabilities.split_whitespace() {
                self.got.side_band |= capability == "side-band-64k";
                self.got.report |= capability == "report-status";
            }
            self.got.commands.push(parse(command.trim_end())?);
            if self.got.commands.len() > MOST_COMMANDS {
                return Err(format!("more than {MOST_COMMANDS} refs in one push"));
            }
        }
        Ok(None)
    }
}

fn parse(command: &str) -> Result<Command, String> {
    let mut words = command.splitn(3, ' ');
    let (Some(old), Some(new), Some(name)) = (words.next(), words.next(), words.next()) else {
        return Err(format!("expected a command, got {command:?}"));
    };
    let id = |text: &str| {
        let is_id = text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_id {
            return Err(format!("{text:?} is no object id"));
        }
        Ok((!text.bytes().all(|byte| byte == b'0')).then(|| text.to_ascii_lowercase()))
    };
    if !name.starts_with("refs/") || !git2::Reference::is_valid_name(name) {
        return Err(format!("{name:?} is no name for a ref"));
    }
    Ok(Command { old: id(old)?, new: id(new)?, name: name.to_owned() })
}

/// What a fetch asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Fetch {
    pub(crate) want: Vec<String>,
    pub(crate) have: Vec<String>,
    pub(crate) done: bool,
    pub(crate) side_band: bool,
}

/// Reads a whole request of a fetch.
pub(crate) fn fetch(body: &[u8]) -> Result<Fetch, String> {
    let mut lines = Lines::default();
    lines.push(body);
    let mut got = Fetch::default();
    while let Some(line) = lines.next()? {
        let Line::Data(data) = line else { continue };
        let text = String::from_utf8_lossy(&data);
        let text = text.trim_end();
        let id = |rest: &str| rest.split_whitespace().next().unwrap_or_default().to_owned();
        if let Some(rest) = text.strip_prefix("want ") {
            got.side_band |= rest.split_whitespace().any(|word| word == "side-band-64k");
            got.want.push(id(rest));
        } else if let Some(rest) = text.strip_prefix("have ") {
            got.have.push(id(rest));
        } else if text == "done" {
            got.done = true;
        } else if text.starts_with("deepen") || text.starts_with("shallow") {
            return Err("shallow clones of this repository are not served; clone it whole".to_owned());
        }
    }
    Ok(got)
}

/// Packets of one band: 1 is data, 2 is for the person, 3 ends everything.
pub(crate) fn band(number: u8, data: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(data.len() + 5);
    for part in data.chunks(BAND) {
        text.extend_from_slice(format!("{:04x}", part.len() + 5).as_bytes());
        text.push(number);
        text.extend_from_slice(part);
    }
    text
}

/// The end of a push: what became of each ref.
pub(crate) fn report(unpacked: Result<(), &str>, refs: &[(String, Result<(), String>)]) -> Vec<u8> {
    let mut text = match unpacked {
        Ok(()) => packet("unpack ok\n"),
        Err(why) => packet(&format!("unpack {}\n", one_line(why))),
    };
    for (name, result) in refs {
        text.extend(match result {
            Ok(()) => packet(&format!("ok {name}\n")),
            Err(why) => packet(&format!("ng {name} {}\n", one_line(why))),
        });
    }
    text.extend_from_slice(b"0000");
    text
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    const ONE: &str = "1111111111111111111111111111111111111111";

    #[test]
    fn commands_are_read_however_they_are_cut_and_the_pack_is_what_follows() {
        let zero = "0".repeat(40);
        let mut text =
            packet(&format!("{zero} {ONE} refs/heads/main\0 report-status side-band-64k agent=git/2"));
        text.extend(packet(&format!("{ONE} {zero} refs/heads/old")));
        text.extend_from_slice(b"0000PACKrest");
        for cut in 0..text.len() {
            let mut reader = PushReader::default();
            reader.lines.push(&text[..cut]);
            let first = reader.advance().unwrap();
            reader.lines.push(&text[cut..]);
            let push = first.or_else(|| reader.advance().unwrap()).unwrap();
            assert!(push.side_band && push.report);
            assert_eq!(push.commands[0].new.as_deref(), Some(ONE));
            assert_eq!((push.commands[0].old.as_deref(), push.commands[1].new.as_deref()), (None, None));
            assert_eq!(reader.lines.rest(), b"PACKrest");
        }
    }

    #[test]
    fn names_and_ids_that_could_lead_elsewhere_are_refused() {
        for command in [
            format!("{ONE} {ONE} refs/heads/../../etc"),
            format!("{ONE} {ONE} HEAD"),
            format!("{ONE} ../../x refs/heads/a"),
            format!("{ONE} {ONE}"),
        ] {
            assert!(parse(&command).is_err(), "{command}");
        }
    }

    #[test]
    fn long_messages_are_cut_into_packets() {
        let text = band(2, &vec![b'x'; BAND + 1]);
        assert_eq!(&text[..5], b"fff0\x02");
        assert_eq!(&text[BAND + 5..], b"0006\x02x");
    }
}
