//! The story of a run, as people read it: when, who says so, what.

use std::time::Instant;

/// Prints one line per event, with the time since it was begun.
pub struct Timeline {
    begun: Instant,
    reached: Vec<&'static str>,
}

impl Timeline {
    /// Begins now.
    pub fn begin() -> Self {
        Self { begun: Instant::now(), reached: Vec::new() }
    }

    /// A line of background: `source` says `text`.
    pub fn note(&self, source: &str, text: &str) {
        println!("{}", line(self.begun.elapsed().as_secs(), source, text));
    }

    /// A line that belongs to the expected ones, under its name.
    pub fn reach(&mut self, name: &'static str, source: &str, text: &str) {
        self.reached.push(name);
        self.note(source, text);
    }

    /// A headline.
    pub fn chapter(&self, title: &str) {
        println!("\n{title}");
    }

    /// The names of `expected` that were not reached, in order.
    pub fn missing(&self, expected: &[&'static str]) -> Vec<&'static str> {
        expected.iter().copied().filter(|name| !self.reached.contains(name)).collect()
    }
}

fn line(seconds: u64, source: &str, text: &str) -> String {
    let text = text.trim().replace('\n', &format!("\n{:18}", ""));
    format!("{:3}:{:02}  {source:<9} {text}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_aligned_and_continued() {
        assert_eq!(line(83, "console", "a\nb"), "  1:23  console   a\n                  b");
    }

    #[test]
    fn what_was_not_reached_is_named() {
        let mut timeline = Timeline::begin();
        timeline.reach("one", "console", "first");
        assert_eq!(timeline.missing(&["one", "two"]), ["two"]);
    }
}
