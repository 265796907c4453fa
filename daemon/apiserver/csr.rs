//! Signs certificate requests with the node's CA, as the signers of Kubernetes do.
//!
//! Invariant: nobody gets a certificate that makes them an administrator, or a CA of their own.

use std::time::Duration;

use api::kinds::Kind;
use jiff::Timestamp;
use rcgen::{
    CertificateSigningRequestParams, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber, date_time_ymd,
};
use serde_json::{Value, json};
use x509_parser::prelude::FromDer;

use crate::Pki;
use crate::auth::{MASTERS, User};

/// Clocks that are this far behind are to accept a new certificate, as by Kubernetes.
const EARLY: Duration = Duration::from_secs(300);

/// A certificate of this CA that somebody asks for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The request, as PEM.
    pub request: &'a str,
    /// `kubernetes.io/kube-apiserver-client` and so on.
    pub signer: &'a str,
    /// What it is to be good for.
    pub usages: &'a [String],
    /// Now.
    pub now: Timestamp,
    /// Until when.
    pub until: Timestamp,
}

/// Writes into a new request who asks, whatever it says itself: what is approved is approved for that one.
pub(crate) fn asked_by(kind: &Kind, user: &User, object: &mut Value) {
    if kind.group != "certificates.k8s.io" || kind.kind != "CertificateSigningRequest" {
        return;
    }
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let mut put = |field: &str, value: Value, said: bool| {
        if said {
            spec.insert(field.to_owned(), value);
        } else {
            spec.remove(field);
        }
    };
    put("username", json!(user.name), true);
    put("uid", json!(user.uid), !user.uid.is_empty());
    put("groups", json!(user.groups), !user.groups.is_empty());
    put("extra", json!(user.extra), !user.extra.is_empty());
}

impl Pki {
    /// Signs a request that was approved. The answer is the certificate as PEM, or why the signer refuses.
    ///
    /// # Errors
    /// In the words of `status.conditions`.
    pub fn sign(&self, asked: &Asked<'_>) -> Result<String, String> {
        one_organization(asked.request)?;
        let mut csr = CertificateSigningRequestParams::from_pem(asked.request)
            .map_err(|error| format!("spec.request cannot be read: {error}"))?;
        check(&csr, asked)?;
        let params = &mut csr.params;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = asked.usages.iter().filter_map(|usage| key_usage(usage)).collect();
        params.extended_key_usages = asked.usages.iter().filter_map(|usage| extended(usage)).collect();
        params.use_authority_key_identifier_extension = true;
        let after = |at: Timestamp| Duration::from_secs(u64::try_from(at.as_second()).unwrap_or(0));
        params.not_before = date_time_ymd(1970, 1, 1) + after(asked.now).saturating_sub(EARLY);
        params.not_after = date_time_ymd(1970, 1, 1) + after(asked.until);
        params.serial_number = u64::try_from(asked.now.as_nanosecond()).ok().map(SerialNumber::from);
        let failed = |error: rcgen::Error| format!("the CA could not sign: {error}");
        let key = KeyPair::from_pem(&self.ca_key).map_err(failed)?;
        let issuer = Issuer::from_ca_cert_pem(&self.ca, key).map_err(failed)?;
        csr.signed_by(&issuer).map(|certificate| certificate.pem()).map_err(failed)
    }
}

/// A name with several organizations would lose all but one on its way.
fn one_organization(request: &str) -> Result<(), String> {
    let unreadable = || "spec.request cannot be read: it is no PEM of a certificate request".to_owned();
    let (_, pem) = x509_parser::pem::parse_x509_pem(request.as_bytes()).map_err(|_| unreadable())?;
    let (_, csr) = x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents)
        .map_err(|_| unreadable())?;
    let subject = &csr.certification_request_info.subject;
    if subject.iter_organization().count() > 1 {
        return Err("subjects with several organizations are not supported: name one".to_owned());
    }
    Ok(())
}

