//! What each subject of `config.json` means to the daemons of this host: files that they read by themselves, and
//! what has to be done when one of these files changed. Pure.
//!
//! All of it is in `/run`: made anew on each boot, gone with the boot, and no concern of the read-only root. The
//! names that balenaOS uses are kept where a daemon's settings in the image may point to them.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::super::ConfigJson;
use super::super::keys::{self, words};
use crate::{Error, Result};

/// This host's name; PID 1 binds it over `/etc/hostname`.
pub const HOST_NAME: &str = "/run/twinhull/hostname";
/// The fleet's own certificates.
pub const FLEET_CA: &str = "/run/twinhull/ca/balenaRootCA.crt";
const CA_BUNDLE: &str = "/run/twinhull/ca/ca-certificates.crt";
/// First line of our udev rules: what is ours is seen from the file itself.
pub(super) const UDEV_MARK: &str = "# twinhull: os.udevRules of config.json\n";
pub(super) const UDEV_RULES: &str = "/run/udev/rules.d";
/// Every unit that an [`Action`] may ask after.
pub(super) const UNITS: &[&str] = &[
    "systemd-hostnamed.service",
    "avahi-daemon.service",
    "systemd-journald.service",
    "var-log-journal.mount",
    "chronyd.service",
    "chrony.service",
    "systemd-timesyncd.service",
    "dnsmasq.service",
    "systemd-resolved.service",
    "systemd-udevd.service",
    "NetworkManager.service",
    "twinhull-engine-tcp.socket",
    "twinhull-engine-tcp.service",
    "twinhull-supervisor.service",
    "twinhull-provision.service",
];
const JOURNAL: &str = "/mnt/data/root-overlay/var/log/journal";

/// What of this host decides about the files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// A data partition is there.
    pub has_data: bool,
    /// The image's own certificates, PEM.
    pub ca_bundle: String,
    /// Where the engine's socket may be.
    pub engine_sockets: Vec<PathBuf>,
    /// Files of udev rules that an earlier run made.
    pub udev_rules: Vec<PathBuf>,
}

/// One subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// The key or keys that it follows, for people.
    pub name: &'static str,
    /// The files, and what they are to hold.
    pub files: Vec<File>,
    /// What to do, in this order, once they hold it, if any changed.
    pub then: Vec<Action>,
}

/// A file under the host's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Where.
    pub path: PathBuf,
    /// What; `None`: there is to be none.
    pub content: Option<String>,
}

