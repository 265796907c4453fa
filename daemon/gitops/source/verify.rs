//! Who signed a commit or a tag: SSH signatures by ring, GPG's by the `gpgv` program.
//!
//! Invariant: what is unsigned, signed by somebody unknown, or cannot be checked is not deployed.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use git2::{ObjectType, Oid, Repository};
use ring::{digest, signature};
use serde::{Deserialize, Serialize};

/// Whose signatures count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// A file in the form of OpenSSH's `allowed_signers`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_signers: Option<PathBuf>,
    /// A keyring that `gpgv` reads, as `gpg --export KEY > FILE` writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpg_keyring: Option<PathBuf>,
}

impl Verify {
    /// Looks at the signature of a commit, or of the tag that leads to it.
    pub(crate) fn check(&self, repository: &Repository, id: Oid) -> Result<(), String> {
        let object = repository.find_object(id, None).map_err(|error| error.message().to_owned())?;
        let (signature, signed) = match object.kind() {
            Some(ObjectType::Tag) => match tag(repository, id)? {
                Some(parts) => parts,
                None => commit(repository, object.peel_to_commit().map_err(said)?.id())?,
            },
            _ => commit(repository, object.peel_to_commit().map_err(said)?.id())?,
        };
        if signature.contains("BEGIN SSH SIGNATURE") {
            let signers = self.ssh_signers.as_deref();
            let signers = signers.ok_or("it is signed with an SSH key, but verify.ssh_signers is not set")?;
            return ssh(&signature, &signed, signers);
        }
        let keyring = self.gpg_keyring.as_deref();
        gpg(&signature, &signed, keyring.ok_or("it is signed with GPG, but verify.gpg_keyring is not set")?)
    }
}

fn said(error: git2::Error) -> String {
    error.message().to_owned()
}

fn commit(repository: &Repository, id: Oid) -> Result<(String, Vec<u8>), String> {
    let parts = repository.extract_signature(&id, None).map_err(|_| "it is not signed".to_owned())?;
    Ok((String::from_utf8_lossy(&parts.0).into_owned(), parts.1.to_vec()))
}

/// The signature at the end of an annotated tag, and the text before it.
fn tag(repository: &Repository, id: Oid) -> Result<Option<(String, Vec<u8>)>, String> {
    let odb = repository.odb().map_err(said)?;
    let object = odb.read(id).map_err(said)?;
    let text = String::from_utf8_lossy(object.data()).into_owned();
    let begins = ["-----BEGIN SSH SIGNATURE-----", "-----BEGIN PGP SIGNATURE-----"];
    let at = begins.iter().filter_map(|begin| text.find(begin)).min();
    Ok(at.map(|at| (text[at..].to_owned(), object.data()[..at].to_vec())))
}

/// Length-prefixed parts, as SSH writes them.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_at_checked(4)?;
        let length = u32::from_be_bytes(length.try_into().ok()?);
        let (part, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(part)
    }
}

fn part(text: &mut Vec<u8>, bytes: &[u8]) {
    text.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    text.extend_from_slice(bytes);
}

fn ssh(armoured: &str, signed: &[u8], signers: &Path) -> Result<(), String> {
    let body: String = armoured.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
    let blob = STANDARD.decode(body).map_err(|_| "its SSH signature is not base64".to_owned())?;
    let broken = || "its SSH signature is cut off".to_owned();
    let rest = blob.strip_prefix(b"SSHSIG\0\0\0\x01").ok_or_else(broken)?;
    let mut parts = Parts(rest);
    let mut next = || parts.next().ok_or_else(broken);
    let (key, namespace, reserved, hash, signature) = (next()?, next()?, next()?, next()?, next()?);
    if namespace != b"git" {
        return Err("its SSH signature was made for something else than Git".to_owned());
    }
    known(key, signers)?;
    let algorithm = match hash {
        b"sha256" => &digest::SHA256,
        b"sha512" => &digest::SHA512,
        other => return Err(format!("its SSH signature hashes with {}", String::from_utf8_lossy(other))),
    };
    let mut message = b"SSHSIG".to_vec();
    part(&mut message, namespace);
    part(&mut message, reserved);
    part(&mut message, hash);
    part(&mut message, digest::digest(algorithm, signed).as_ref());
    if is_signed_by(key, &message, signature)? {
        Ok(())
    } else {
        Err("its SSH signature is false".to_owned())
    }
}

/// Whether a key is among the allowed ones.
fn known(key: &[u8], signers: &Path) -> Result<(), String> {
    let shown = signers.display();
    let text = fs::read_to_string(signers).map_err(|error| format!("read {shown}: {error}"))?;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_kind =
            |word: &&str| word.starts_with("ssh-") || word.starts_with("ecdsa-") || word.starts_with("sk-");
        let Some(at) = words.iter().skip(1).position(is_kind).map(|at| at + 1) else { continue };
        let is_key =
            words.get(at + 1).and_then(|key| STANDARD.decode(key).ok()).is_some_and(|known| known == key);
        if !is_key {
            continue;
        }
        let options = words[1..at].join(" ");
        let mut others = options.split(',').filter(|option| !option.is_empty());
        if let Some(other) = others.find(|option| !option.starts_with("namespaces=")) {
            return Err(format!("its key has the option {other} in {shown}, which is not understood"));
        }
        if options.starts_with("namespaces=") && !options.contains("git") {
            return Err(format!("its key is not for the namespace git in {shown}"));
        }
        return Ok(());
    }
    let fingerprint = STANDARD.encode(digest::digest(&digest::SHA256, key).as_ref());
    let fingerprint = fingerprint.trim_end_matches('=');
    Err(format!("the key that signed it (SHA256:{fingerprint}) is not in {shown}"))
}

