//! The HTTP client: one way to set it up, for bundles and for the cloud API.
//!
//! TLS is rustls with ring; the certificates trusted come from the image's PEM bundle, never from this binary,
//! where they would age with it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ureq::middleware::{Middleware, MiddlewareNext};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider};
use ureq::{Body, SendBody, http};

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
}

/// Debian's bundle holds 200 KiB.
const CA_LIMIT_BYTES: u64 = 16 * 1024 * 1024;

/// An HTTP client. Answers of 4xx and 5xx are answers, not errors; a proxy is taken from the environment.
///
/// # Errors
/// `Failed`, naming the file, if the certificates cannot be read. That there are none is an error of the first
/// `https://` request.
pub fn agent(settings: &HttpSettings) -> Result<ureq::Agent> {
    let roots = roots(settings)?;
    let missing = roots.is_empty().then(|| settings.ca_bundle.clone());
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::new_with_certs(&roots))
        .build();
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .tls_config(tls)
        .user_agent(concat!("twinhull/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(settings.connect_timeout))
        .timeout_connect(Some(settings.connect_timeout))
        .timeout_per_read(Some(settings.read_timeout))
        .timeout_per_write(Some(settings.read_timeout))
        .middleware(NoCertificates { missing })
        .build();
    Ok(config.new_agent())
}

/// What went wrong with a request, in words for a person, without the URL.
pub fn reason(error: &ureq::Error) -> String {
    let io = match error {
        ureq::Error::HostNotFound => return "no such host".into(),
        ureq::Error::Timeout(ureq::Timeout::PerRead | ureq::Timeout::PerWrite) => {
            return "the server stopped answering".into();
        }
        ureq::Error::Timeout(what) => return format!("no answer in time ({what})"),
        ureq::Error::Io(io) => io,
        other => return other.to_string(),
    };
    match io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(why)) => format!("the server's certificate: {why}"),
        Some(tls) => format!("TLS: {tls}"),
        // The standard library's words for a name that the resolver does not know.
        None if io.to_string().starts_with("failed to lookup") => "no such host".into(),
        None => io.to_string(),
    }
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

/// Says that no certificate is trusted, instead of "unknown issuer" after a connection was made.
struct NoCertificates {
    missing: Option<PathBuf>,
}

impl Middleware for NoCertificates {
    fn handle(
        &self,
        request: http::Request<SendBody>,
        next: MiddlewareNext,
    ) -> std::result::Result<http::Response<Body>, ureq::Error> {
        match &self.missing {
            Some(path) if request.uri().scheme() == Some(&http::uri::Scheme::HTTPS) => {
                Err(ureq::Error::Io(io::Error::new(io::ErrorKind::NotFound, none_trusted(path))))
            }
            _ => next.handle(request),
        }
    }
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
