//! Tokens of ServiceAccounts: signed and verified with the node's own key (ES256), and published for others to verify.
//!
//! Invariant: only tokens signed by this key with this algorithm are read; the header chooses nothing.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

/// Who signs, as Kubernetes calls its own API.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Longer texts are no tokens of ours.
const MAX_TOKEN: usize = 16 * 1024;

/// Why a key cannot sign tokens.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The PEM is none, or holds no PKCS#8 key.
    #[error("read the key that signs tokens")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// It is a key of another kind.
    #[error("use the key that signs tokens: it must be an ECDSA key on P-256: {why}")]
    Kind {
        /// What is wrong with it.
        why: String,
    },
}

/// The key that signs tokens.
pub(crate) struct Tokens {
    key: EcdsaKeyPair,
    random: SystemRandom,
    id: String,
}

impl Tokens {
    /// Reads a PKCS#8 key from PEM.
    pub(crate) fn of_pem(pem: &str) -> Result<Tokens, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(KeyError::Pem)?;
        Tokens::of_der(der.secret_pkcs8_der())
    }

    /// A key that lives as long as this process: for servers without a directory.
    pub(crate) fn fresh() -> Result<Tokens, KeyError> {
        let random = SystemRandom::new();
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
            .map_err(|error| KeyError::Kind { why: error.to_string() })?;
        Tokens::of_der(der.as_ref())
    }

    fn of_der(der: &[u8]) -> Result<Tokens, KeyError> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &random)
            .map_err(|error| KeyError::Kind { why: error.to_string() })?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        let id = URL_SAFE_NO_PAD.encode(digest);
        Ok(Tokens { key, random, id })
    }

    /// A signed token with these claims.
    pub(crate) fn sign(&self, claims: &Value) -> Option<String> {
        let header = json!({ "alg": "ES256", "kid": self.id });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", encode(&header), encode(claims));
        let signature = self.key.sign(&self.random, text.as_bytes()).ok()?;
        Some(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The claims of a token that this key signed. Whether they hold now is not looked at.
    pub(crate) fn claims(&self, token: &str) -> Option<Value> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let (text, signature) = token.rsplit_once('.')?;
        let (header, payload) = text.split_once('.')?;
        let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        if header["alg"] != "ES256" {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(text.as_bytes(), &signature)
            .ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
    }

    /// `/.well-known/openid-configuration`.
    pub(crate) fn configuration(&self) -> Value {
        json!({
            "issuer": ISSUER,
            "jwks_uri": format!("{ISSUER}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// `/openid/v1/jwks`: the public key.
    pub(crate) fn keys(&self) -> Value {
        // An uncompressed point: 4, then 32 bytes each.
        let point = self.key.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        json!({ "keys": [{
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }] })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on ends by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_by_the_key_that_signed_it_and_by_no_other() {
        let (ours, theirs) = (Tokens::fresh().unwrap(), Tokens::fresh().unwrap());
        let claims = json!({ "sub": "a" });
        let token = ours.sign(&claims).unwrap();
        assert_eq!(ours.claims(&token), Some(claims));
        assert_eq!(theirs.claims(&token), None);
    }

    #[test]
    fn a_token_with_other_claims_or_without_a_signature_is_not_read() {
        let ours = Tokens::fresh().unwrap();
        let token = ours.sign(&json!({ "sub": "a" })).unwrap();
        let (text, signature) = token.rsplit_once('.').unwrap();
        let header = text.split_once('.').unwrap().0;
        let other = URL_SAFE_NO_PAD.encode(r#"{"sub":"b"}"#);
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        for forged in [
            format!("{header}.{other}.{signature}"),
            format!("{text}."),
            format!("{none}.{other}."),
            String::new(),
            "..".to_owned(),
        ] {
            assert_eq!(ours.claims(&forged), None, "{forged}");
        }
    }
}
