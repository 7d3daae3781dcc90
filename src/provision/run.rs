//! Doing it: one step after the other until the device is registered, and again after a failure.

use std::time::Duration;

use super::about::About;
use super::api::{Api, Identity};
use super::failure::{Failure, Why};
use super::status::{self, LastTry};
use super::step::{Found, Learnt, State, Step, next_step};
use super::{backoff, clock, identity};
use crate::config::{ConfigJson, Settings};
use crate::sys::clock::Clock;
use crate::{Error, Result, Root, sys};

/// How provisioning ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The device is known to the cloud.
    Registered {
        /// Its uuid.
        uuid: String,
        /// Its number.
        device_id: u64,
    },
    /// There is no `apiEndpoint` in `config.json`; the device has a uuid and that is all.
    Unmanaged {
        /// Its uuid.
        uuid: String,
    },
}

/// Why an attempt ended without an end.
enum Stop {
    /// The API or the network; trying again may help.
    Failed(Failure),
    /// Something on this device, which somebody must change.
    Broken(Error),
}

impl From<Error> for Stop {
    fn from(e: Error) -> Self {
        Self::Broken(e)
    }
}

impl From<Failure> for Stop {
    fn from(f: Failure) -> Self {
        Self::Failed(f)
    }
}

/// Provisions the host at `root`.
pub struct Provisioner<'a> {
    /// The host.
    pub root: &'a Root,
    /// Its settings.
    pub settings: &'a Settings,
    /// For the waits between attempts.
    pub clock: &'a dyn Clock,
    /// Sets the wall clock to a time since 1970. Only the host's own may be set.
    pub set_time: &'a dyn Fn(Duration) -> Result<()>,
    /// Told of each durable operation after it, and of each request before and after it. An error ends
    /// everything there, as a power cut would; `&|_| Ok(())` outside tests.
    pub observer: &'a dyn Fn(&str) -> Result<()>,
}

