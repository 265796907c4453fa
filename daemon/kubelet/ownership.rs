//! `fsGroup`: whose a pod's volumes become, and what the group may do with them.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use k8s_openapi::api::core::v1::PodSpec;

/// What the group may do with files and with directories, and that what is made in a directory is the group's too.
const FILE: u32 = 0o660;
const DIRECTORY: u32 = 0o2770;

/// The group of a pod's volumes.
#[derive(Debug, Clone, Hash, PartialEq)]
pub(crate) struct Group {
    pub(crate) gid: u32,
    /// A volume whose root is the group's already is taken to be the group's altogether.
    pub(crate) only_on_mismatch: bool,
}

impl Group {
    /// As the pod's security context says.
    pub(crate) fn of(spec: &PodSpec) -> Option<Group> {
        let context = spec.security_context.as_ref()?;
        let only_on_mismatch = context.fs_group_change_policy.as_deref() == Some("OnRootMismatch");
        Some(Group { gid: u32::try_from(context.fs_group?).ok()?, only_on_mismatch })
    }

    /// Gives a volume, with all that is in it, to the group.
    pub(crate) fn give(&self, volume: &Path) -> io::Result<()> {
        let meta = fs::metadata(volume)?;
        if self.only_on_mismatch && meta.gid() == self.gid && meta.mode() & DIRECTORY == DIRECTORY {
            return Ok(());
        }
        let mut open = vec![volume.to_owned()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                let meta = entry.metadata()?;
                if meta.is_dir() {
                    open.push(entry.path());
                } else {
                    self.give_one(&entry.path(), &meta)?;
                }
            }
            // After what it holds, so that one that is cut short is seen to be unfinished.
            self.give_one(&dir, &fs::symlink_metadata(&dir)?)?;
        }
        Ok(())
    }

    fn give_one(&self, path: &Path, meta: &Metadata) -> io::Result<()> {
        if meta.gid() != self.gid {
            lchown(path, None, Some(self.gid))?;
        }
        let wanted = meta.mode() & 0o7777 | if meta.is_dir() { DIRECTORY } else { FILE };
        if !meta.is_symlink() && meta.mode() & 0o7777 != wanted {
            fs::set_permissions(path, fs::Permissions::from_mode(wanted))?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_volume_becomes_the_groups_with_all_that_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        fs::create_dir_all(volume.join("deep")).unwrap();
        fs::write(volume.join("deep/file"), "x").unwrap();
        fs::set_permissions(volume.join("deep/file"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&outside, "x").unwrap();
        symlink(&outside, volume.join("link")).unwrap();
        // The group of whoever runs this test: others could not be given.
        let gid = fs::metadata(&outside).unwrap().gid();
        Group { gid, only_on_mismatch: false }.give(&volume).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&volume.join("deep/file")), 0o660);
        assert_eq!(mode(&volume.join("deep")) & 0o2770, 0o2770);
        assert_eq!(mode(&outside) & 0o020, 0, "what a link points to is not the volume's");
        fs::set_permissions(volume.join("deep/file"), fs::Permissions::from_mode(0o600)).unwrap();
        Group { gid, only_on_mismatch: true }.give(&volume).unwrap();
        assert_eq!(mode(&volume.join("deep/file")), 0o600);
    }
}
