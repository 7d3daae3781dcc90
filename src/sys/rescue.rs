//! A shell on the console for a boot that failed, if somebody is there and asks for it in time.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{Doing, Error, Result};

/// Opens the console that the kernel gave us.
///
/// # Errors
/// `Failed` if there is none.
pub fn console() -> Result<File> {
    super::file::open_read_write(Path::new("/dev/console"))
}

/// Asks on `console` whether a shell is wanted, waits for `patience` for a key, and runs `shell` there until it ends; in
/// `root`, if that is given. Says whether it ran.
///
/// # Errors
/// `Failed` if the console cannot be used, or the shell not be started.
pub fn offer_shell(console: &File, shell: &Path, root: Option<&Path>, patience: Duration) -> Result<bool> {
    let doing = || "rescue shell";
    let say = |text: String| -> Result<()> { (&*console).write_all(text.as_bytes()).doing(doing) };
    say(format!("\r\nPress Enter within {} s for a rescue shell.\r\n", patience.as_secs()))?;
    let mut fds = [PollFd::new(console, PollFlags::IN)];
    let time = Timespec { tv_sec: i64::try_from(patience.as_secs()).unwrap_or(0), tv_nsec: 0 };
    if poll(&mut fds, Some(&time)).doing(doing)? == 0 {
        return Ok(false);
    }
    let mut typed = [0; 64];
    // What was typed is the answer, not the shell's first line. Nothing at all is a console that went away.
    if (&*console).read(&mut typed).doing(doing)? == 0 {
        return Ok(false);
    }
    say("This machine restarts when the shell ends.\r\n".into())?;
    run(console, shell, root).doing(doing)?;
    Ok(true)
}

fn run(console: &File, shell: &Path, root: Option<&Path>) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let mut command = Command::new(shell);
    let stream = || Ok::<_, Error>(Stdio::from(console.try_clone()?));
    command.stdin(stream()?).stdout(stream()?).stderr(stream()?);
    let root = root
        .map(|root| std::ffi::CString::new(root.as_os_str().as_bytes()))
        .transpose()
        .map_err(|_| Error::failed("NUL in the root"))?;
    let enter = move || {
        rustix::process::setsid()?;
        // A serial line that is already somebody's terminal still works, but for job control.
        let _ = rustix::process::ioctl_tiocsctty(std::io::stdin());
        if let Some(root) = &root {
            rustix::process::chroot(root.as_c_str())?;
            rustix::process::chdir(c"/")?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, on a string that was made before.
    unsafe { command.pre_exec(enter) };
    command.spawn()?.wait()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (File, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (File::from(OwnedFd::from(ours)), theirs)
    }

    #[test]
    fn nobody_there_is_no_shell() {
        let (console, mut person) = pair();
        assert!(!offer_shell(&console, Path::new("/bin/sh"), None, Duration::ZERO).unwrap());
        drop(console);
        let mut seen = String::new();
        person.read_to_string(&mut seen).unwrap();
        assert!(seen.contains("Press Enter within 0 s"), "{seen}");
        // A console that is closed is nobody.
        let (console, person) = pair();
        drop(person.try_clone().unwrap());
        person.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!offer_shell(&console, Path::new("/bin/sh"), None, Duration::from_secs(60)).unwrap());
    }

    #[test]
    fn a_key_gives_a_shell_and_its_end_is_the_end() {
        let (console, mut person) = pair();
        person.write_all(b"\n").unwrap();
        let asked = std::thread::spawn(move || {
            offer_shell(&console, Path::new("/bin/sh"), None, Duration::from_secs(60))
        });
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains("restarts when the shell ends") {
            let mut byte = [0];
            person.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
        person.write_all(b"echo $((6*7))-from-the-shell; exit\n").unwrap();
        assert!(asked.join().unwrap().unwrap());
        let mut rest = String::new();
        person.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("42-from-the-shell"), "{rest}");
    }
}
