//! The verdict: which requirements of which services a device does not meet.

use super::facts::{Facts, Named};
use super::range::satisfies;
use super::requirement::{Kind, Requirement};

/// A service and what it requires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// All of it must be there.
    pub requires: Vec<Requirement>,
    /// It may be left out.
    pub optional: bool,
}

/// A service with requirements that are not met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// Its name.
    pub service: String,
    /// It may be left out.
    pub optional: bool,
    /// What is not met, all of it; not empty.
    pub lacks: Vec<Lack>,
}

/// A requirement that is not met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// What is required.
    pub requirement: Requirement,
    /// What is there instead; `None` if there is nothing of the kind, or nothing is known of it.
    pub found: Option<String>,
}

impl Lack {
    /// `requires sw.l4t 32.2, WHOSE has 36.5.0`.
    pub fn describe(&self, whose: &str) -> String {
        match &self.found {
            Some(found) => format!("requires {}, {whose} has {found}", self.requirement),
            None => format!("requires {}, {whose} names none", self.requirement),
        }
    }
}

/// The services of which `facts` does not meet every requirement.
pub fn unmet(services: &[Service], facts: &Facts) -> Vec<Unmet> {
    collect(services, |requirement| !facts.meet(requirement), facts)
}

/// The services that run on `now` and of which `then` would no longer meet a requirement. What is unmet today is not
/// lost by an update.
pub fn lost_by(services: &[Service], now: &Facts, then: &Facts) -> Vec<Unmet> {
    collect(services, |requirement| now.meet(requirement) && !then.meet(requirement), then)
}

fn collect(services: &[Service], is_lacking: impl Fn(&Requirement) -> bool, facts: &Facts) -> Vec<Unmet> {
    let lack = |r: &Requirement| Lack { requirement: r.clone(), found: facts.instead_of(r) };
    let of_service = |s: &Service| Unmet {
        service: s.name.clone(),
        optional: s.optional,
        lacks: s.requires.iter().filter(|r| is_lacking(r)).map(lack).collect(),
    };
    services.iter().map(of_service).filter(|u| !u.lacks.is_empty()).collect()
}

