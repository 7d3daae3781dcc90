//! What to do next: a total function of what is in `config.json` and what the API said in this attempt.

/// What `config.json` and the image say, without the secrets themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// `uuid` is there.
    pub uuid: bool,
    /// `apiEndpoint` is there: the device is to be managed.
    pub endpoint: bool,
    /// `deviceApiKey` is there.
    pub device_key: bool,
    /// `apiKey`, the provisioning key, is there.
    pub provisioning_key: bool,
    /// `deviceId` is there.
    pub device_id: bool,
    /// `registered_at` is there.
    pub registered_at: bool,
    /// `applicationId` is there.
    pub application: bool,
    /// The device type is known.
    pub device_type: bool,
    /// The device was registered as another one than `config.json` names now.
    pub changed: bool,
}

/// How the request to register was answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Registration {
    /// Not asked in this attempt.
    #[default]
    NotAsked,
    /// 201: a new device.
    Created,
    /// 409: the uuid or the key is known; perhaps from an earlier attempt of ours.
    Taken,
}

/// What this attempt has learnt from the API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Learnt {
    /// How the request to register was answered.
    pub registration: Registration,
    /// `Some(Some(id))`: the device key opens the device `id`; `Some(None)`: it opens nothing; `None`: not tried.
    pub device_key_opens: Option<Option<u64>>,
    /// The device key was handed to the API with the provisioning key.
    pub exchanged: bool,
}

/// Everything that the decision depends on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    /// From disk.
    pub found: Found,
    /// From the API.
    pub learnt: Learnt,
}

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make what is missing of uuid and device key, and write it down.
    MakeIdentity,
    /// Ask the API to register the device.
    Register,
    /// Ask the API for the device, with the device key.
    TryDeviceKey,
    /// Hand the device key to the API for a device that is there, with the provisioning key.
    ExchangeKey,
    /// Write down that the device is registered, and drop the provisioning key.
    Settle {
        /// The number that the API gave.
        device_id: u64,
    },
    /// Nothing: registered.
    Registered,
    /// Nothing: no cloud is configured.
    Unmanaged,
    /// Cannot go on: this key is missing in `config.json`.
    Lacks(&'static str),
    /// The API took the device key and yet refuses it. Later may help: it remembers refusals for minutes.
    NotAccepted,
}

/// Decides.
pub fn next_step(state: &State) -> Step {
    let State { found, learnt } = *state;
    if !found.uuid || (found.endpoint && !found.device_key) {
        return Step::MakeIdentity;
    }
    if !found.endpoint {
        return Step::Unmanaged;
    }
    if found.registered_at && found.device_id && !found.provisioning_key && !found.changed {
        return Step::Registered;
    }
    match (learnt.device_key_opens, learnt.registration) {
        (Some(Some(device_id)), _) => Step::Settle { device_id },
        // A device key that the API has not heard of yet is refused, and the refusal is remembered for minutes:
        // it is only tried first where something says that it is known.
        (None, Registration::NotAsked) => {
            let known = found.registered_at || found.device_id || !found.provisioning_key;
            if known { Step::TryDeviceKey } else { register(found) }
        }
        (None, Registration::Created | Registration::Taken) => Step::TryDeviceKey,
        (Some(None), Registration::NotAsked) => register(found),
        (Some(None), Registration::Created) => Step::NotAccepted,
        (Some(None), Registration::Taken) if learnt.exchanged => Step::NotAccepted,
        (Some(None), Registration::Taken) => Step::ExchangeKey,
    }
}

