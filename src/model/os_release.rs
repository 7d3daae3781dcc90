//! `os-release`: what the running OS says of itself.

/// Where it is, as a path of the host.
pub const OS_RELEASE: &str = "/etc/os-release";

/// The fields of an `os-release` file, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OsRelease(Vec<(String, String)>);

impl OsRelease {
    /// Reads `KEY=value` lines; quotes around a value go, other lines are passed over. Nothing is an error.
    ///
    /// Source: os-release(5). Escapes inside of quotes are not undone: no version or slug has any.
    pub fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let (key, value) = line.split_once('=')?;
            let value = value.trim();
            let quoted =
                ['"', '\''].iter().find_map(|q| value.strip_prefix(*q).and_then(|v| v.strip_suffix(*q)));
            Some((key.trim().to_owned(), quoted.unwrap_or(value).to_owned()))
        };
        Self(text.lines().filter(|l| !l.trim_start().starts_with('#')).filter_map(line).collect())
    }

    /// A field's value; empty is the same as absent. The last of several counts, as for a shell.
    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().rev().find(|(k, _)| k == key);
        found.map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    /// `BALENA_BOARD_REV`, or its old name.
    pub fn board_rev(&self) -> Option<&str> {
        self.get("BALENA_BOARD_REV").or_else(|| self.get("RESIN_BOARD_REV"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of balenaOS 2.46.1 and of Debian 12, as shipped, and some that a person might write.
    #[test]
    fn fields_are_read_as_a_shell_would() {
        let os = OsRelease::parse(
            "ID=\"balena-os\"\nVERSION=\"2.46.1+rev1\"\nVERSION_ID=12\nHOME_URL='https://x/?a=b'\n# ID=no\n\
             SLUG=first\nSLUG=last\nEMPTY=\nnonsense\nRESIN_BOARD_REV=abc\n",
        );
        for (key, expected) in [
            ("ID", Some("balena-os")),
            ("VERSION", Some("2.46.1+rev1")),
            ("VERSION_ID", Some("12")),
            ("HOME_URL", Some("https://x/?a=b")),
            ("SLUG", Some("last")),
            ("EMPTY", None),
            ("MISSING", None),
        ] {
            assert_eq!(os.get(key), expected, "{key}");
        }
        assert_eq!(os.board_rev(), Some("abc"));
    }
}
