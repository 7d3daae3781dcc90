//! One requirement, from a contract file or from labels.

use std::fmt;

use serde_json::Value;

use super::range::Range;
use crate::feature::Labels;
use crate::feature::label::REQUIRES;
use crate::{Error, Result};

/// Architectures that a label may name.
const ARCHITECTURES: [&str; 5] = ["aarch64", "rpi", "amd64", "armv7hf", "i386"];

/// What a device can be required to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The supervisor, with a version.
    Supervisor,
    /// NVIDIA's Linux for Tegra, with a version.
    L4t,
    /// The host OS, with slug and version.
    Os,
    /// The kernel, with slug and version.
    Kernel,
    /// The device type, with a slug.
    DeviceType,
    /// The architecture, with a slug.
    Arch,
}

impl Kind {
    const ALL: [Self; 6] =
        [Self::Supervisor, Self::L4t, Self::Os, Self::Kernel, Self::DeviceType, Self::Arch];

    /// Its name in contracts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Supervisor => "sw.supervisor",
            Self::L4t => "sw.l4t",
            Self::Os => "sw.os",
            Self::Kernel => "sw.kernel",
            Self::DeviceType => "hw.device-type",
            Self::Arch => "arch.sw",
        }
    }
}

/// What a device must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    /// One thing; what is `None` may be anything.
    One {
        /// Of this kind.
        kind: Kind,
        /// With exactly this slug.
        slug: Option<String>,
        /// With a version in this range.
        version: Option<String>,
    },
    /// At least one of several.
    AnyOf(Vec<Self>),
}

impl Requirement {
    /// The requirements of a contract: the list `requires` of a `contract.yml`.
    ///
    /// Fields that the supervisor does not know are passed over, as it does.
    ///
    /// # Errors
    /// `Refused` for a type that is not known, so that a device refuses the whole release, and for anything that is no
    /// contract.
    pub fn of_contract(contract: &Value) -> Result<Vec<Self>> {
        let Value::Object(fields) = contract else { return wrong("not a mapping with slug and requires") };
        if !fields.get("slug").is_some_and(Value::is_string) {
            return wrong("no slug; a contract needs one");
        }
        match fields.get("requires") {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(Self::parse).collect(),
            Some(_) => wrong("requires: expected a list"),
        }
    }

    fn parse(value: &Value) -> Result<Self> {
        let Value::Object(fields) = value else { return wrong("requires: expected mappings with a type") };
        if let Some(alternatives) = fields.get("or") {
            return match alternatives {
                Value::Array(list) if !list.is_empty() => {
                    Ok(Self::AnyOf(list.iter().map(Self::parse).collect::<Result<_>>()?))
                }
                _ => wrong("or: expected a list of requirements"),
            };
        }
        let name = match fields.get("type") {
            Some(Value::String(name)) => name,
            _ => return wrong("a requirement without type"),
        };
        let Some(kind) = Kind::ALL.into_iter().find(|k| k.name() == name) else {
            let known = Kind::ALL.map(Kind::name).join(", ");
            return wrong(&format!("{name} is not a valid contract requirement type; known are {known}"));
        };
        if fields.get("data").is_some_and(|d| !d.is_null()) {
            return wrong(&format!("{name}: no device tells any data; take it out"));
        }
        let text = |key: &str| match fields.get(key) {
            None | Some(Value::Null) => Ok(None),
            // As in JavaScript, where empty text is no condition.
            Some(Value::String(s)) => Ok(Some(s.clone()).filter(|s| !s.is_empty())),
            Some(other) => wrong(&format!("{name}: {key}: expected text; put quotes around {other}")),
        };
        Ok(Self::One { kind, slug: text("slug")?, version: text("version")? })
    }

    /// The requirements that labels name. Labels of other names are passed over.
    ///
    /// # Errors
    /// `Refused`, naming the label, for a version range or an architecture that is none.
    pub fn of_labels(labels: &Labels) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for (label, value) in labels {
            let Some(name) = label.strip_prefix(REQUIRES) else { continue };
            let version = || match Range::parse(value) {
                Some(_) => Ok(Some(value.clone())),
                None => wrong(&format!("label {label}: expected a valid semver range, found {value:?}")),
            };
            let slug = Some(value.clone());
            let requirement = match name {
                "sw.supervisor" => Self::One { kind: Kind::Supervisor, slug: None, version: version()? },
                "sw.l4t" => Self::One { kind: Kind::L4t, slug: None, version: version()? },
                "sw.balena-os" => {
                    Self::One { kind: Kind::Os, slug: Some("balena-os".into()), version: version()? }
                }
                "sw.linux" => {
                    Self::One { kind: Kind::Kernel, slug: Some("linux".into()), version: version()? }
                }
                "hw.device-type" => Self::One { kind: Kind::DeviceType, slug, version: None },
                "arch.sw" if ARCHITECTURES.contains(&value.as_str()) => {
                    Self::One { kind: Kind::Arch, slug, version: None }
                }
                "arch.sw" => {
                    let known = ARCHITECTURES.join(", ");
                    return wrong(&format!("label {label}: expected one of {known}, found {value:?}"));
                }
                _ => continue,
            };
            all.push(requirement);
        }
        Ok(all)
    }
}