fn register(found: Found) -> Step {
    match found {
        Found { provisioning_key: false, .. } => Step::Lacks("apiKey"),
        Found { application: false, .. } => Step::Lacks("applicationId"),
        Found { device_type: false, .. } => Step::Lacks("deviceType"),
        _ => Step::Register,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Found = Found {
        uuid: true,
        endpoint: true,
        device_key: true,
        provisioning_key: true,
        device_id: false,
        registered_at: false,
        application: true,
        device_type: true,
        changed: false,
    };

    #[test]
    fn table() {
        use Registration::*;
        let done = Found { provisioning_key: false, device_id: true, registered_at: true, ..FRESH };
        let l =
            |registration, device_key_opens, exchanged| Learnt { registration, device_key_opens, exchanged };
        let none = Learnt::default();
        for (found, learnt, expected) in [
            (Found::default(), none, Step::MakeIdentity),
            (Found { uuid: true, ..Found::default() }, none, Step::Unmanaged),
            (Found { device_key: false, ..FRESH }, none, Step::MakeIdentity),
            (FRESH, none, Step::Register),
            (FRESH, l(Created, None, false), Step::TryDeviceKey),
            (FRESH, l(Taken, None, false), Step::TryDeviceKey),
            (FRESH, l(Created, Some(Some(5)), false), Step::Settle { device_id: 5 }),
            (FRESH, l(Taken, Some(Some(5)), false), Step::Settle { device_id: 5 }),
            (FRESH, l(Created, Some(None), false), Step::NotAccepted),
            (FRESH, l(Taken, Some(None), false), Step::ExchangeKey),
            (FRESH, l(Taken, None, true), Step::TryDeviceKey),
            (FRESH, l(Taken, Some(None), true), Step::NotAccepted),
            (done, none, Step::Registered),
            // Registered, but the provisioning key is still there: first see whether the device key works.
            (Found { provisioning_key: true, ..done }, none, Step::TryDeviceKey),
            (Found { provisioning_key: true, ..done }, l(NotAsked, Some(None), false), Step::Register),
            // Half of the record is missing.
            (Found { device_id: false, ..done }, none, Step::TryDeviceKey),
            (
                Found { device_id: false, ..done },
                l(NotAsked, Some(Some(5)), false),
                Step::Settle { device_id: 5 },
            ),
            (Found { device_id: false, ..done }, l(NotAsked, Some(None), false), Step::Lacks("apiKey")),
            // No provisioning key: an identity that was made beforehand may be known.
            (Found { provisioning_key: false, ..FRESH }, none, Step::TryDeviceKey),
            // Another identity was put there: registered, but not as this one.
            (Found { changed: true, ..done }, none, Step::TryDeviceKey),
            (
                Found { changed: true, ..done },
                l(NotAsked, Some(Some(5)), false),
                Step::Settle { device_id: 5 },
            ),
            (Found { changed: true, ..done }, l(NotAsked, Some(None), false), Step::Lacks("apiKey")),
            (Found { application: false, ..FRESH }, none, Step::Lacks("applicationId")),
            (Found { device_type: false, ..FRESH }, none, Step::Lacks("deviceType")),
        ] {
            assert_eq!(next_step(&State { found, learnt }), expected, "{found:?} {learnt:?}");
        }
    }

    fn all() -> Vec<State> {
        let mut states = Vec::new();
        for bits in 0..512_u32 {
            let bit = |n: u32| bits >> n & 1 == 1;
            let found = Found {
                uuid: bit(0),
                endpoint: bit(1),
                device_key: bit(2),
                provisioning_key: bit(3),
                device_id: bit(4),
                registered_at: bit(5),
                application: bit(6),
                device_type: bit(7),
                changed: bit(8),
            };
            for registration in [Registration::NotAsked, Registration::Created, Registration::Taken] {
                for device_key_opens in [None, Some(None), Some(Some(9))] {
                    for exchanged in [false, true] {
                        states.push(State {
                            found,
                            learnt: Learnt { registration, device_key_opens, exchanged },
                        });
                    }
                }
            }
        }
        states
    }

    #[test]
    fn no_key_is_used_before_it_is_written_down_and_none_dropped_before_the_other_works() {
        for state in all() {
            let step = next_step(&state);
            let identity = state.found.uuid && state.found.device_key;
            if matches!(step, Step::Register | Step::TryDeviceKey | Step::ExchangeKey) {
                assert!(identity && state.found.endpoint, "{state:?}");
            }
            if let Step::Settle { device_id } = step {
                assert_eq!(state.learnt.device_key_opens, Some(Some(device_id)), "{state:?}");
            }
        }
    }

    /// Whatever the API answers, an attempt ends.
    #[test]
    fn every_attempt_ends() {
        for start in all() {
            let mut states = vec![(start, 0)];
            while let Some((state, steps)) = states.pop() {
                assert!(steps < 10, "{start:?} goes on for ever: {state:?}");
                let with = |learnt: Learnt| (State { learnt, ..state }, steps + 1);
                let l = state.learnt;
                match next_step(&state) {
                    Step::MakeIdentity => {
                        let found = Found { uuid: true, device_key: true, ..state.found };
                        states.push((State { found, ..state }, steps + 1));
                    }
                    // A failure ends the attempt; these are the answers that do not.
                    Step::Register => {
                        for registration in [Registration::Created, Registration::Taken] {
                            states.push(with(Learnt { registration, device_key_opens: None, ..l }));
                        }
                    }
                    Step::TryDeviceKey => {
                        for opens in [None, Some(3)] {
                            states.push(with(Learnt { device_key_opens: Some(opens), ..l }));
                        }
                    }
                    Step::ExchangeKey => {
                        states.push(with(Learnt { exchanged: true, device_key_opens: None, ..l }));
                    }
                    Step::Settle { .. }
                    | Step::Registered
                    | Step::Unmanaged
                    | Step::Lacks(_)
                    | Step::NotAccepted => {}
                }
            }
        }
    }
}
