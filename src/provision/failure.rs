//! Why an attempt failed: each answer and each fault of the network as a kind of its own, with words that help.

use std::fmt;
use std::time::Duration;

use rustls::CertificateError;

use crate::sys;

/// A failed attempt. It will be tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What was being done, such as `register the device`.
    pub doing: &'static str,
    /// What was in the way.
    pub why: Why,
}

/// What was in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// 400: the API finds fault with what we said.
    Refused400(String),
    /// 401 for the provisioning key.
    KeyRejected401,
    /// 403, for example for the OS version.
    Forbidden403(String),
    /// 404: an unknown device type, or no API at this address.
    NotFound404(String),
    /// 409 that is not about this device: another one has our uuid or key, in a fleet that we may not see.
    Conflict409(String),
    /// 429, and how long the API wants to be left alone, in seconds.
    TooMany429(Option<u64>),
    /// 500 to 599, and how long the API wants to be left alone, in seconds.
    Server5xx(u16, Option<u64>),
    /// Another answer.
    Unexpected(u16),
    /// An answer that is not the API's, such as a hotel's log-in page.
    Unreadable(String),
    /// No connection, or it broke.
    Network(String),
    /// Nobody answered in time.
    Timeout(String),
    /// The proxy of the environment refuses, or is not there.
    Proxy(String),
    /// TLS failed; the server may not be who it should be.
    Tls(String),
    /// The certificate is from our future: our clock is wrong.
    ClockWrong(String),
    /// The certificate is from our past: it expired, or our clock is ahead.
    Expired(String),
    /// The API took the device key and yet refuses it.
    KeyNotAccepted,
    /// `config.json` got another identity while we were asking.
    IdentityChanged,
}

impl Why {
    /// A word for programs, the same in every version.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Refused400(_) => "refused-400",
            Self::KeyRejected401 => "key-rejected-401",
            Self::Forbidden403(_) => "forbidden-403",
            Self::NotFound404(_) => "not-found-404",
            Self::Conflict409(_) => "conflict-409",
            Self::TooMany429(_) => "too-many-429",
            Self::Server5xx(..) => "server-5xx",
            Self::Unexpected(_) => "unexpected-answer",
            Self::Unreadable(_) => "unreadable-answer",
            Self::Network(_) => "network",
            Self::Timeout(_) => "timeout",
            Self::Proxy(_) => "proxy",
            Self::Tls(_) => "tls",
            Self::ClockWrong(_) => "clock-wrong",
            Self::Expired(_) => "certificate-expired",
            Self::KeyNotAccepted => "key-not-accepted",
            Self::IdentityChanged => "identity-changed",
        }
    }

    /// The pause that the API asked for.
    pub(super) fn asked_to_wait(&self) -> Option<Duration> {
        match self {
            Self::TooMany429(seconds) | Self::Server5xx(_, seconds) => seconds.map(Duration::from_secs),
            Self::Refused400(_)
            | Self::KeyRejected401
            | Self::Forbidden403(_)
            | Self::NotFound404(_)
            | Self::Conflict409(_)
            | Self::Unexpected(_)
            | Self::Unreadable(_)
            | Self::Network(_)
            | Self::Timeout(_)
            | Self::Proxy(_)
            | Self::Expired(_)
            | Self::Tls(_)
            | Self::ClockWrong(_)
            | Self::KeyNotAccepted
            | Self::IdentityChanged => None,
        }
    }

    /// What an answer that is not the wished-for one means.
    pub(super) fn of_answer(status: u16, body: &str, retry_after: Option<&str>) -> Self {
        // It may be a date too; with a clock that may be wrong that says nothing.
        let seconds = || retry_after.and_then(|s| s.trim().parse().ok());
        match status {
            400 => Self::Refused400(shown(body)),
            401 => Self::KeyRejected401,
            403 => Self::Forbidden403(shown(body)),
            404 => Self::NotFound404(shown(body)),
            409 => Self::Conflict409(shown(body)),
            429 => Self::TooMany429(seconds()),
            500..=599 => Self::Server5xx(status, seconds()),
            other => Self::Unexpected(other),
        }
    }

    /// What a request without an answer means.
    pub(super) fn of_error(e: &ureq::Error) -> Self {
        let words = sys::http::reason(e);
        if matches!(e, ureq::Error::Tls(_) | ureq::Error::Pem(_)) {
            return Self::Tls(words);
        }
        if let ureq::Error::Timeout(_) = e {
            return Self::Timeout(words);
        }
        if let ureq::Error::ConnectProxyFailed(_) | ureq::Error::InvalidProxyUrl = e {
            return Self::Proxy(words);
        }
        match sys::http::tls_error(e) {
            Some(rustls::Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            )) => Self::ClockWrong(words),
            Some(rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            )) => Self::Expired(words),
            Some(_) => Self::Tls(words),
            None => Self::Network(words),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.doing)?;
        match &self.why {
            Why::Refused400(text) => {
                write!(f, "the API refuses the request (400{text}); check applicationId, deviceType and uuid in config.json")
            }
            Why::KeyRejected401 => f.write_str(
                "the API rejects the provisioning key (401); it may have expired or belong to another fleet: put a \
                 new apiKey, and the applicationId it belongs to, into config.json",
            ),
            Why::Forbidden403(text) => write!(f, "the API forbids it (403{text})"),
            Why::NotFound404(text) => {
                write!(f, "the API does not know it (404{text}); check deviceType and apiEndpoint in config.json")
            }
            Why::Conflict409(text) => write!(
                f,
                "another device, which this provisioning key may not see, has this uuid or device key (409{text}); \
                 if this device was cloned, remove uuid and deviceApiKey from config.json"
            ),
            Why::TooMany429(Some(s)) => write!(f, "the API asks to wait for {s} s (429)"),
            Why::TooMany429(None) => f.write_str("the API asks to wait (429)"),
            Why::Server5xx(status, None) => write!(f, "the API is not well ({status})"),
            Why::Server5xx(status, Some(s)) => write!(f, "the API is not well ({status}) and asks to wait for {s} s"),
            Why::Unexpected(status) => write!(f, "unexpected answer {status}; is apiEndpoint in config.json right?"),
            Why::Unreadable(what) => write!(
                f,
                "the answer is not the API's ({what}); is there a log-in page in between, or is apiEndpoint in \
                 config.json wrong?"
            ),
            Why::Network(what) | Why::Timeout(what) => f.write_str(what),
            Why::Proxy(what) => write!(f, "the proxy: {what}; check HTTPS_PROXY in the unit's environment"),
            Why::Expired(what) => write!(f, "{what}: it must be renewed, or else this clock is ahead"),
            Why::Tls(what) => {
                write!(f, "{what}; if the cloud has its own certificate authority, balenaRootCA in config.json must hold it")
            }
            Why::ClockWrong(what) => write!(f, "the clock is wrong, waiting for the time: {what}"),
            Why::KeyNotAccepted => {
                f.write_str("the API took the device key and does not accept it yet; it may remember an earlier refusal")
            }
            Why::IdentityChanged => f.write_str("config.json got another identity meanwhile; starting again with it"),
        }
    }
}

