//! A device as the lab sees it: its console, and commands run on it by its agent.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Outcome;
use crate::hardware::Setup;
use crate::images::Lab;
use crate::machine::{Disk, Machine};

/// What the agent says when it is there.
const AGENT_READY: &str = "lab-agent ready";
/// What an automatically logged in root sees.
const PROMPT: &str = "root@";
/// Time that a boot may take on a busy machine.
pub const BOOT: Duration = Duration::from_secs(600);
/// Time that QEMU has to start.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);
/// Between two looks at the status: each costs an emulated processor a second or more, which the boot that is waited for lacks.
const BETWEEN_STATUS: Duration = Duration::from_secs(5);

/// A device that is switched on.
pub struct Device {
    /// The machine below.
    pub machine: Machine,
    /// How far the console has been read, in bytes.
    read: usize,
    agent: Agent,
}

/// What a command on the device ended with.
#[derive(Debug)]
pub struct Answer {
    /// Its exit code.
    pub code: i32,
    /// What it printed, standard error included.
    pub output: String,
}

impl Device {
    /// Switches the lab's board on.
    pub fn switch_on(lab: &Lab, disk: &Disk) -> Outcome<Self> {
        Self::switch_on_with(lab, disk, &Setup::default())
    }

    /// As [`Device::switch_on`], with something about the board that is different.
    pub fn switch_on_with(lab: &Lab, disk: &Disk, setup: &Setup) -> Outcome<Self> {
        let machine = Machine::start(lab.board, disk, &lab.work, setup)?;
        let agent = Agent::connect(&machine.agent, PATIENCE)?;
        Ok(Self { machine, read: 0, agent })
    }

    /// Takes the power away, and gives it back. What the console has said is read.
    pub fn power_cut(&mut self) -> Outcome {
        self.machine.power_off()?;
        self.console_skip()?;
        self.machine.power_on()?;
        self.agent = Agent::connect(&self.machine.agent, PATIENCE)?;
        Ok(())
    }

    /// Waits until the console shows a line with `text`, from where the last wait ended; gives the rest of that
    /// line after `text`.
    pub fn console(&mut self, text: &str, patience: Duration) -> Outcome<String> {
        let deadline = Instant::now() + patience;
        loop {
            let said = self.console_text()?;
            let unread = said.get(self.read..).unwrap_or("");
            if let Some((at, rest)) = find_line(unread, text) {
                self.read += at;
                return Ok(rest);
            }
            self.check_waiting(deadline, &format!("the console to show {text:?}"))?;
        }
    }

    /// Waits until the shell on the serial console asks for a command. Before that, whoever writes to the console is
    /// cut off: the login takes the terminal away from all others (vhangup(2)).
    pub fn console_shell(&mut self) -> Outcome {
        let deadline = Instant::now() + BOOT;
        self.console("(automatic login)", BOOT)?;
        // The prompt has no end of line.
        while !self.console_unread()?.contains(PROMPT) {
            self.check_waiting(deadline, "the shell on the console")?;
        }
        Ok(())
    }

    /// Takes everything that the console has said as read.
    pub fn console_skip(&mut self) -> Outcome {
        self.read = self.console_text()?.len();
        Ok(())
    }

    /// What the console has said since the last wait, without taking it as read.
    pub fn console_unread(&self) -> Outcome<String> {
        Ok(self.console_text()?.get(self.read..).unwrap_or("").to_owned())
    }

