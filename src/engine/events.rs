//! What happens to containers, as it happens.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::client::{Answer, Engine, LOOK_DEADLINE, encode, explain, read_whole};
use super::stream::{Lines, Next};
use super::transport::{self, Patience};
use crate::sys::termination::Termination;
use crate::{Doing, Result};

/// The kinds that tell of a container's life. Not `exec_*`: every HEALTHCHECK makes three of those.
const KINDS: [&str; 8] = ["create", "start", "die", "oom", "pause", "unpause", "destroy", "health_status"];

/// A stream of events.
pub struct Events {
    lines: Lines,
    patience: Arc<Patience>,
}

/// What ended a wait for events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wake {
    /// The container did or suffered this: `die`, `health_status: healthy`.
    Event(String),
    /// Nothing happened in the time given, or this process was asked to end.
    Tick,
    /// The engine closed the stream, as it does when it stops.
    End,
}

impl Engine {
    /// Follows the life of the container `name`. No wait outlasts the request to this process to end.
    ///
    /// # Errors
    /// `Failed` if the engine does not answer.
    pub fn events(&self, name: &str, termination: &Termination) -> Result<Events> {
        let what = "GET /events";
        let filters = json!({ "type": ["container"], "container": [name], "event": KINDS }).to_string();
        let url = self.url(&format!("/events?filters={}", encode(&filters)));
        // A connection of its own: this one never becomes idle.
        let patience = Arc::new(Patience::new(LOOK_DEADLINE, termination.clone()));
        let agent = transport::agent(self.socket(), Some(patience.clone()));
        let request = agent.get(url).config();
        let request = request
            .timeout_connect(Some(LOOK_DEADLINE))
            .timeout_per_write(Some(LOOK_DEADLINE))
            .timeout_recv_response(Some(LOOK_DEADLINE))
            .build();
        let mut response = request.call().map_err(|e| explain(e, LOOK_DEADLINE)).doing(|| what)?;
        if response.status() != 200 {
            let answer: Answer = read_whole(&mut response, LOOK_DEADLINE).doing(|| what)?;
            answer.expect(&[200], what)?;
        }
        Ok(Events { lines: Lines::new(response.into_body()), patience })
    }
}

impl Events {
    /// Waits for the next event, for at most `limit`.
    ///
    /// # Errors
    /// `Failed` if the engine went away.
    pub fn next(&mut self, limit: Duration) -> Result<Wake> {
        #[derive(Deserialize)]
        struct Event {
            #[serde(rename = "Action", default)]
            action: String,
        }
        self.patience.set(limit);
        Ok(match self.lines.next().doing(|| "GET /events")? {
            // A line we do not understand still says that something happened.
            Next::Line(line) => Wake::Event(
                serde_json::from_slice::<Event>(&line).map_or_else(|_| String::new(), |e| e.action),
            ),
            Next::Tick => Wake::Tick,
            Next::End => Wake::End,
        })
    }
}