/// The start of an answer's text, on one line, for a person.
fn shown(body: &str) -> String {
    let mut text: String = body.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    text.truncate(text.trim_end().len());
    if text.is_empty() { text } else { format!(": {}", text.trim_start()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        for (status, body, retry_after, kind, words) in [
            (400, "UUID must be specified", None, "refused-400", "(400: UUID must be specified)"),
            (400, "", None, "refused-400", "(400)"),
            (401, "", None, "key-rejected-401", "rejects the provisioning key (401)"),
            (403, "a\nb", None, "forbidden-403", "(403: a b)"),
            (404, "", None, "not-found-404", "check deviceType and apiEndpoint"),
            (409, "\"uuid\" must be unique.", None, "conflict-409", "(409: \"uuid\" must be unique.)"),
            (429, "", Some("17"), "too-many-429", "wait for 17 s"),
            (429, "", Some("Fri, 31 Dec 1999 23:59:59 GMT"), "too-many-429", "asks to wait (429)"),
            (500, "", None, "server-5xx", "not well (500)"),
            (503, "", Some("30"), "server-5xx", "not well (503) and asks to wait for 30 s"),
            (599, "", None, "server-5xx", "not well (599)"),
            (418, "", None, "unexpected-answer", "unexpected answer 418"),
        ] {
            let failure =
                Failure { doing: "register the device", why: Why::of_answer(status, body, retry_after) };
            let text = failure.to_string();
            assert_eq!(failure.why.kind(), kind, "{status}");
            assert!(text.starts_with("register the device: ") && text.contains(words), "{text}");
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    }

    #[test]
    fn a_certificate_from_the_future_is_a_wrong_clock() {
        let wrap = |e: CertificateError| {
            ureq::Error::Io(std::io::Error::other(rustls::Error::InvalidCertificate(e)))
        };
        assert_eq!(Why::of_error(&wrap(CertificateError::NotValidYet)).kind(), "clock-wrong");
        assert_eq!(Why::of_error(&wrap(CertificateError::Expired)).kind(), "certificate-expired");
        assert_eq!(Why::of_error(&wrap(CertificateError::UnknownIssuer)).kind(), "tls");
        assert_eq!(Why::of_error(&ureq::Error::Timeout(ureq::Timeout::Connect)).kind(), "timeout");
        assert_eq!(Why::of_error(&ureq::Error::ConnectProxyFailed("x".into())).kind(), "proxy");
        assert_eq!(Why::of_error(&ureq::Error::HostNotFound).kind(), "network");
    }
}