    fn console_text(&self) -> Outcome<String> {
        match std::fs::read(&self.machine.console) {
            Ok(bytes) => Ok(readable(&bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(e) => Err(format!("{}: {e}", self.machine.console.display())),
        }
    }

    /// Forgets what the agents of earlier boots have said.
    pub fn agent_skip(&mut self) {
        while self.agent.line(Duration::ZERO).is_some() {}
    }

    /// Waits until the agent of a booted system is there.
    pub fn booted(&mut self) -> Outcome {
        let deadline = Instant::now() + BOOT;
        loop {
            match self.agent.line(POLL) {
                Some(line) if line.ends_with(AGENT_READY) => return Ok(()),
                Some(_) => {}
                None => self.check_waiting(deadline, "the system to start")?,
            }
        }
    }

    /// Runs a command with bash for at most `patience`.
    pub fn run(&mut self, command: &str, patience: Duration) -> Outcome<Answer> {
        let token = self.agent.ask(command, patience)?;
        // The device's clock and ours differ a little under load.
        let deadline = Instant::now() + patience + Duration::from_secs(60);
        loop {
            match self.agent.line(POLL) {
                Some(line) if line.ends_with(AGENT_READY) => {
                    return Err(format!("the device restarted during `{command}`"));
                }
                Some(line) => {
                    if let Some(answer) = parse_answer(&line, &token) {
                        return Ok(answer);
                    }
                }
                None => self.check_waiting(deadline, &format!("`{command}` to end"))?,
            }
        }
    }

    /// Starts a command and does not wait for it: a reboot, or what will be cut.
    pub fn start(&mut self, command: &str) -> Outcome {
        self.agent.ask(command, Duration::from_secs(3600)).map(drop)
    }

    /// Runs a command that must succeed; gives what it printed.
    pub fn ask(&mut self, command: &str, patience: Duration) -> Outcome<String> {
        let answer = self.run(command, patience)?;
        if answer.code == 0 {
            return Ok(answer.output);
        }
        Err(format!("`{command}` on the device: exit {}: {}", answer.code, answer.output.trim_end()))
    }

    /// `twinhull status --json`, whatever its exit code.
    pub fn status(&mut self) -> Outcome<Value> {
        let answer = self.run("twinhull status --json", Duration::from_secs(300))?;
        serde_json::from_str(answer.output.lines().last().unwrap_or(""))
            .map_err(|e| format!("twinhull status --json: {e}: {}", answer.output))
    }

    /// Asks for the status until it fits.
    pub fn status_until(
        &mut self,
        what: &str,
        patience: Duration,
        fits: impl Fn(&Value) -> bool,
    ) -> Outcome<Value> {
        let deadline = Instant::now() + patience;
        loop {
            let status = self.status()?;
            if fits(&status) {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(format!("waited for {what}; the status is {status}"));
            }
            std::thread::sleep(BETWEEN_STATUS);
        }
    }

    /// Waits until systemd has started all that it is to start. The error names the units that failed, with their last words.
    pub fn no_unit_failed(&mut self) -> Outcome {
        let asked = "systemctl is-system-running --wait; systemctl list-units --failed --plain --no-legend | \
                     while read -r unit rest; do echo \"$unit $rest\"; journalctl -b -u $unit -o cat -n 5; done";
        let said = self.run(asked, Duration::from_secs(300))?.output;
        if said.trim() == "running" { Ok(()) } else { Err(format!("systemd is not content: {said}")) }
    }

    /// The console's last lines, for the report of a failure.
    pub fn last_lines(&self, count: usize) -> String {
        let said = self.console_text().unwrap_or_else(|e| e);
        let lines: Vec<&str> = said.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
        lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
    }

    fn check_waiting(&mut self, deadline: Instant, what: &str) -> Outcome {
        if self.machine.restart()? {
            self.agent = Agent::connect(&self.machine.agent, PATIENCE)?;
        }
        if !self.machine.runs() {
            return Err(format!("QEMU ended while waiting for {what}"));
        }
        if Instant::now() > deadline {
            return Err(format!("waited in vain for {what}"));
        }
        std::thread::sleep(POLL);
        Ok(())
    }
}

/// The line that holds `text`: where the next one begins, and what follows `text` in it. A line counts when it is
/// complete.
fn find_line(said: &str, text: &str) -> Option<(usize, String)> {
    let at = said.find(text)?;
    let rest = said.get(at + text.len()..)?;
    let end = rest.find('\n')?;
    Some((at + text.len() + end + 1, rest.get(..end)?.trim_end().to_owned()))
}

/// The console's bytes without the control sequences of terminals (ECMA-48) and carriage returns.
fn readable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let said = String::from_utf8_lossy(bytes);
    let mut chars = said.chars();
    while let Some(c) = chars.next() {
        match c {
            '\r' => {}
            '\u{1b}' => {
                if chars.next() == Some('[') {
                    chars.by_ref().find(|c| matches!(c, '@'..='~'));
                }
            }
            c => text.push(c),
        }
    }
    text
}

/// The lines of the agent's console; `qemu/image/device/lab-agent` has the protocol.
struct Agent {
    lines: Receiver<String>,
    stream: UnixStream,
    asked: u64,
}

impl Agent {
    fn connect(socket: &PathBuf, patience: Duration) -> Outcome<Self> {
        let deadline = Instant::now() + patience;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(e) if Instant::now() > deadline => return Err(format!("QEMU does not answer: {e}")),
                Err(_) => std::thread::sleep(POLL),
            }
        };
        let reader = stream.try_clone().map_err(|e| format!("agent: {e}"))?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { lines, stream, asked: 0 })
    }

    fn ask(&mut self, command: &str, patience: Duration) -> Outcome<String> {
        self.asked += 1;
        let token = format!("request-{}", self.asked);
        let line = format!("{token} {} {}\n", base64(command.as_bytes()), patience.as_secs());
        self.stream.write_all(line.as_bytes()).map_err(|e| format!("ask the device: {e}"))?;
        Ok(token)
    }

    /// The next line, if one comes within `patience`. What it means that QEMU has ended, the machine knows.
    fn line(&self, patience: Duration) -> Option<String> {
        self.lines.recv_timeout(patience).ok()
    }
}

