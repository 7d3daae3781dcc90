//! Values as Compose files spell them: durations, sizes, command lines, ports.
//!
//! Source: Compose file reference, version 2.4, "Specifying durations" and "Specifying byte values".

/// Nanoseconds of `1h5m30s20ms`; units are h, m, s, ms and us.
pub fn duration_ns(text: &str) -> Option<i64> {
    let (mut total, mut rest) = (0_i64, text);
    if text.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at_checked(digits)?;
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at_checked(letters)?;
        let scale = match unit {
            "us" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        total = total.checked_add(number.parse::<i64>().ok()?.checked_mul(scale)?)?;
        rest = after;
    }
    Some(total)
}

/// Bytes of `64m`; units are b, k, m and g, each also with a b behind; without one they are bytes.
pub fn bytes(text: &str) -> Option<i64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(1 << shift)
}

/// The words of a command line, as a shell takes them apart: quotes and backslashes, nothing else. `None`: a quote is not
/// closed.
pub fn words(text: &str) -> Option<Vec<String>> {
    let (mut all, mut word) = (Vec::new(), None::<String>);
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (Some(_), '\\') => {
                let next = chars.next()?;
                if !matches!(next, '"' | '\\') {
                    word.get_or_insert_default().push('\\');
                }
                word.get_or_insert_default().push(next);
            }
            (None, '\\') => word.get_or_insert_default().push(chars.next()?),
            (None, c) if c.is_whitespace() => all.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    all.extend(word);
    quote.is_none().then_some(all)
}

/// One published port, or one that is only exposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Address of the host; empty: all.
    pub ip: String,
    /// Port of the host; `None`: one that the engine chooses.
    pub host: Option<u16>,
    /// Port in the container.
    pub container: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

/// A range of ports is no longer than this; each is a process of the engine's.
const RANGE_MAX: u16 = 1000;

/// The ports of `[[IP:]HOST:]CONTAINER[/PROTOCOL]`, where HOST and CONTAINER may be ranges.
pub fn ports(text: &str) -> Option<Vec<Port>> {
    let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !matches!(protocol, "tcp" | "udp" | "sctp") {
        return None;
    }
    let (rest, container) = match rest.rsplit_once(':') {
        Some((rest, container)) => (Some(rest), container),
        None => (None, rest),
    };
    let (ip, host) = match rest {
        None => ("", None),
        Some(rest) => match rest.rsplit_once(':') {
            Some((ip, host)) => (ip.trim_start_matches('[').trim_end_matches(']'), Some(host)),
            None => ("", Some(rest)),
        },
    };
    let containers = range(container)?;
    let hosts = match host.filter(|h| !h.is_empty()) {
        None => vec![None; containers.len()],
        Some(host) => range(host)?.into_iter().map(Some).collect(),
    };
    if hosts.len() != containers.len() || (!ip.is_empty() && ip.parse::<std::net::IpAddr>().is_err()) {
        return None;
    }
    let port = |(container, host)| Port { ip: ip.into(), host, container, protocol: protocol.into() };
    Some(containers.into_iter().zip(hosts).map(port).collect())
}

fn range(text: &str) -> Option<Vec<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    (first > 0 && first <= last && last - first < RANGE_MAX).then(|| (first..=last).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes() {
        for (text, expected) in [
            ("1m30s", Some(90_000_000_000)),
            ("1h5m30s20ms", Some(3_930_020_000_000)),
            ("10us", Some(10_000)),
            ("0s", Some(0)),
            ("", None),
            ("10", None),
            ("s", None),
            ("1.5s", None),
            ("-1s", None),
            ("99999999999h", None),
        ] {
            assert_eq!(duration_ns(text), expected, "{text:?}");
        }
        for (text, expected) in [
            ("2b", Some(2)),
            ("1024kb", Some(1 << 20)),
            ("300m", Some(300 << 20)),
            ("1gb", Some(1 << 30)),
            ("64M", Some(64 << 20)),
            ("7", Some(7)),
            ("", None),
            ("1t", None),
            ("9999999999999999g", None),
        ] {
            assert_eq!(bytes(text), expected, "{text:?}");
        }
    }

    /// Verdicts of Python's shlex.split, which docker-compose 1 uses.
    #[test]
    fn command_lines_come_apart_as_in_a_shell() {
        for (text, expected) in [
            ("bundle exec thin -p 3000", Some(vec!["bundle", "exec", "thin", "-p", "3000"])),
            (r#"sh -c "echo 'a b' \"c\"""#, Some(vec!["sh", "-c", r#"echo 'a b' "c""#])),
            (r"a\ b 'c\d' ''", Some(vec!["a b", r"c\d", ""])),
            (r#""a\b""#, Some(vec![r"a\b"])),
            ("  ", Some(vec![])),
            ("'open", None),
            ("a \\", None),
        ] {
            assert_eq!(words(text), expected.map(|e| e.into_iter().map(str::to_owned).collect()), "{text:?}");
        }
    }

    #[test]
    fn ports_in_all_their_forms() {
        let port = |ip: &str, host: Option<u16>, container, protocol: &str| Port {
            ip: ip.into(),
            host,
            container,
            protocol: protocol.into(),
        };
        for (text, expected) in [
            ("3000", Some(vec![port("", None, 3000, "tcp")])),
            ("8000:80", Some(vec![port("", Some(8000), 80, "tcp")])),
            ("127.0.0.1:53:5353/udp", Some(vec![port("127.0.0.1", Some(53), 5353, "udp")])),
            ("[::1]:80:80", Some(vec![port("::1", Some(80), 80, "tcp")])),
            ("127.0.0.1::80", Some(vec![port("127.0.0.1", None, 80, "tcp")])),
            ("90-91:80-81", Some(vec![port("", Some(90), 80, "tcp"), port("", Some(91), 81, "tcp")])),
            ("3000-3001", Some(vec![port("", None, 3000, "tcp"), port("", None, 3001, "tcp")])),
            ("90-92:80-81", None),
            ("0", None),
            ("65536", None),
            ("1-65535", None),
            ("80/icmp", None),
            ("host:80:80", None),
            ("", None),
        ] {
            assert_eq!(ports(text), expected, "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_odd(text in ".{0,40}", near in "[0-9a-z:/\\[\\].'\"\\\\ -]{0,20}") {
            for text in [text, near] {
                let _ = (duration_ns(&text), bytes(&text), words(&text), ports(&text));
            }
        }
    }
}