impl Provisioner<'_> {
    /// Tries until the device is registered, or found to be unmanaged.
    ///
    /// # Errors
    /// `Failed` at once for what trying again cannot mend: `config.json` missing, damaged, lacking a key, or not
    /// writable.
    pub fn run(&self) -> Result<End> {
        self.raise_clock();
        let (mut failures, mut conflicts, mut corrected) = (0_u32, 0_u32, false);
        loop {
            let failure = match self.attempt() {
                Ok(end) => return self.ended(end),
                Err(Stop::Broken(e)) => return Err(e),
                Err(Stop::Failed(failure)) => failure,
            };
            failures = failures.saturating_add(1);
            conflicts = if let Why::Conflict409(_) = failure.why { conflicts.saturating_add(1) } else { 0 };
            if conflicts > 0 && conflicts == self.settings.provision.new_identity_after {
                self.new_identity()?;
                continue;
            }
            // Once: a clock that does not take what it is set to must not make a loop without a wait.
            if !corrected && self.correct_clock(&failure) {
                corrected = true;
                continue;
            }
            let wait = self.wait(failures, &failure)?;
            let text = format!("{failure}; next try in {} s", wait.as_secs());
            // Once in full, and then only when it changes or now and then: a day without network is not news.
            if failures.is_power_of_two() {
                log::warn!("{text}")
            } else {
                log::debug!("{text}")
            }
            sys::notify::status(&text);
            self.record(LastTry::failed(failures, &failure, Some(wait)));
            self.clock.sleep(wait);
        }
    }

    /// Tries once.
    ///
    /// # Errors
    /// As [`Provisioner::run`], and `Failed` with the reason if the API or the network is in the way.
    pub fn once(&self) -> Result<End> {
        self.raise_clock();
        let mut tried = self.attempt();
        if let Err(Stop::Failed(failure)) = &tried
            && self.correct_clock(failure)
        {
            tried = self.attempt();
        }
        match tried {
            Ok(end) => self.ended(end),
            Err(Stop::Broken(e)) => Err(e),
            Err(Stop::Failed(failure)) => {
                self.record(LastTry::failed(1, &failure, None));
                Err(Error::failed(failure.to_string()))
            }
        }
    }

    fn wait(&self, failures: u32, failure: &Failure) -> Result<Duration> {
        let provision = &self.settings.provision;
        let random = u64::from_str_radix(&sys::random::hex(8)?, 16).unwrap_or_default();
        let first = Duration::from_secs(provision.retry_s);
        let max = Duration::from_secs(provision.retry_max_s);
        Ok(backoff::wait(failures, first, max, failure.why.asked_to_wait(), random))
    }

    /// For `status`; that it cannot be written is no reason to stop.
    fn record(&self, last: LastTry) {
        if let Err(e) = status::record(self.root, Some(&last)) {
            log::warn!("{e}");
        }
    }

    fn ended(&self, end: End) -> Result<End> {
        status::record(self.root, None)?;
        Ok(end)
    }

    fn attempt(&self) -> std::result::Result<End, Stop> {
        let mut learnt = Learnt::default();
        let mut asking: Option<(Api, Identity)> = None;
        loop {
            let config = self.load()?;
            let about = About::read(self.root, self.settings, &config)?;
            let step = next_step(&State { found: found(self.root, &config, &about)?, learnt });
            log::debug!("provision: {step:?}");
            let uuid = || -> Result<String> { Ok(config.uuid()?.unwrap_or_default()) };
            match step {
                Step::MakeIdentity => {
                    self.make_identity()?;
                    continue;
                }
                Step::Unmanaged => return Ok(End::Unmanaged { uuid: uuid()? }),
                Step::Registered => {
                    let device_id = config.device_id()?.unwrap_or_default();
                    let who = identity_of(&config)?;
                    if identity::was(self.root, &who).is_none() {
                        identity::note(self.root, &who);
                    }
                    return Ok(End::Registered { uuid: uuid()?, device_id });
                }
                Step::Lacks(key) => return Err(Stop::Broken(self.lacks(key))),
                Step::NotAccepted => {
                    let doing = "ask for the device with its own key";
                    return Err(Failure { doing, why: Why::KeyNotAccepted }.into());
                }
                Step::Register | Step::TryDeviceKey | Step::ExchangeKey | Step::Settle { .. } => {}
            }
            let identity = identity_of(&config)?;
            let (api, asked_as) = match asking.take() {
                Some(asking) => asking,
                None => (self.connect(&config, &identity.endpoint)?, identity.clone()),
            };
            if asked_as != identity {
                return Err(identity_changed());
            }
            self.ask(step, &api, &identity, &config, &about, &mut learnt)?;
            // Not looked up again: a note of it that a full state partition did not take would ask for it again, for ever.
            if let Step::Settle { device_id } = step {
                return Ok(End::Registered { uuid: identity.uuid, device_id });
            }
            asking = Some((api, asked_as));
        }
    }

    /// Does one step that has to do with the API.
    fn ask(
        &self,
        step: Step,
        api: &Api,
        who: &Identity,
        config: &ConfigJson,
        about: &About,
        learnt: &mut Learnt,
    ) -> std::result::Result<(), Stop> {
        let provisioning_key = || config.api_key()?.ok_or_else(|| self.lacks("apiKey"));
        (self.observer)("before the request")?;
        match step {
            Step::Register => {
                sys::notify::status("registering");
                let application = config.application_id()?.ok_or_else(|| self.lacks("applicationId"))?;
                learnt.registration = api.register(&provisioning_key()?, who, application, about)?;
                learnt.device_key_opens = None;
            }
            Step::TryDeviceKey => learnt.device_key_opens = Some(api.try_device_key(who)?),
            Step::ExchangeKey => {
                api.exchange_key(&provisioning_key()?, who)?;
                learnt.exchanged = true;
                learnt.device_key_opens = None;
            }
            Step::Settle { device_id } => return self.settle(who, device_id),
            Step::MakeIdentity | Step::Registered | Step::Unmanaged | Step::Lacks(_) | Step::NotAccepted => {}
        }
        Ok((self.observer)("after the request")?)
    }

    fn load(&self) -> Result<ConfigJson> {
        ConfigJson::load(self.root, &self.settings.provision.config_json)?
            .ok_or_else(|| status::no_config_json(self.root, self.settings))
    }

    fn connect(&self, config: &ConfigJson, endpoint: &str) -> Result<Api> {
        let provision = &self.settings.provision;
        let ca_bundle = self.root.path(&provision.ca_bundle);
        Api::new(endpoint, ca_bundle, config.root_ca_pem()?, Duration::from_secs(provision.timeout_s.max(1)))
    }

    /// A clock that stands before a moment that is known to be past is set to it.
    fn raise_clock(&self) {
        let (now, floor) = (sys::clock::unix_time(), clock::floor(self.root));
        if now < floor {
            self.set_clock(floor, "the latest time that this device knows of");
        }
    }

    /// If a certificate is not valid yet: sets the clock to the date that the API tells, authenticated. Says whether
    /// that may have helped.
    fn correct_clock(&self, failure: &Failure) -> bool {
        let Why::ClockWrong(_) = failure.why else { return false };
        let asked = self.load().and_then(|config| {
            let settings = super::reach::http_settings(self.root, self.settings)?;
            clock::ask(&identity_of(&config)?.endpoint, &settings)
        });
        match asked {
            Ok(date) if date > sys::clock::unix_time() => self.set_clock(date, "the API's own date"),
            Ok(_) => false,
            Err(e) => {
                log::warn!("the clock stays as it is: {e}");
                false
            }
        }
    }

    fn set_clock(&self, to: Duration, from_where: &str) -> bool {
        match (self.set_time)(to) {
            Ok(()) => {
                log::warn!("the clock was behind; set to {} s since 1970: {from_where}", to.as_secs());
                true
            }
            Err(e) => {
                log::warn!("set the clock: {e}");
                false
            }
        }
    }

    /// The last resort for an identity that another device has.
    fn new_identity(&self) -> Result<()> {
        self.edit(|config| {
            let former = identity_of(config)?;
            identity::keep_former(self.root, &former)?;
            config.set("uuid", sys::random::hex(16)?)?;
            config.set("deviceApiKey", sys::random::hex(16)?)?;
            log::warn!("another device has the uuid {}: this one gets a new identity", former.uuid);
            Ok(())
        })
    }

    /// Makes uuid and device key, whichever is missing, in one durable write before anything carries them.
    fn make_identity(&self) -> Result<()> {
        self.edit(|config| {
            if config.uuid()?.is_none() {
                config.set("uuid", sys::random::hex(16)?)?;
            }
            // The supervisor makes its own when it runs unmanaged.
            if config.api_endpoint()?.is_some() && config.device_api_key()?.is_none() {
                config.set("deviceApiKey", sys::random::hex(16)?)?;
            }
            Ok(())
        })
    }

    /// The one write that makes the device registered and drops the provisioning key.
    fn settle(&self, who: &Identity, device_id: u64) -> std::result::Result<(), Stop> {
        let now_ms = u64::try_from(sys::clock::unix_time().as_millis()).unwrap_or(u64::MAX);
        let settled = self.edit(|config| {
            if identity_of(config)? != *who {
                return Ok(false);
            }
            config.set("deviceId", device_id)?;
            if config.registered_at()?.is_none() {
                // Only that it is there counts, so a clock that stands at 1970 must not make it 0.
                config.set("registered_at", now_ms.max(1))?;
            }
            config.remove("apiKey")?;
            Ok(true)
        })?;
        if !settled {
            return Err(identity_changed());
        }
        identity::note(self.root, who);
        clock::remember(self.root, who);
        (self.observer)("identity noted")?;
        if who.endpoint.starts_with("http://") {
            log::warn!("apiEndpoint is not https://: this device's key goes over the network in the clear");
        }
        log::info!("registered as device {device_id} (uuid {}) with {}", who.uuid, who.endpoint);
        Ok(())
    }

    fn edit<T>(&self, change: impl FnOnce(&mut ConfigJson) -> Result<T>) -> Result<T> {
        let observer = |op: sys::fatrw::Op| (self.observer)(&format!("{op:?}"));
        ConfigJson::edit(self.root, &self.settings.provision.config_json, &observer, change)
    }

    fn lacks(&self, key: &str) -> Error {
        Error::failed(status::lacks(self.root, self.settings, key))
    }
}

fn identity_changed() -> Stop {
    Failure { doing: "register the device", why: Why::IdentityChanged }.into()
}

fn identity_of(config: &ConfigJson) -> Result<Identity> {
    Ok(Identity {
        endpoint: config.api_endpoint()?.unwrap_or_default(),
        uuid: config.uuid()?.unwrap_or_default(),
        device_key: config.device_api_key()?.unwrap_or_default(),
    })
}

/// What the decision needs to know of the files.
pub(super) fn found(root: &Root, config: &ConfigJson, about: &About) -> Result<Found> {
    Ok(Found {
        uuid: config.uuid()?.is_some(),
        endpoint: config.api_endpoint()?.is_some(),
        device_key: config.device_api_key()?.is_some(),
        provisioning_key: config.api_key()?.is_some(),
        device_id: config.device_id()?.is_some(),
        registered_at: config.registered_at()?.is_some(),
        application: config.application_id()?.is_some(),
        device_type: about.device_type.is_some(),
        changed: identity::was(root, &identity_of(config)?) == Some(false),
    })
}
