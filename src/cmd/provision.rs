//! `twinhull provision`

use std::time::Duration;

use serde_json::json;

use crate::cli::{Command, Context, usage};
use crate::provision::{End, Provisioner};
use crate::sys::clock::{BootClock, Clock};
use crate::{Doing, Error, Result, sys};

pub(super) const COMMAND: Command = Command {
    name: "provision",
    summary: "give this device its identity and register it with the cloud API",
    help: HELP,
    run,
};

const HELP: &str = "\
twinhull provision: give this device its identity and register it with the cloud API

Usage: twinhull provision [--once]

Reads config.json on the boot partition. Makes what is missing of `uuid` and `deviceApiKey`, and writes it down
before it is used. If `apiEndpoint` is set, registers the device with the provisioning key `apiKey` in the fleet
`applicationId`, sees that the device key works, and then in one write adds `deviceId` and `registered_at` and
removes `apiKey`: what the supervisor regards as provisioned. A device that is registered already asks nothing.

Tries until it works, waiting longer each time up to provision.retry_max_s; `twinhull status` shows why it does not
work yet. What trying again cannot mend (config.json missing, damaged, or lacking a key) ends it at once.
May be interrupted at any moment and repeated at will.

A clock that is behind is raised to the latest time that is known to be past (the image's build, what this device last
saw); if a certificate is still not valid yet, the clock is set to the date that the API tells in a connection that is
checked in every other way. No check is ever turned off. A proxy is taken from HTTPS_PROXY, ALL_PROXY and NO_PROXY.

  --once          try once; exit 1 with the reason if it does not work

Under systemd (Type=notify) it reports ready when the device is registered or found to be unmanaged, or after 60 s
without success, so that the rest of the system does not wait for a network; it goes on trying.

Settings: provision.config_json, device_type_json, ca_bundle, retry_s, retry_max_s, timeout_s, new_identity_after.
";

/// How long the units behind this one are held back.
const READY_AFTER: Duration = Duration::from_secs(60);

fn run(mut parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let mut once = false;
    while let Some(arg) = parser.next().map_err(usage("provision"))? {
        match arg {
            lexopt::Arg::Long("once") => once = true,
            lexopt::Arg::Long(_) | lexopt::Arg::Short(_) | lexopt::Arg::Value(_) => {
                return Err(usage("provision")(arg.unexpected()));
            }
        }
    }
    let settings = context.settings()?;
    let set_time = |to| match context.root.is_host() {
        true => sys::clock::set_unix_time(to),
        false => Err(Error::refused("--root is not the host whose clock this is")),
    };
    let provisioner = Provisioner {
        root: &context.root,
        settings: &settings,
        clock: &BootClock,
        set_time: &set_time,
        observer: &|_| Ok(()),
    };
    let end = if once {
        provisioner.once()
    } else {
        // A thread, because a request may hang for longer than that. It ends with the process.
        std::thread::spawn(|| {
            BootClock.sleep(READY_AFTER);
            sys::notify::notify("READY=1");
        });
        provisioner.run()
    };
    show(context, &end.doing(|| "provision")?);
    Ok(0)
}

fn show(context: &Context, end: &End) {
    let (text, json) = match end {
        End::Registered { uuid, device_id } => (
            format!("registered as device {device_id}, uuid {uuid}"),
            json!({"registered": true, "managed": true, "uuid": uuid, "device_id": device_id}),
        ),
        End::Unmanaged { uuid } => (
            format!("unmanaged, uuid {uuid}: config.json has no apiEndpoint"),
            json!({"registered": false, "managed": false, "uuid": uuid}),
        ),
    };
    sys::notify::notify(&format!("READY=1\nSTATUS={text}"));
    sys::out::line(&if context.json { json.to_string() } else { text });
}