fn parse_answer(line: &str, token: &str) -> Option<Answer> {
    let mut fields = line.split(' ');
    if fields.next() != Some(token) {
        return None;
    }
    let code = fields.next()?.parse().ok()?;
    let output = unbase64(fields.next().unwrap_or(""))?;
    Some(Answer { code, output: String::from_utf8_lossy(&output).into_owned() })
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

// Ten lines by hand: the lab has no other use for a crate, and bash's base64 is on the other end.
fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0u32, |w, i| w << 8 | u32::from(chunk.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

fn unbase64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for chunk in text.trim_end_matches('=').as_bytes().chunks(4) {
        let mut word = 0u32;
        for i in 0..4 {
            let digit = chunk.get(i).map_or(Some(0), |c| ALPHABET.iter().position(|a| a == c))?;
            word = word << 6 | u32::try_from(digit).ok()?;
        }
        bytes.extend(word.to_be_bytes().get(1..chunk.len())?);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_belong_to_their_token() {
        let answer = parse_answer("t1 3 aGFsbG8K", "t1").unwrap();
        assert_eq!((answer.code, answer.output.as_str()), (3, "hallo\n"));
        assert!(parse_answer("t2 3 aGFsbG8K", "t1").is_none());
        assert_eq!(parse_answer("t1 0 ", "t1").unwrap().output, "");
    }

    #[test]
    fn base64_both_ways() {
        // RFC 4648, section 10.
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
            assert_eq!(unbase64(coded).unwrap(), plain.as_bytes());
        }
        assert!(unbase64("Zm9*").is_none());
    }

    #[test]
    fn consoles_are_read_line_by_line() {
        let said = readable(b"\x1b[0m\x1b[37mone\r\ntwo: part");
        assert_eq!(said, "one\ntwo: part");
        assert_eq!(find_line(&said, "on"), Some((4, "e".into())));
        assert_eq!(find_line(&said, "two"), None, "the line is not complete yet");
    }
}
