//! What strangers push and fetch, damaged in every way that a second allows.

use crate::build::damage::damaged;

use super::receive::{PushReader, fetch, packet};

const ONE: &str = "1111111111111111111111111111111111111111";

#[test]
fn damaged_pushes_and_fetches_are_read_or_refused() {
    let command = packet(&format!("{ONE} {ONE} refs/heads/main\0 report-status side-band-64k"));
    let push = [command.as_slice(), b"0000PACKrest"].concat();
    let fetch_all =
        [packet(&format!("want {ONE} side-band-64k")), b"0000".to_vec(), packet("done\n")].concat();
    let words = ["0000", "0004", "ffff", "00", "refs/heads/", "\0", "want ", "ERR "];
    damaged::each(&[&push, &fetch_all], &words, 20_000, |bytes| {
        let _ = fetch(bytes);
        let mut reader = PushReader::default();
        reader.lines.push(bytes);
        let Ok(Some(push)) = reader.advance() else { return };
        for command in push.commands {
            assert!(command.name.starts_with("refs/") && !command.name.contains(".."), "{command:?}");
        }
        assert!(reader.lines.rest().len() <= bytes.len());
    });
}
