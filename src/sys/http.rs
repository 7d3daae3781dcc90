//! The HTTP client: one way to set it up, for bundles and for the cloud API.
//!
//! TLS is rustls with ring; the certificates trusted come from the image's PEM bundle, never from this binary,
//! where they would age with it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, InconsistentKeys};
use ureq::middleware::{Middleware, MiddlewareNext};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, TlsProvider};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Body, SendBody, http};

use super::names::Names;
use crate::{Doing, Error, Result};

/// How the outside is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    /// Certificates that are trusted, PEM. May be missing as long as only `http://` is used.
    pub ca_bundle: PathBuf,
    /// More of them as PEM text: the fleet's own CA.
    pub extra_ca_pem: Option<String>,
    /// How long a name look-up, and then a connection, may take.
    pub connect_timeout: Duration,
    /// How long the other side may be silent.
    pub read_timeout: Duration,
    /// What is shown to servers that ask who we are.
    pub client: Option<ClientIdentity>,
}

/// A certificate that says who asks, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The certificate, and those between it and its authority; PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// Debian's bundle holds 200 KiB.
const CA_LIMIT_BYTES: u64 = 16 * 1024 * 1024;
const CLIENT_LIMIT_BYTES: u64 = 64 * 1024;
/// As ureq has it.
const REDIRECTS_MAX: u32 = 10;

/// An HTTP client. Answers of 4xx and 5xx are answers, not errors; a proxy is taken from the environment. Redirects are
/// followed, without `Authorization`.
///
/// # Errors
/// `Failed`, naming the file, if the certificates or our own cannot be read or used. That none are trusted is an error
/// of the first `https://` request.
pub fn agent(settings: &HttpSettings) -> Result<ureq::Agent> {
    build(settings, REDIRECTS_MAX)
}

/// The same, but a redirect is an answer like any other.
///
/// # Errors
/// As [`agent`].
pub fn agent_without_redirects(settings: &HttpSettings) -> Result<ureq::Agent> {
    build(settings, 0)
}

fn build(settings: &HttpSettings, redirects: u32) -> Result<ureq::Agent> {
    let roots = roots(settings)?;
    let missing = roots.is_empty().then(|| settings.ca_bundle.clone());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = settings.client.as_ref().map(|client| identity(client, &provider)).transpose()?;
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(provider)
        .root_certs(RootCerts::new_with_certs(&roots))
        .client_cert(client)
        .build();
    let config = ureq::Agent::config_builder()
        .max_redirects(redirects)
        .http_status_as_error(false)
        .tls_config(tls)
        .user_agent(concat!("twinhull/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(settings.connect_timeout))
        .timeout_connect(Some(settings.connect_timeout))
        .timeout_per_read(Some(settings.read_timeout))
        .timeout_per_write(Some(settings.read_timeout))
        .middleware(BeforeConnecting { missing })
        .build();
    Ok(ureq::Agent::with_parts(config, DefaultConnector::default(), Names::default()))
}

/// What went wrong with a request, in words for a person, without the URL.
pub fn reason(error: &ureq::Error) -> String {
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(why)) => {
            return format!("the server's certificate: {}", in_words(why));
        }
        Some(tls) => return format!("TLS: {tls}"),
        None => {}
    }
    match error {
        ureq::Error::HostNotFound => "no such host".into(),
        ureq::Error::Timeout(ureq::Timeout::PerRead | ureq::Timeout::PerWrite) => {
            "the server stopped answering".into()
        }
        ureq::Error::Timeout(what) => format!("no answer in time ({what})"),
        // The standard library's words for a name that the resolver does not know.
        ureq::Error::Io(io) if io.to_string().starts_with("failed to lookup") => "no such host".into(),
        ureq::Error::Io(io) => io.to_string(),
        other => other.to_string(),
    }
}

/// What TLS found wrong, if that is it.
pub fn tls_error(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        // By when it happened, ureq wraps it in an I/O error or not.
        ureq::Error::Rustls(tls) => Some(tls),
        ureq::Error::Io(io) => io.get_ref().and_then(|inner| inner.downcast_ref()),
        _ => None,
    }
}

fn in_words(why: &CertificateError) -> String {
    let days = |from: u64, to: u64| to.saturating_sub(from) / (24 * 60 * 60);
    match why {
        CertificateError::ExpiredContext { time, not_after } => {
            format!("expired {} days ago, by this device's clock", days(not_after.as_secs(), time.as_secs()))
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            format!(
                "not valid for {} days yet, by this device's clock",
                days(time.as_secs(), not_before.as_secs())
            )
        }
        CertificateError::UnknownIssuer => "no authority that is trusted here signed it".into(),
        other => other.to_string(),
    }
}

