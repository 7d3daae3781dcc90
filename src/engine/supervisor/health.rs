//! How the supervisor container does.

use crate::Result;
use crate::engine::{Container, Engine};

/// What is known of the supervisor's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SupervisorHealth {
    /// There is no such container.
    Missing,
    /// It does not run.
    Stopped {
        /// Of its last run; 0 if it never ran.
        exit_code: i64,
        /// Why the last start did not work; may be empty.
        error: String,
    },
    /// It runs; its HEALTHCHECK has not yet said anything.
    Starting,
    /// Its HEALTHCHECK passes.
    Healthy,
    /// Its HEALTHCHECK failed several times in a row.
    Unhealthy {
        /// What the last probe printed.
        output: String,
    },
    /// It runs, and its image has no HEALTHCHECK: nothing more can be known.
    Running,
}

/// How the supervisor container does.
///
/// # Errors
/// `Failed` if the engine does not answer.
pub fn health(engine: &Engine) -> Result<SupervisorHealth> {
    Ok(SupervisorHealth::of(engine.container(super::NAME)?.as_ref()))
}

impl SupervisorHealth {
    /// How a container does, of what the engine says of it.
    pub fn of(container: Option<&Container>) -> Self {
        let Some(container) = container else { return Self::Missing };
        let state = &container.state;
        if !state.running || state.status == "paused" {
            return Self::Stopped { exit_code: state.exit_code, error: one_line(&state.error) };
        }
        let Some(health) = &state.health else { return Self::Running };
        match health.status.as_str() {
            "healthy" => Self::Healthy,
            "starting" => Self::Starting,
            "unhealthy" => {
                let last = health.log.iter().rev().find(|p| p.exit_code != 0);
                Self::Unhealthy { output: last.map(|p| one_line(&p.output)).unwrap_or_default() }
            }
            // "none", and Podman's "": the check is switched off.
            _ => Self::Running,
        }
    }

    /// Whether nothing is known to be wrong, and nothing is still to be waited for.
    pub const fn is_good(&self) -> bool {
        match self {
            Self::Healthy | Self::Running => true,
            Self::Missing | Self::Stopped { .. } | Self::Starting | Self::Unhealthy { .. } => false,
        }
    }

    /// Whether the container runs, whatever its health check says.
    pub const fn runs(&self) -> bool {
        match self {
            Self::Healthy | Self::Running | Self::Starting | Self::Unhealthy { .. } => true,
            Self::Missing | Self::Stopped { .. } => false,
        }
    }

    /// One word for programs.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Stopped { .. } => "stopped",
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy { .. } => "unhealthy",
            Self::Running => "running",
        }
    }
}

impl std::fmt::Display for SupervisorHealth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("missing: there is no container balena_supervisor"),
            Self::Stopped { exit_code, error } if error.is_empty() => {
                write!(f, "stopped: exit code {exit_code}")
            }
            Self::Stopped { error, .. } => write!(f, "stopped: {error}"),
            Self::Starting => f.write_str("running, its health check has not passed yet"),
            Self::Healthy => f.write_str("running, healthy"),
            Self::Unhealthy { output } if output.is_empty() => f.write_str("unhealthy"),
            Self::Unhealthy { output } => write!(f, "unhealthy: {output}"),
            Self::Running => f.write_str("running (its image has no health check)"),
        }
    }
}

fn one_line(text: &str) -> String {
    crate::engine::client::one_line(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_engines_say() {
        use SupervisorHealth as H;
        for (state, expected) in [
            (r#"{"Status":"running","Running":true}"#, H::Running),
            (r#"{"Status":"running","Running":true,"Health":null}"#, H::Running),
            (r#"{"Status":"running","Running":true,"Health":{"Status":"none"}}"#, H::Running),
            (r#"{"Status":"running","Running":true,"Health":{"Status":"starting","Log":null}}"#, H::Starting),
            (r#"{"Status":"running","Running":true,"Health":{"Status":"healthy","Log":[]}}"#, H::Healthy),
            (
                r#"{"Status":"running","Running":true,"Health":{"Status":"unhealthy","Log":[
                    {"ExitCode":1,"Output":"old"},{"ExitCode":1,"Output":"500 no\n engine"}]}}"#,
                H::Unhealthy { output: "500 no engine".into() },
            ),
            (r#"{"Status":"exited","ExitCode":137}"#, H::Stopped { exit_code: 137, error: String::new() }),
            (
                r#"{"Status":"created","Error":"no runc"}"#,
                H::Stopped { exit_code: 0, error: "no runc".into() },
            ),
            (r#"{"Status":"paused","Running":true}"#, H::Stopped { exit_code: 0, error: String::new() }),
        ] {
            let container = serde_json::from_str(&format!(r#"{{"State":{state}}}"#)).unwrap();
            assert_eq!(H::of(Some(&container)), expected, "{state}");
        }
        assert_eq!(H::of(None), H::Missing);
    }
}