fn check(csr: &CertificateSigningRequestParams, asked: &Asked<'_>) -> Result<(), String> {
    let name = |kind: DnType| csr.params.distinguished_name.get(&kind).map(text).unwrap_or_default();
    let (common, organization) = (name(DnType::CommonName), name(DnType::OrganizationName));
    if organization == MASTERS {
        return Err(format!("use of {} signer with {MASTERS} group is not allowed", asked.signer));
    }
    let names = &csr.params.subject_alt_names;
    let of_node = organization == "system:nodes" && common.starts_with("system:node:");
    let (needed, allowed): (&[&str], &[&str]) = match asked.signer {
        "kubernetes.io/kube-apiserver-client" => {
            (&["client auth"], &["client auth", "digital signature", "key encipherment"])
        }
        "kubernetes.io/kube-apiserver-client-kubelet" => {
            if !of_node {
                return Err("subject organization is not system:nodes, or its common name does not begin with system:node:".to_owned());
            }
            if !names.is_empty() {
                return Err("subjectAltNames are not allowed".to_owned());
            }
            (&["client auth", "digital signature"], &["client auth", "digital signature", "key encipherment"])
        }
        "kubernetes.io/kubelet-serving" => {
            if !of_node {
                return Err("subject organization is not system:nodes, or its common name does not begin with system:node:".to_owned());
            }
            let hosts = |name: &SanType| matches!(name, SanType::DnsName(_) | SanType::IpAddress(_));
            if names.is_empty() || !names.iter().all(hosts) {
                return Err("DNS or IP subjectAltName is required, and no other kind is allowed".to_owned());
            }
            (&["server auth", "digital signature"], &["server auth", "digital signature", "key encipherment"])
        }
        other => return Err(format!("signer {other} is not served here")),
    };
    let has = |usage: &&str| asked.usages.iter().any(|known| known == usage);
    let fits = needed.iter().all(has) && asked.usages.iter().all(|usage| allowed.contains(&usage.as_str()));
    if fits {
        Ok(())
    } else {
        Err(format!("usages did not match: {} and nothing but {}", needed.join(", "), allowed.join(", ")))
    }
}

fn text(value: &DnValue) -> String {
    match value {
        DnValue::Utf8String(text) => text.clone(),
        DnValue::PrintableString(text) => text.as_str().to_owned(),
        DnValue::Ia5String(text) => text.as_str().to_owned(),
        DnValue::TeletexString(text) => text.as_str().to_owned(),
        _ => String::new(),
    }
}

fn key_usage(usage: &str) -> Option<KeyUsagePurpose> {
    match usage {
        "digital signature" => Some(KeyUsagePurpose::DigitalSignature),
        "key encipherment" => Some(KeyUsagePurpose::KeyEncipherment),
        _ => None,
    }
}

fn extended(usage: &str) -> Option<ExtendedKeyUsagePurpose> {
    match usage {
        "client auth" => Some(ExtendedKeyUsagePurpose::ClientAuth),
        "server auth" => Some(ExtendedKeyUsagePurpose::ServerAuth),
        _ => None,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;
    use rcgen::CertificateParams;

    fn request(common: &str, organization: &str, hosts: &[&str]) -> String {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common);
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    #[test]
    fn what_a_signer_stands_for_is_signed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let now: Timestamp = "2026-11-24T01:00:00Z".parse().unwrap();
        let pki = Pki::open(dir.path(), &[], "127.0.0.1:6443".parse().unwrap(), now).unwrap();
        let (client, kubelet, serving) = (
            "kubernetes.io/kube-apiserver-client",
            "kubernetes.io/kube-apiserver-client-kubelet",
            "kubernetes.io/kubelet-serving",
        );
        let (as_client, as_server) =
            (["client auth", "digital signature"], ["server auth", "digital signature"]);
        for (common, organization, hosts, signer, usages, signed) in [
            ("jane", "developers", &[][..], client, as_client, true),
            ("jane", "system:masters", &[][..], client, as_client, false),
            ("jane", "developers", &[][..], client, as_server, false),
            ("system:node:n1", "system:nodes", &[][..], kubelet, as_client, true),
            ("jane", "system:nodes", &[][..], kubelet, as_client, false),
            ("system:node:n1", "system:nodes", &["n1"][..], serving, as_server, true),
            ("system:node:n1", "system:nodes", &[][..], serving, as_server, false),
            ("jane", "developers", &[][..], "example.com/mine", as_client, false),
        ] {
            let pem = request(common, organization, hosts);
            let usages: Vec<String> = usages.iter().map(|usage| (*usage).to_owned()).collect();
            let until = now + std::time::Duration::from_secs(3600);
            let asked = Asked { request: &pem, signer, usages: &usages, now, until };
            let answer = pki.sign(&asked);
            assert_eq!(answer.is_ok(), signed, "{common} {organization} {signer}: {answer:?}");
            let Ok(certificate) = answer else { continue };
            let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).unwrap();
            let certificate = pem.parse_x509().unwrap();
            assert_eq!(certificate.subject().iter_common_name().next().unwrap().as_str().unwrap(), common);
            assert_eq!(certificate.validity().not_after.timestamp(), until.as_second());
            assert!(!certificate.is_ca());
        }
    }
}