/// Our own certificate, after a look at whether it can be used: ureq panics where it cannot.
fn identity(client: &ClientIdentity, provider: &CryptoProvider) -> Result<ClientCert> {
    let ClientIdentity { certificate, key } = client;
    let doing_certificate = || format!("client certificate {}", certificate.display());
    let pem = super::file::read(certificate, CLIENT_LIMIT_BYTES).doing(doing_certificate)?;
    let chain = certificates(&pem).doing(doing_certificate)?;
    let ders: Vec<_> = chain.iter().map(|c| CertificateDer::from(c.der().to_vec())).collect();
    if ders.is_empty() {
        return Err(Error::failed("no PEM certificate in it").within(doing_certificate()));
    }
    let doing_key = || format!("client key {}", key.display());
    let pem = super::file::read(key, CLIENT_LIMIT_BYTES).doing(doing_key)?;
    let wrong = || Error::failed("no PEM private key in it (PKCS#8, PKCS#1 or SEC1, without a password)");
    let der = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| wrong()).doing(doing_key)?;
    match CertifiedKey::from_der(ders, der, provider) {
        Ok(_) => {}
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            let text = format!("does not belong to the certificate {}", certificate.display());
            return Err(Error::failed(text).within(doing_key()));
        }
        Err(e) => return Err(Error::failed(e.to_string()).within(doing_key())),
    }
    let key = PrivateKey::from_pem(&pem).map_err(|_| wrong()).doing(doing_key)?;
    Ok(ClientCert::new_with_certs(&chain, key))
}

pub(super) fn roots(settings: &HttpSettings) -> Result<Vec<Certificate<'static>>> {
    let path = &settings.ca_bundle;
    let bundle = super::file::read_if_exists(path, CA_LIMIT_BYTES)?.unwrap_or_default();
    let mut roots = certificates(&bundle).doing(|| format!("certificates {}", path.display()))?;
    if let Some(pem) = &settings.extra_ca_pem {
        let extra = certificates(pem.as_bytes()).doing(|| "the fleet's own certificates")?;
        if extra.is_empty() {
            return Err(Error::failed("the fleet's own certificates: no PEM certificate in the text"));
        }
        roots.extend(extra);
    }
    Ok(roots)
}

fn certificates(pem: &[u8]) -> Result<Vec<Certificate<'static>>> {
    let mut found = Vec::new();
    for item in ureq::tls::parse_pem(pem) {
        // Keys and whatever PEM may hold besides are not trusted for anything.
        if let PemItem::Certificate(certificate) = item.map_err(|e| Error::failed(e.to_string()))? {
            found.push(certificate);
        }
    }
    Ok(found)
}

/// Says what is wrong before a connection is made: that no certificate is trusted, instead of "unknown issuer" after it;
/// and that there is no such port, instead of taking the usual one.
struct BeforeConnecting {
    missing: Option<PathBuf>,
}

impl Middleware for BeforeConnecting {
    fn handle(
        &self,
        request: http::Request<SendBody>,
        next: MiddlewareNext,
    ) -> std::result::Result<http::Response<Body>, ureq::Error> {
        let wrong = |kind, text| Err(ureq::Error::Io(io::Error::new(kind, text)));
        if let Some(port) = request.uri().authority().and_then(odd_port) {
            return wrong(io::ErrorKind::InvalidInput, format!("port {port}: expected 1 to 65535"));
        }
        match &self.missing {
            Some(path) if request.uri().scheme() == Some(&http::uri::Scheme::HTTPS) => {
                wrong(io::ErrorKind::NotFound, none_trusted(path))
            }
            _ => next.handle(request),
        }
    }
}

/// What stands in the place of a port and is none. The library says of it what it says of an address without a port.
fn odd_port(authority: &http::uri::Authority) -> Option<&str> {
    let host_and_port = authority.as_str().rsplit('@').next()?;
    let port = host_and_port.strip_prefix(authority.host())?.strip_prefix(':')?;
    (!port.is_empty() && port.parse::<u16>().is_err()).then_some(port)
}

fn none_trusted(path: &Path) -> String {
    format!(
        "no certificates to trust in {}; install ca-certificates or set provision.ca_bundle",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(ca_bundle: &Path) -> HttpSettings {
        HttpSettings {
            ca_bundle: ca_bundle.to_owned(),
            extra_ca_pem: None,
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(5),
            client: None,
        }
    }

    #[test]
    fn without_certificates_https_says_so_and_http_works() {
        let agent = agent(&settings(Path::new("/nonexistent/ca.crt"))).unwrap();
        let e = agent.get("https://127.0.0.1:1/x").call().unwrap_err();
        assert!(reason(&e).contains("/nonexistent/ca.crt"), "{}", reason(&e));
        let e = agent.get("http://127.0.0.1:1/x").call().unwrap_err();
        assert!(reason(&e).contains("Connection refused"), "{}", reason(&e));
    }

    #[test]
    fn a_port_that_is_none_is_told() {
        for (address, expected) in [
            ("h:99999", Some("99999")),
            ("u:1@h:65536", Some("65536")),
            ("[::1]:70000", Some("70000")),
            ("u:p@h:65535", None),
            ("[::1]:1", None),
            ("[::1]", None),
            ("h:", None),
            ("h", None),
        ] {
            assert_eq!(odd_port(&address.parse().unwrap()), expected, "{address}");
        }
        let agent = agent(&settings(Path::new("/nonexistent/ca.crt"))).unwrap();
        let e = agent.get("http://127.0.0.1:99999/x").call().unwrap_err();
        assert_eq!(reason(&e), "port 99999: expected 1 to 65535");
    }

    #[test]
    fn damaged_certificates_name_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.crt");
        let text = "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n";
        super::super::durable::replace(&path, text.as_bytes(), 0o644).unwrap();
        let e = agent(&settings(&path)).unwrap_err().to_string();
        assert!(e.contains("ca.crt"), "{e}");
        let extra = HttpSettings { extra_ca_pem: Some("none".into()), ..settings(Path::new("/nonexistent")) };
        assert!(agent(&extra).unwrap_err().to_string().contains("no PEM certificate"));
    }
}
