//! The last words of a kernel, from what pstore kept of its log.

/// Lines of the log that are told, and how long they may be together.
const LINES: usize = 3;
const LIMIT_CHARS: usize = 300;

/// What the kernel said last: the message of its panic and the lines before it, or its last lines; on one line. `None` if the
/// record holds no text.
pub fn last_words(record: &str) -> Option<String> {
    let lines: Vec<&str> = record.lines().map(message).filter(|l| !l.is_empty()).collect();
    let panic = lines.iter().rposition(|l| l.starts_with("Kernel panic - "));
    let end = panic.unwrap_or(lines.len());
    let before = lines.get(end.saturating_sub(LINES)..end)?.join(" | ");
    let text = match panic.and_then(|at| lines.get(at)?.strip_prefix("Kernel panic - ")) {
        Some(why) if before.is_empty() => why.to_owned(),
        Some(why) => format!("{why}; before it: {before}"),
        None => before,
    };
    let short: String = text.chars().take(LIMIT_CHARS).collect();
    Some(short).filter(|text| !text.is_empty())
}

/// A line without `<6>[   12.345678] ` (`[   12.345678][    T1] ` with CONFIG_PRINTK_CALLER), and without pstore's own
/// heading (`Panic#1 Part1`).
fn message(line: &str) -> &str {
    let mut rest =
        line.split_once('>').filter(|(level, _)| level.starts_with('<')).map_or(line, |(_, rest)| rest);
    while let Some((_, after)) = rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
        rest = after.trim_start();
    }
    let heading = ["Panic#", "Oops#", "Emergency#", "Shutdown#"].iter().any(|h| rest.starts_with(h));
    if heading && rest.contains(" Part") { "" } else { rest.trim_end() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_panic_and_what_led_to_it() {
        // Linux 6.12 with ramoops, cut to the last lines.
        let record = "Panic#1 Part1\n<6>[    1.002231] Run /init as init process\n\
            <4>[    1.101002] init: mount /sysroot: Invalid argument\n\
            <0>[    1.204111] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\n\
            <4>[    1.204200] CPU: 0 UID: 0 PID: 1 Comm: init Not tainted 6.12.0 #1\n<4>[    1.204300] Call Trace:\n";
        assert_eq!(
            last_words(record).unwrap(),
            "not syncing: Attempted to kill init! exitcode=0x00000100; before it: Run /init as init process | init: mount \
             /sysroot: Invalid argument"
        );
    }

    #[test]
    fn without_a_panic_the_last_lines_and_without_text_nothing() {
        assert_eq!(last_words("[   1.0][    T1] a\n[   2.0] b\nc\nd\n").unwrap(), "b | c | d");
        assert_eq!(last_words("Kernel panic - not syncing: x").unwrap(), "not syncing: x");
        assert_eq!(last_words(""), None);
        assert_eq!(last_words("Panic#1 Part1\n"), None);
        assert_eq!(last_words(&"ä".repeat(1000)).unwrap().chars().count(), LIMIT_CHARS);
    }
}