fn wrong<T>(text: &str) -> Result<T> {
    Err(Error::refused(text))
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One { kind, slug, version } => {
                f.write_str(kind.name())?;
                slug.iter().chain(version).try_for_each(|part| write!(f, " {part}"))
            }
            Self::AnyOf(list) => {
                let all: Vec<_> = list.iter().map(ToString::to_string).collect();
                f.write_str(&all.join(" or "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| (format!("io.balena.features.requires.{k}"), (*v).to_owned())).collect()
    }

    #[test]
    fn each_label_becomes_its_requirement() {
        for (label, value, expected) in [
            ("sw.supervisor", ">=16.0.0", "sw.supervisor >=16.0.0"),
            ("sw.l4t", "32.4.4", "sw.l4t 32.4.4"),
            ("sw.balena-os", ">6.3.0+rev4", "sw.os balena-os >6.3.0+rev4"),
            ("sw.linux", ">5.15.*", "sw.kernel linux >5.15.*"),
            ("hw.device-type", "raspberrypi4-64", "hw.device-type raspberrypi4-64"),
            ("arch.sw", "aarch64", "arch.sw aarch64"),
        ] {
            let all = Requirement::of_labels(&labels(&[(label, value)])).unwrap();
            assert_eq!(all.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
        }
        let others = labels(&[("sw.compose", "2"), ("sw.anything", "x")]);
        assert_eq!(Requirement::of_labels(&others).unwrap(), []);
    }

    #[test]
    fn labels_that_mean_nothing_are_refused_by_name() {
        for (label, value) in
            [("sw.supervisor", "not-valid"), ("sw.linux", "6.1 beta"), ("arch.sw", "x86_64")]
        {
            let e = Requirement::of_labels(&labels(&[(label, value)])).unwrap_err();
            assert_eq!(e.kind(), crate::Kind::Refused);
            assert!(e.to_string().contains(label) && e.to_string().contains(value), "{e}");
        }
    }

    /// The contracts of the supervisor's test/unit/lib/contracts.spec.ts.
    #[test]
    fn contracts_are_valid_as_for_the_supervisor() {
        for (contract, expected) in [
            (json!({ "slug": "c" }), Ok(0)),
            (json!({ "slug": "c", "name": "c", "version": "3.0.0", "requires": null }), Ok(0)),
            (
                json!({ "slug": "c", "requires": [
                    { "type": "sw.l4t", "version": "32.2" },
                    { "type": "sw.supervisor" },
                    { "type": "hw.device-type", "slug": "raspberrypi3", "name": "x", "unsupported": 1 },
                    { "type": "sw.os", "version": "" },
                    { "or": [{ "type": "sw.os", "slug": "balena-os" }, { "type": "arch.sw", "slug": "amd64" }] },
                ] }),
                Ok(5),
            ),
            (json!("text"), Err("not a mapping")),
            (json!({ "type": 1234 }), Err("no slug")),
            (json!({ "slug": true }), Err("no slug")),
            (json!({ "slug": "c", "requires": "my-requirement" }), Err("requires: expected a list")),
            (json!({ "slug": "c", "requires": ["x"] }), Err("expected mappings")),
            (json!({ "slug": "c", "requires": [{ "version": ">3.0.0" }] }), Err("without type")),
            (json!({ "slug": "c", "requires": [{ "type": "sw.spec" }] }), Err("sw.spec is not a valid")),
            (
                json!({ "slug": "c", "requires": [{ "or": [{ "type": "sw.x" }] }] }),
                Err("sw.x is not a valid"),
            ),
            (json!({ "slug": "c", "requires": [{ "or": [] }] }), Err("or: expected a list")),
            (json!({ "slug": "c", "requires": [{ "type": "sw.os", "version": 6 }] }), Err("quotes around 6")),
            (json!({ "slug": "c", "requires": [{ "type": "sw.os", "data": {} }] }), Err("data")),
        ] {
            let found = Requirement::of_contract(&contract);
            match (&found, expected) {
                (Ok(list), Ok(n)) => assert_eq!(list.len(), n, "{contract}"),
                (Err(e), Err(says)) => {
                    assert_eq!(e.kind(), crate::Kind::Refused);
                    assert!(e.to_string().contains(says), "{contract}: {e}");
                }
                _ => panic!("{contract}: {found:?}"),
            }
        }
    }
}