impl Facts {
    /// Slug and version of what there is of a kind; `None`: nothing.
    fn of<'a>(&'a self, kind: Kind) -> Option<(Option<&'a str>, Option<&'a str>)> {
        let named =
            |n: &'a Option<Named>| n.as_ref().map(|n| (Some(n.slug.as_str()), Some(n.version.as_str())));
        match kind {
            Kind::Supervisor => self.supervisor.as_deref().map(|version| (None, Some(version))),
            Kind::L4t => self.l4t.as_deref().map(|version| (None, Some(version))),
            Kind::Os => named(&self.os),
            Kind::Kernel => named(&self.kernel),
            Kind::DeviceType => self.device_type.as_deref().map(|slug| (Some(slug), None)),
            Kind::Arch => self.arch.as_deref().map(|slug| (Some(slug), None)),
        }
    }

    fn meet(&self, requirement: &Requirement) -> bool {
        match requirement {
            Requirement::AnyOf(list) => list.iter().any(|r| self.meet(r)),
            Requirement::One { kind, slug, version } => {
                let Some((found_slug, found_version)) = self.of(*kind) else { return false };
                slug.as_deref().is_none_or(|s| found_slug == Some(s))
                    && version.as_deref().is_none_or(|v| found_version.is_some_and(|f| satisfies(f, v)))
            }
        }
    }

    /// What there is of the kinds that a requirement names, for people.
    fn instead_of(&self, requirement: &Requirement) -> Option<String> {
        match requirement {
            Requirement::AnyOf(list) => {
                let mut found: Vec<_> = list.iter().filter_map(|r| self.instead_of(r)).collect();
                found.dedup();
                (!found.is_empty()).then(|| found.join(", "))
            }
            Requirement::One { kind, .. } => {
                let (slug, version) = self.of(*kind)?;
                Some(slug.into_iter().chain(version).collect::<Vec<_>>().join(" "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// As in the supervisor's test/unit/lib/contracts.spec.ts.
    fn facts() -> Facts {
        Facts {
            supervisor: Some("17.0.0".into()),
            l4t: Some("32.2.0".into()),
            os: Some(Named { slug: "balena-os".into(), version: "5.5.5+rev3".into() }),
            kernel: Some(Named { slug: "linux".into(), version: "6.6.20".into() }),
            device_type: Some("intel-nuc".into()),
            arch: Some("amd64".into()),
        }
    }

    fn service(name: &str, requires: &[Value], optional: bool) -> Service {
        let contract = json!({ "slug": name, "requires": requires });
        Service { name: name.into(), requires: Requirement::of_contract(&contract).unwrap(), optional }
    }

    fn is_met(requires: &[Value]) -> bool {
        unmet(&[service("s", requires, false)], &facts()).is_empty()
    }

    /// The contracts of tests/fixtures/contracts with contrato's verdicts.
    #[test]
    fn verdicts_are_contratos() {
        let cases: Value =
            serde_json::from_str(include_str!("../../tests/fixtures/contracts/cases.json")).unwrap();
        let facts: Facts = serde_json::from_value(cases["facts"].clone()).unwrap();
        let cases = cases["cases"].as_array().unwrap();
        for case in cases {
            let service = service("s", case["requires"].as_array().unwrap(), false);
            assert_eq!(unmet(&[service], &facts).is_empty(), case["satisfied"].as_bool().unwrap(), "{case}");
        }
        assert!(cases.len() > 40);
    }

    #[test]
    fn everything_unmet_is_told_at_once() {
        let services = [
            service(
                "one",
                &[json!({ "type": "sw.l4t", "version": "36" }), json!({ "type": "arch.sw", "slug": "rpi" })],
                false,
            ),
            service("two", &[json!({ "type": "sw.os", "slug": "balena-os", "version": "5.5" })], false),
            service(
                "three",
                &[
                    json!({ "or": [{ "type": "sw.os", "slug": "ubuntu" }, { "type": "sw.kernel", "version": "<6" }] }),
                ],
                true,
            ),
        ];
        let all = unmet(&services, &facts());
        let text: Vec<_> = all
            .iter()
            .flat_map(|u| {
                u.lacks.iter().map(|l| format!("{} {} {}", u.service, u.optional, l.describe("it")))
            })
            .collect();
        assert_eq!(
            text,
            [
                "one false requires sw.l4t 36, it has 32.2.0",
                "one false requires arch.sw rpi, it has amd64",
                "three true requires sw.os ubuntu or sw.kernel <6, it has balena-os 5.5.5+rev3, linux 6.6.20",
            ]
        );
    }

    #[test]
    fn what_is_not_there_is_not_met() {
        let none = Facts::default();
        for requirement in [json!({ "type": "sw.l4t" }), json!({ "type": "sw.os", "version": "*" })] {
            let all = unmet(&[service("s", std::slice::from_ref(&requirement), false)], &none);
            assert_eq!(all.len(), 1, "{requirement}");
            assert!(all[0].lacks[0].describe("the device").ends_with("the device names none"));
        }
        assert!(is_met(&[json!({ "type": "sw.l4t" })]));
    }

    #[test]
    fn an_update_loses_only_what_was_met_before() {
        let l4t = |version: &str| json!({ "type": "sw.l4t", "version": version });
        let services = [
            service("keeps", &[l4t("32.2 || 36.5")], false),
            service("loses", &[l4t("32")], false),
            service("never", &[l4t("28")], false),
            service("gains", &[l4t("36")], false),
        ];
        let then = Facts { l4t: Some("36.5.0".into()), ..facts() };
        let lost = lost_by(&services, &facts(), &then);
        assert_eq!(lost.iter().map(|u| u.service.as_str()).collect::<Vec<_>>(), ["loses"]);
        // A bundle that does not say counts as one that lacks it.
        let silent = Facts { l4t: None, ..facts() };
        assert_eq!(lost_by(&services, &facts(), &silent).len(), 2);
    }
}
