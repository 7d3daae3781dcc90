//! Names of servers, looked up once for many requests: the HTTP library would look one up before each, also for a connection that
//! it has already, in a thread of its own.
//!
//! ureq's `unversioned` interface, as in `engine/transport.rs`.

use std::sync::Mutex;
use std::time::Duration;

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::http::uri::{Authority, Scheme};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use super::clock::{BootClock, Clock};

/// For so long an answer is believed: a server that moved is found again soon, and nobody waits longer before he gives up.
const LIFE: Duration = Duration::from_secs(30);

/// The library's own way to look names up, and its last answer.
#[derive(Debug, Default)]
pub struct Names {
    ask: DefaultResolver,
    last: Mutex<Option<Known>>,
}

#[derive(Debug)]
struct Known {
    scheme: Scheme,
    server: Authority,
    addresses: ResolvedSocketAddrs,
    since: Duration,
}

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let (Some(scheme), Some(server)) = (uri.scheme(), uri.authority()) else {
            return self.ask.resolve(uri, config, timeout);
        };
        let now = BootClock.since_boot();
        // Nobody panics while he holds it, and an answer is whole.
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = last.as_ref().filter(|k| k.scheme == *scheme && k.server == *server);
        if let Some(known) = known.filter(|k| now < k.since + LIFE) {
            return Ok(copy(self, &known.addresses));
        }
        *last = None;
        let addresses = self.ask.resolve(uri, config, timeout)?;
        *last = Some(Known {
            scheme: scheme.clone(),
            server: server.clone(),
            addresses: copy(self, &addresses),
            since: now,
        });
        Ok(addresses)
    }
}

fn copy(names: &Names, addresses: &ResolvedSocketAddrs) -> ResolvedSocketAddrs {
    let mut copied = names.empty();
    addresses.iter().for_each(|address| copied.push(*address));
    copied
}