fn is_signed_by(key: &[u8], message: &[u8], made: &[u8]) -> Result<bool, String> {
    let broken = || "its SSH signature is cut off".to_owned();
    let (mut key, mut made) = (Parts(key), Parts(made));
    let kind = key.next().ok_or_else(broken)?;
    let (form, bytes) = (made.next().ok_or_else(broken)?, made.next().ok_or_else(broken)?);
    let mut next = || key.next().ok_or_else(broken);
    match (kind, form) {
        (b"ssh-ed25519", b"ssh-ed25519") => {
            let public = signature::UnparsedPublicKey::new(&signature::ED25519, next()?);
            Ok(public.verify(message, bytes).is_ok())
        }
        (b"ssh-rsa", b"rsa-sha2-512" | b"rsa-sha2-256") => {
            let (e, n) = (next()?, next()?);
            let strip =
                |number: &[u8]| -> Vec<u8> { number.iter().copied().skip_while(|byte| *byte == 0).collect() };
            let public = signature::RsaPublicKeyComponents { n: strip(n), e: strip(e) };
            let scheme = match form {
                b"rsa-sha2-512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                _ => &signature::RSA_PKCS1_2048_8192_SHA256,
            };
            Ok(public.verify(scheme, message, bytes).is_ok())
        }
        (b"ecdsa-sha2-nistp256", _) => {
            ecdsa(&signature::ECDSA_P256_SHA256_FIXED, 32, &mut next, message, bytes)
        }
        (b"ecdsa-sha2-nistp384", _) => {
            ecdsa(&signature::ECDSA_P384_SHA384_FIXED, 48, &mut next, message, bytes)
        }
        (kind, _) => Err(format!(
            "it is signed with a key of kind {}, which cannot be checked here; use ed25519, ecdsa (256, 384) or rsa",
            String::from_utf8_lossy(kind)
        )),
    }
}

fn ecdsa<'k>(
    scheme: &'static dyn signature::VerificationAlgorithm,
    size: usize,
    next: &mut dyn FnMut() -> Result<&'k [u8], String>,
    message: &[u8],
    made: &[u8],
) -> Result<bool, String> {
    let _curve = next()?;
    let public = signature::UnparsedPublicKey::new(scheme, next()?);
    let mut numbers = Parts(made);
    let mut fixed = Vec::new();
    for _ in 0..2 {
        let number = numbers.next().unwrap_or_default();
        let number: Vec<u8> = number.iter().copied().skip_while(|byte| *byte == 0).collect();
        if number.len() > size {
            return Ok(false);
        }
        fixed.extend(std::iter::repeat_n(0, size - number.len()));
        fixed.extend(number);
    }
    Ok(public.verify(message, &fixed).is_ok())
}

/// Asks `gpgv`, which trusts the keys of its keyring and no others.
fn gpg(armoured: &str, signed: &[u8], keyring: &Path) -> Result<(), String> {
    let file = tempfile().map_err(|error| format!("write the signature into a file: {error}"))?;
    let run = || -> std::io::Result<std::process::Output> {
        fs::write(&file.0, armoured)?;
        let keyring = std::path::absolute(keyring)?;
        let mut command = Command::new("gpgv");
        command.args(["--status-fd", "1", "--keyring"]).arg(keyring).arg("--").arg(&file.0).arg("-");
        command.env("LC_ALL", "C").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut input) = child.stdin.take() {
            // It may end before it has read everything; what it says tells why.
            let _ = input.write_all(signed);
        }
        child.wait_with_output()
    };
    match run() {
        // It trusts whatever its keyring holds, and of a revoked key it only says so.
        Ok(output) if String::from_utf8_lossy(&output.stdout).contains("[GNUPG:] REVKEYSIG ") => {
            Err("its GPG key was revoked; sign it with another one".to_owned())
        }
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let last =
                text.lines().last().unwrap_or("it said nothing").trim_start_matches("gpgv: ").to_owned();
            Err(format!("its GPG signature does not hold: {last}"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err("it is signed with GPG, and the program gpgv (Debian: gpgv) is not on this machine"
                .to_owned())
        }
        Err(error) => Err(format!("run gpgv: {error}")),
    }
}

/// A file that is removed with its name.
struct Passing(PathBuf);

impl Drop for Passing {
    fn drop(&mut self) {
        // It may not have been made.
        let _ = fs::remove_file(&self.0);
    }
}

fn tempfile() -> std::io::Result<Passing> {
    use std::os::unix::fs::OpenOptionsExt;
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("holdfast-signature-{}-{number}", std::process::id()));
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    Ok(Passing(path))
}
