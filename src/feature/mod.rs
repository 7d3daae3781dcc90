//! HOST RESOURCES BY LABEL: what a container is given of its host, and whether this host has it.
//!
//! `io.balena.features.*` labels are the only way in for the containers of a release: each label gives one [`Grant`],
//! by a pure table ([`grant()`]) that says what balena's supervisor would do. What stands behind a label on the host
//! (sockets, directories, files) is looked at in [`host`], which also makes what is ours to make.
//!
//! Source: balena-supervisor v19.0.5, `src/compose/utils.ts` (`addFeaturesFromLabels`, `normalizeLabels`) and
//! `src/lib/validation.ts`.

pub mod grant;
pub mod host;
pub mod label;

pub use grant::{Facts, Grant, SupervisorApi, grant};
pub use label::{Feature, Labels};
