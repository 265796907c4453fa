//! What is said when a node stops, and when everything of it was taken away.

use std::path::Path;

/// After Ctrl-C: what is left running and how to take it away. `command` is how the node was called, with its options
/// and without `up`: `holdfast --data DIR`.
pub(crate) fn stopped(document: &serde_json::Value, command: &str) -> String {
    let objects: usize = super::status::applications(document)
        .map(|app| super::status::list(&app["status"]["objects"]).count())
        .sum();
    let of = match objects {
        0 => String::new(),
        1 => " of 1 object".to_owned(),
        many => format!(" of {many} objects"),
    };
    format!(
        "stopped. The containers{of} keep running, and so do their addresses and packet rules;\n\
         nothing starts them again or follows the files until the node is back.\n  \
         go on:             {command} up\n  take it all away:  {command} down\n"
    )
}

/// After everything was taken away.
pub(crate) fn gone(data: &Path) -> String {
    format!(
        "everything the node made on this machine is gone: containers, links, packet rules, cgroups, mounts.\n\
         Its objects, images and logs are kept in {}; remove that directory to forget them too.\n",
        data.display()
    )
}