/// What makes a running daemon see a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Give the running kernel this host name.
    SetHostName(String),
    /// Make this directory.
    MakeDir(&'static str),
    /// Let systemd read its units again.
    DaemonReload,
    /// Start this unit.
    Start(&'static str),
    /// Stop this unit, if it runs.
    Stop(&'static str),
    /// Restart this unit, if it runs.
    Restart(&'static str),
    /// Let this unit read its settings again, or restart it if it cannot; if it runs.
    Reload(&'static str),
    /// Run this program if that unit runs.
    Run {
        /// The unit.
        if_active: &'static str,
        /// The program and its arguments.
        command: &'static [&'static str],
    },
}

/// Every subject; one whose values make no sense is an error that names the key, and leaves its files as they are.
pub fn topics(config: &ConfigJson, facts: &Facts) -> Vec<(&'static str, Result<Topic>)> {
    let all: [(&'static str, Subject); 9] = [
        ("hostname", host_name),
        ("persistentLogging", persistent_logging),
        ("ntpServers", ntp_servers),
        ("dnsServers", dns_servers),
        ("os.sshKeys", ssh_keys),
        ("os.udevRules", udev_rules),
        ("os.network", network),
        ("developmentMode", development_mode),
        ("balenaRootCA", root_ca),
    ];
    let watched: [(&'static str, Subject); 2] = [("supervisor", supervisor), ("registration", registration)];
    let made = all.into_iter().chain(watched).map(|(name, subject)| {
        let topic = checked(config, name).and_then(|()| subject(config, facts));
        (name, topic.map(|(files, then)| Topic { name, files, then }))
    });
    made.collect()
}

type Made = Result<(Vec<File>, Vec<Action>)>;
type Subject = fn(&ConfigJson, &Facts) -> Made;

/// The values of a subject must be of their types before they go into a daemon's settings.
fn checked(config: &ConfigJson, subject: &str) -> Result<()> {
    let own = |key: &str| key == subject || key.strip_prefix(subject).is_some_and(|r| r.starts_with('.'));
    match keys::check(config).into_iter().find(|f| own(f.key)) {
        Some(finding) => Err(Error::failed(format!("{}: {}", finding.key, finding.problem))),
        None => Ok(()),
    }
}

fn file(path: impl AsRef<Path>, content: Option<String>) -> File {
    File { path: path.as_ref().to_owned(), content }
}

/// The host name that `config.json` asks for; balenaOS's default is the first digits of the uuid.
///
/// # Errors
/// `Failed`, naming the key, if the name is none.
pub fn host_name_of(config: &ConfigJson) -> Result<Option<String>> {
    checked(config, "hostname")?;
    match config.string("hostname")? {
        Some(name) => Ok(Some(name)),
        None => {
            let digits = config.uuid()?.and_then(|u| u.get(..7).map(str::to_owned));
            // Any text is taken for a uuid, but not every text is a name.
            Ok(digits.filter(|name| keys::Type::HostName.check(&Value::from(name.as_str())).is_ok()))
        }
    }
}

fn host_name(config: &ConfigJson, _: &Facts) -> Made {
    let Some(name) = host_name_of(config)? else { return Ok((Vec::new(), Vec::new())) };
    let then = vec![
        Action::SetHostName(name.clone()),
        Action::Restart("systemd-hostnamed.service"),
        Action::Restart("avahi-daemon.service"),
    ];
    Ok((vec![file(HOST_NAME, Some(format!("{name}\n")))], then))
}

/// The journal on the data partition, as balenaOS has it.
fn persistent_logging(config: &ConfigJson, facts: &Facts) -> Made {
    let wanted = config.flag("persistentLogging")?;
    let storage =
        wanted.map(|yes| format!("[Journal]\nStorage={}\n", if yes { "persistent" } else { "volatile" }));
    let mount = (wanted == Some(true) && facts.has_data).then(|| {
        format!(
            "[Unit]\nDescription=Journal on the data partition (persistentLogging of config.json)\n\
             DefaultDependencies=no\n\n[Mount]\nWhat={JOURNAL}\nWhere=/var/log/journal\nType=none\nOptions=bind\n"
        )
    });
    const JOURNALD: &str = "systemd-journald.service";
    const MOUNT: &str = "var-log-journal.mount";
    let then = if mount.is_some() {
        vec![
            Action::MakeDir(JOURNAL),
            Action::DaemonReload,
            Action::Start(MOUNT),
            Action::Restart(JOURNALD),
            Action::Run { if_active: JOURNALD, command: &["journalctl", "--flush"] },
        ]
    } else {
        // The journal must have let go of its files before the mount can go.
        vec![Action::Restart(JOURNALD), Action::Stop(MOUNT), Action::DaemonReload]
    };
    let files = vec![
        file("/run/systemd/journald.conf.d/50-twinhull.conf", storage),
        file(Path::new("/run/systemd/system").join(MOUNT), mount),
    ];
    Ok((files, then))
}

/// `"null"`: none; absent: the image's own.
fn servers(config: &ConfigJson, key: &str) -> Result<Option<Vec<String>>> {
    let text = config.string(key)?;
    Ok(text.map(|t| words(&t).filter(|w| *w != "null").map(str::to_owned).collect()))
}

fn ntp_servers(config: &ConfigJson, _: &Facts) -> Made {
    let servers = servers(config, "ntpServers")?;
    // The options are balenaOS's: a device asks its servers every four and a half hours.
    let chrony = servers.as_ref().filter(|s| !s.is_empty()).map(|servers| {
        servers.iter().map(|s| format!("pool {s} iburst minpoll 14 maxpoll 14 maxsources 1\n")).collect()
    });
    let timesyncd = servers.map(|servers| match servers.join(" ") {
        none if none.is_empty() => "[Time]\nNTP=\nFallbackNTP=\n".to_owned(),
        some => format!("[Time]\nNTP={some}\n"),
    });
    let reload: &[&str] = &["chronyc", "reload", "sources"];
    let then = vec![
        Action::Run { if_active: "chronyd.service", command: reload },
        Action::Run { if_active: "chrony.service", command: reload },
        Action::Restart("systemd-timesyncd.service"),
    ];
    let files = vec![
        file("/run/chrony/added_config.sources", chrony),
        file("/run/systemd/timesyncd.conf.d/50-twinhull.conf", timesyncd),
    ];
    Ok((files, then))
}

fn dns_servers(config: &ConfigJson, _: &Facts) -> Made {
    let servers = servers(config, "dnsServers")?;
    let default = || vec!["8.8.8.8".to_owned()];
    let dnsmasq = servers.clone().unwrap_or_else(default).iter().fold(String::new(), |mut text, s| {
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "server={s}");
        text
    });
    let resolved = servers.map(|servers| match servers.join(" ") {
        none if none.is_empty() => "[Resolve]\nDNS=\nFallbackDNS=\n".to_owned(),
        some => format!("[Resolve]\nDNS={some}\n"),
    });
    let files = vec![
        file("/run/dnsmasq.servers", Some(dnsmasq)),
        file("/run/systemd/resolved.conf.d/50-twinhull.conf", resolved),
    ];
    // Only a restart makes this dnsmasq read its servers-file for certain: a unit of it may lack a reload.
    Ok((files, vec![Action::Reload("dnsmasq.service"), Action::Restart("systemd-resolved.service")]))
}

/// sshd reads the file at each log-in; its `AuthorizedKeysFile` must name it.
fn ssh_keys(config: &ConfigJson, _: &Facts) -> Made {
    let list = config.value("os.sshKeys");
    let keys: Vec<&str> =
        list.as_ref().and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let text = keys.iter().map(|k| format!("{k}\n")).collect::<String>();
    let content = (!keys.is_empty()).then_some(text);
    Ok((vec![file("/run/twinhull/ssh/authorized_keys", content)], Vec::new()))
}

fn udev_rules(config: &ConfigJson, facts: &Facts) -> Made {
    let rules = config.value("os.udevRules");
    let mut files = Vec::new();
    for (name, rule) in rules.as_ref().and_then(Value::as_object).into_iter().flatten() {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(Error::failed(format!("os.udevRules: {name:?} is no file name for rules")));
        }
        let path = Path::new(UDEV_RULES).join(format!("{name}.rules"));
        let rule = rule.as_str().unwrap_or_default().trim_end_matches('\n');
        files.push(file(path, Some(format!("{UDEV_MARK}{rule}\n"))));
    }
    let gone = facts.udev_rules.iter().filter(|p| !files.iter().any(|f| f.path == **p));
    let gone: Vec<_> = gone.map(|p| file(p, None)).collect();
    files.extend(gone);
    const UDEVD: &str = "systemd-udevd.service";
    let then = vec![
        Action::Run { if_active: UDEVD, command: &["udevadm", "control", "--reload"] },
        Action::Run { if_active: UDEVD, command: &["udevadm", "trigger"] },
    ];
    Ok((files, then))
}

/// NetworkManager's connectivity check and WLAN scans.
fn network(config: &ConfigJson, _: &Facts) -> Made {
    const CHECK: &str = "os.network.connectivity";
    let uri = match config.string(&format!("{CHECK}.uri"))? {
        Some(uri) => Some(uri),
        None => config.api_endpoint()?.map(|api| format!("{api}/connectivity-check")),
    };
    let mut text = String::new();
    if let Some(uri) = uri {
        let interval = config.number(&format!("{CHECK}.interval"))?.unwrap_or(3600);
        let response = config.string(&format!("{CHECK}.response"))?.unwrap_or_default();
        if response.chars().any(char::is_control) {
            return Err(Error::failed(format!("{CHECK}.response: expected one line")));
        }
        text = format!("[connectivity]\nuri={uri}\ninterval={interval}\nresponse={response}\n");
    }
    if let Some(random) = config.flag("os.network.wifi.randomMacAddressScan")? {
        let random = if random { "yes" } else { "no" };
        text += &format!("[device-twinhull]\nwifi.scan-rand-mac-address={random}\n");
    }
    let content = (!text.is_empty()).then_some(text);
    let path = "/run/NetworkManager/conf.d/50-twinhull.conf";
    Ok((vec![file(path, content)], vec![Action::Reload("NetworkManager.service")]))
}

/// Root on every console, and the engine on TCP, through systemd's own proxy: the engine is never restarted for it.
fn development_mode(config: &ConfigJson, facts: &Facts) -> Made {
    let on = config.development_mode()?;
    let sockets: Vec<_> = facts.engine_sockets.iter().map(|s| s.display().to_string()).collect();
    let proxy = format!(
        "[Unit]\nDescription=The container engine on TCP port 2375 (developmentMode of config.json)\n\n[Service]\n\
         ExecStart=/bin/sh -c 'for s in {}; do [ -S $$s ] && exec /lib/systemd/systemd-socket-proxyd $$s; done; exit 1'\n",
        sockets.join(" ")
    );
    let socket = "[Unit]\nDescription=The container engine on TCP port 2375 (developmentMode of config.json)\n\n\
                  [Socket]\nListenStream=0.0.0.0:2375\n";
    let console = |baud: &str| {
        format!("[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear {baud}%I $TERM\n")
    };
    let system = Path::new("/run/systemd/system");
    let when = |text: String| on.then_some(text);
    let files = vec![
        file(system.join("twinhull-engine-tcp.service"), when(proxy)),
        file(system.join("twinhull-engine-tcp.socket"), when(socket.into())),
        file(system.join("getty@.service.d/50-twinhull-development.conf"), when(console(""))),
        file(
            system.join("serial-getty@.service.d/50-twinhull-development.conf"),
            when(console("--keep-baud 115200,57600,38400,9600 ")),
        ),
    ];
    const SOCKET: &str = "twinhull-engine-tcp.socket";
    let then = if on {
        vec![Action::DaemonReload, Action::Start(SOCKET)]
    } else {
        vec![Action::Stop(SOCKET), Action::Stop("twinhull-engine-tcp.service"), Action::DaemonReload]
    };
    Ok((files, then))
}

/// The fleet's own certificates: for the supervisor as they are, for the engine beside the image's.
fn root_ca(config: &ConfigJson, facts: &Facts) -> Made {
    let pem = config.root_ca_pem()?.map(|pem| format!("{}\n", pem.trim_end()));
    let bundle =
        pem.as_ref().map(|pem| format!("{}\n{pem}", facts.ca_bundle.trim_end()).trim_start().to_owned());
    // Go programs, as every engine is one, take their roots from there.
    let drop_in = pem.as_ref().map(|_| format!("[Service]\nEnvironment=SSL_CERT_FILE={CA_BUNDLE}\n"));
    let mut files = vec![file(FLEET_CA, pem), file(CA_BUNDLE, bundle)];
    for engine in ["balena", "docker", "podman"] {
        let path = format!("/run/systemd/system/{engine}.service.d/50-twinhull-ca.conf");
        files.push(file(path, drop_in.clone()));
    }
    // A running engine is left alone: a restart would stop every container. It reads them when it starts next.
    Ok((files, vec![Action::DaemonReload, Action::Restart("twinhull-supervisor.service")]))
}

/// Values that become environment of the supervisor container.
fn supervisor(config: &ConfigJson, _: &Facts) -> Made {
    let values = ["listenPort", "deltaEndpoint", "mixpanelToken"].map(|key| config.value(key));
    let files = vec![file("/run/twinhull/config/supervisor", Some(digest(&values)))];
    Ok((files, vec![Action::Restart("twinhull-supervisor.service")]))
}

/// A provisioning key that was put there asks for registration. Once it is gone, nothing more is asked.
fn registration(config: &ConfigJson, _: &Facts) -> Made {
    if config.api_key()?.is_none() || config.api_endpoint()?.is_none() {
        return Ok((Vec::new(), Vec::new()));
    }
    let values = ["apiEndpoint", "applicationId", "apiKey"].map(|key| config.value(key));
    let files = vec![file("/run/twinhull/config/registration", Some(digest(&values)))];
    Ok((files, vec![Action::Restart("twinhull-provision.service")]))
}

/// What tells two sets of values apart without telling the values.
fn digest(values: &[Option<Value>]) -> String {
    let text: String = values.iter().map(|v| format!("{}\n", v.as_ref().unwrap_or(&Value::Null))).collect();
    Sha256::digest(text.as_bytes()).iter().fold(String::new(), |hex, b| format!("{hex}{b:02x}")) + "\n"
}
