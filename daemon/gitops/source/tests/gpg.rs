//! Commits signed by real `gpg`, with keys of a home of its own.

use super::*;

/// A home of keys; its agent ends with it.
struct Home(TempDir);

impl Home {
    fn new() -> Home {
        Home(TempDir::new().unwrap())
    }

    fn gpg(&self, args: &[&str]) -> Vec<u8> {
        let mut gpg = Command::new("gpg");
        gpg.args(["--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]).args(args);
        let done = gpg.env("GNUPGHOME", self.0.path()).output().unwrap();
        assert!(done.status.success(), "gpg {args:?}: {}", String::from_utf8_lossy(&done.stderr));
        done.stdout
    }

    /// Makes a key and returns its fingerprint.
    fn key(&self, mail: &str) -> String {
        self.gpg(&["--quick-generate-key", mail, "ed25519", "sign", "never"]);
        let listed = String::from_utf8(self.gpg(&["--with-colons", "--list-keys", mail])).unwrap();
        let line = listed.lines().find(|line| line.starts_with("fpr:")).unwrap();
        line.split(':').nth(9).unwrap().to_owned()
    }

    /// A program for git that signs with the keys of this home.
    fn program(&self) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.0.path().join("sign");
        let text = format!("#!/bin/sh\nGNUPGHOME='{}' exec gpg --batch \"$@\"\n", self.0.path().display());
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Revokes a key by the certificate that was made with it.
    fn revoke(&self, fingerprint: &str) {
        let made = self.0.path().join(format!("openpgp-revocs.d/{fingerprint}.rev"));
        // A colon keeps it from being imported by mistake.
        let text = fs::read_to_string(made).unwrap().replace(":-----BEGIN", "-----BEGIN");
        let path = self.0.path().join("revoked.asc");
        fs::write(&path, text).unwrap();
        self.gpg(&["--import", path.to_str().unwrap()]);
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // It may not have started one.
        let _ = Command::new("gpgconf").arg("--homedir").arg(self.0.path()).args(["--kill", "all"]).output();
    }
}

#[tokio::test]
async fn only_what_a_known_gpg_key_signed_is_deployed_and_a_revoked_one_is_not() {
    let repositories = Repositories::new();
    let home = Home::new();
    let (known, stranger) = (home.key("ada@example.org"), home.key("eve@example.org"));
    let keyring = repositories.above.path().join("keyring.gpg");
    fs::write(&keyring, home.gpg(&["--export", &known])).unwrap();
    let program = home.program();
    let commit = |key: Option<&str>, text: &str| {
        fs::write(repositories.work.join("a.yaml"), text).unwrap();
        git(&repositories.work, &["add", "-A"]);
        let program = format!("gpg.program={}", program.display());
        let signing = key.map(|key| format!("-S{key}"));
        let mut words = vec!["-c", &program, "commit", "-q", "-m", text];
        words.extend(signing.as_deref());
        git(&repositories.work, &words);
        git(&repositories.work, &["push", "-q", "origin", "HEAD:main"]);
    };
    commit(Some(&known), "signed");
    let verify = Verify { ssh_signers: None, gpg_keyring: Some(keyring.clone()) };
    let (_tasks, mut seen) = follow_verified(&repositories, "main", verify);
    seen.until_files(&[("a.yaml", "signed")]).await;
    for (key, word) in [(None, "not signed"), (Some(&*stranger), "does not hold")] {
        commit(key, word);
        let told = seen.until(word, |now| now.trouble.as_ref().is_some_and(|why| why.contains(word))).await;
        assert_eq!(files(&told), [("a.yaml", "signed")], "the last good state stays");
    }
    commit(Some(&known), "again");
    seen.until_files(&[("a.yaml", "again")]).await;
    commit(Some(&known), "once more");
    seen.until_files(&[("a.yaml", "once more")]).await;
    home.revoke(&known);
    fs::write(&keyring, home.gpg(&["--export", &known])).unwrap();
    let (_tasks, mut seen) = follow_verified(
        &repositories,
        "main",
        Verify { ssh_signers: None, gpg_keyring: Some(keyring.clone()) },
    );
    let told = seen.until("trouble", |now| now.trouble.is_some()).await;
    let why = told.trouble.as_ref().unwrap();
    assert!(why.contains("revoked") && told.snapshot.is_none(), "{why}");
}
