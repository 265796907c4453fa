//! The node's own certificates: a CA made at the first start, a server certificate, an administrator's, a kubeconfig.
//!
//! Invariant: the CA is made once and kept, so that every kubeconfig that was ever given out goes on working; the other
//! certificates are made anew when they are missing, near their end, or lack a name the server is reached by.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{Timestamp, ToSpan};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};

/// What can go wrong with certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file of the pki directory.
    #[error("{attempt} {path}")]
    File {
        /// `read` or `write`.
        attempt: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A certificate could not be made or read.
    #[error(
        "make the {what} certificate in {dir}: if its files are damaged, remove the directory and start again (kubeconfigs given out before stop working)"
    )]
    Certificate {
        /// `ca`, `server`, `admin` or `sa`.
        what: &'static str,
        /// Where.
        dir: PathBuf,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
}

/// The certificates of one node, as PEM.
#[derive(Clone)]
pub struct Pki {
    /// The CA's certificate, which clients trust.
    pub ca: String,
    /// The CA's key, which never leaves this room.
    pub(crate) ca_key: String,
    /// The server's certificate.
    pub server: String,
    /// The server's key.
    pub server_key: String,
    /// The key that signs tokens of ServiceAccounts. It lives as long as the CA: tokens given out go on working.
    pub token_key: String,
    /// Where the administrator's kubeconfig lies.
    pub kubeconfig: PathBuf,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki").field("kubeconfig", &self.kubeconfig).finish_non_exhaustive()
    }
}

impl Pki {
    /// Reads or makes the certificates in `dir`. `names` are what the server is reached by besides its address;
    /// `listen` is where it listens.
    ///
    /// # Errors
    /// When a file cannot be read or written, or holds no certificate.
    pub fn open(dir: &Path, names: &[String], listen: SocketAddr, now: Timestamp) -> Result<Pki, PkiError> {
        fs::create_dir_all(dir).map_err(|source| PkiError::File {
            attempt: "create",
            path: dir.to_owned(),
            source,
        })?;
        let (ca, ca_key) = pair(dir, "ca", now, |key| ca_params().self_signed(key).map(|cert| cert.pem()))?;
        let issuer = || -> Result<Issuer<'static, KeyPair>, rcgen::Error> {
            Issuer::from_ca_cert_pem(&ca, KeyPair::from_pem(&ca_key)?)
        };
        let mut sans: Vec<String> =
            vec![listen.ip().to_string(), "localhost".to_owned(), "127.0.0.1".to_owned()];
        sans.extend(names.iter().cloned());
        sans.sort();
        sans.dedup();
        let known = fs::read_to_string(dir.join("server.names")).unwrap_or_default();
        if known.lines().ne(sans.iter().map(String::as_str)) {
            // Errors other than "not there" show up when the files are written again.
            let _ = fs::remove_file(dir.join("server.crt"));
        }
        let (server, server_key) = pair(dir, "server", now, |key| {
            leaf("holdfast", &[], sans.clone(), ExtendedKeyUsagePurpose::ServerAuth, now)?
                .signed_by(key, &issuer()?)
                .map(|cert| cert.pem())
        })?;
        if known.lines().ne(sans.iter().map(String::as_str)) {
            write(&dir.join("server.names"), &(sans.join("\n") + "\n"))?;
        }
        let (admin, admin_key) = pair(dir, "admin", now, |key| {
            leaf("holdfast-admin", &["system:masters"], Vec::new(), ExtendedKeyUsagePurpose::ClientAuth, now)?
                .signed_by(key, &issuer()?)
                .map(|cert| cert.pem())
        })?;
        let kubeconfig = dir.join("admin.kubeconfig");
        let text = kubeconfig_text(&ca, &admin, &admin_key, listen);
        if fs::read_to_string(&kubeconfig).ok().as_deref() != Some(&text) {
            write(&kubeconfig, &text)?;
        }
        let token_key = token_key(dir)?;
        Ok(Pki { ca, ca_key, server, server_key, token_key, kubeconfig })
    }
}

/// The key in `sa.key`: read, or made when missing.
fn token_key(dir: &Path) -> Result<String, PkiError> {
    let path = dir.join("sa.key");
    match fs::read_to_string(&path) {
        Ok(key) => Ok(key),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let failed = |source| PkiError::Certificate { what: "sa", dir: dir.to_owned(), source };
            let key = KeyPair::generate().map_err(failed)?.serialize_pem();
            write(&path, &key)?;
            Ok(key)
        }
        Err(source) => Err(PkiError::File { attempt: "read", path, source }),
    }
}

/// A certificate and its key: read, or made when missing or due.
fn pair(
    dir: &Path,
    what: &'static str,
    now: Timestamp,
    make: impl Fn(&KeyPair) -> Result<String, rcgen::Error>,
) -> Result<(String, String), PkiError> {
    let (cert_path, key_path) = (dir.join(format!("{what}.crt")), dir.join(format!("{what}.key")));
    if let (Ok(cert), Ok(key)) = (fs::read_to_string(&cert_path), fs::read_to_string(&key_path))
        && !ends_soon(&cert, now)
    {
        return Ok((cert, key));
    }
    let failed = |source| PkiError::Certificate { what, dir: dir.to_owned(), source };
    let key = KeyPair::generate().map_err(failed)?;
    let cert = make(&key).map_err(failed)?;
    write(&key_path, &key.serialize_pem())?;
    write(&cert_path, &cert)?;
    Ok((cert, key.serialize_pem()))
}

/// Within 30 days of its end, or unreadable.
fn ends_soon(pem: &str, now: Timestamp) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(pem.as_bytes()) else { return true };
    let Ok(cert) = pem.parse_x509() else { return true };
    cert.validity().not_after.timestamp() < now.as_second() + 30 * 24 * 3600
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "holdfast-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
    params
}

fn leaf(
    name: &str,
    groups: &[&str],
    names: Vec<String>,
    usage: ExtendedKeyUsagePurpose,
    now: Timestamp,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    for group in groups {
        params.distinguished_name.push(DnType::OrganizationName, *group);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![usage];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    // A clock that is behind at the first start must not make the certificate one of the future.
    let end = now.to_zoned(jiff::tz::TimeZone::UTC).date().saturating_add(365.days());
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after =
        date_time_ymd(i32::from(end.year()), end.month().unsigned_abs(), end.day().unsigned_abs());
    Ok(params)
}

fn kubeconfig_text(ca: &str, cert: &str, key: &str, listen: SocketAddr) -> String {
    // A wildcard is where to listen, not where to connect to.
    let host = if listen.ip().is_unspecified() { "127.0.0.1".to_owned() } else { listen.ip().to_string() };
    let encode = |text: &str| STANDARD.encode(text);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: holdfast\n  cluster:\n    server: https://{host}:{}\n    certificate-authority-data: {}\n\
         users:\n- name: holdfast-admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n\
         contexts:\n- name: holdfast\n  context:\n    cluster: holdfast\n    user: holdfast-admin\ncurrent-context: holdfast\n",
        listen.port(),
        encode(ca),
        encode(cert),
        encode(key),
    )
}

/// Replaces a file that only root may read, whole or not at all.
fn write(path: &Path, text: &str) -> Result<(), PkiError> {
    let failed = |source| PkiError::File { attempt: "write", path: path.to_owned(), source };
    let temporary = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)
}
