//! What `demo` and `watch` print: coloured and redrawn on a terminal, plain lines elsewhere.

use std::cell::Cell;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// A colour or weight of the terminal.
#[derive(Clone, Copy)]
pub enum Ink {
    Bold,
    Dim,
    Good,
    Bad,
    Late,
}

/// Standard output.
pub struct Screen {
    terminal: bool,
    colour: bool,
    drawn: Cell<usize>,
}

impl Screen {
    pub fn new() -> Screen {
        let terminal = io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Screen { terminal, colour, drawn: Cell::new(0) }
    }

    /// Whether [`Screen::redraw`] can draw over what it drew.
    pub fn is_live(&self) -> bool {
        self.terminal
    }

    pub fn ink(&self, ink: Ink, text: &str) -> String {
        let code = match ink {
            Ink::Bold => "1",
            Ink::Dim => "2",
            Ink::Good => "1;32",
            Ink::Bad => "1;31",
            Ink::Late => "33",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Output that nobody reads any more is not an error.
    pub fn line(&self, text: &str) {
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{text}");
        let _ = out.flush();
    }

    pub fn title(&self, title: &str, text: &str) {
        self.line(&format!("\n{}  {}", self.ink(Ink::Bold, title), self.ink(Ink::Dim, text)));
    }

    /// One moment of the story.
    pub fn moment(&self, at: Duration, who: &str, what: &str) {
        let at = format!("{:>7} ms", at.as_millis());
        self.line(&format!("{}   {}  {what}", self.ink(Ink::Dim, &at), self.ink(Ink::Bold, &format!("{who:<11}"))));
    }

    /// Draws lines over those of the last call.
    pub fn redraw(&self, lines: &[String]) {
        let mut text = String::new();
        if self.drawn.get() > 0 {
            let _ = write!(text, "\x1b[{}A\x1b[J", self.drawn.get());
        }
        self.drawn.set(lines.len());
        text.push_str(&lines.join("\n"));
        self.line(&text);
    }

    /// What was drawn stays.
    pub fn keep(&self) {
        self.drawn.set(0);
    }
}

/// `12,345`
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bars as high as the numbers, the greatest full.
pub fn sparkline(numbers: impl Iterator<Item = u64> + Clone) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let greatest = numbers.clone().max().unwrap_or(0).max(1);
    numbers.map(|number| BARS[(number * 7 / greatest) as usize]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(sparkline([0, 50, 100].into_iter()), "▁▄█");
    }
}
