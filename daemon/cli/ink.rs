//! Words on a terminal: colours, symbols and columns.
//!
//! Invariant: state is told by a symbol and a word; colour only repeats it.
//! Invariant: what is laid out was made plain first: no escape sequence of a message acts.

use std::io::IsTerminal;

/// How to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ink {
    /// Whether colours are wanted.
    pub(crate) colour: bool,
    /// Columns of the terminal; `usize::MAX` when there is none.
    pub(crate) width: usize,
    /// Lines of the terminal, likewise.
    pub(crate) height: usize,
}

impl Ink {
    /// For what goes to standard output: colours and width of the terminal, NO_COLOR respected.
    pub(crate) fn of_stdout() -> Ink {
        let stdout = std::io::stdout();
        let colour = anstream::AutoStream::choice(&stdout) != anstream::ColorChoice::Never;
        if !stdout.is_terminal() {
            return Ink { colour, width: usize::MAX, height: usize::MAX };
        }
        let size = rustix::termios::tcgetwinsize(&stdout)
            .map(|size| (usize::from(size.ws_col), usize::from(size.ws_row)));
        // Some terminals (serial lines) do not know their size.
        let (width, height) =
            size.ok().filter(|(width, height)| *width > 0 && *height > 0).unwrap_or((80, 24));
        Ink { colour, width, height }
    }

    /// Text in a tone.
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Ok => "32",
            Tone::Wait => "33",
            Tone::Bad => "31",
            Tone::Soft => "2",
            Tone::Strong => "1",
            Tone::Plain => return text.to_owned(),
        };
        if self.colour && !text.is_empty() {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    /// A state with its symbol.
    pub(crate) fn state(self, word: &str) -> String {
        let cell = Cell::state(word);
        self.paint(cell.tone, &cell.text)
    }

    /// Lines that a text takes on the terminal, those broken at its edge included.
    pub(crate) fn lines(self, text: &str) -> usize {
        let width = |line: &str| {
            // Our own colours take no room.
            let parts = line.split('\u{1b}');
            parts
                .enumerate()
                .map(|(at, part)| if at == 0 { part } else { part.split_once('m').map_or("", |two| two.1) })
                .map(|part| part.chars().count())
                .sum::<usize>()
        };
        text.lines().map(|line| width(line).div_ceil(self.width).max(1)).sum()
    }

    /// Rows in columns, indented by two; the column `wraps` takes what room is left and may take several lines.
    pub(crate) fn table(self, rows: &[Vec<Cell>], wraps: usize) -> String {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.text.chars().count())
                .max()
                .unwrap_or(0)
        };
        let mut widths: Vec<usize> = (0..columns).map(width).collect();
        let fixed: usize = 2 * columns
            + widths.iter().enumerate().filter(|(at, _)| *at != wraps).map(|(_, w)| w).sum::<usize>();
        if let Some(wrapped) = widths.get_mut(wraps) {
            *wrapped = (*wrapped).min(self.width.saturating_sub(fixed).max(24));
        }
        let mut text = String::new();
        for row in rows {
            let lines = row.get(wraps).map(|cell| wrap(&cell.text, widths[wraps])).unwrap_or_default();
            for line in 0..lines.len().max(1) {
                let mut out = String::new();
                for (column, cell) in row.iter().enumerate() {
                    let part = match column == wraps {
                        true => lines.get(line).map(String::as_str).unwrap_or_default(),
                        false if line == 0 => cell.text.as_str(),
                        false => "",
                    };
                    let room = widths[column] - part.chars().count();
                    out.push_str("  ");
                    out.push_str(&self.paint(cell.tone, part));
                    out.push_str(&" ".repeat(room));
                }
                text.push_str(out.trim_end());
                text.push('\n');
            }
        }
        text
    }
}

/// How a text is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it should be.
    Ok,
    /// On its way.
    Wait,
    /// Someone has to do something.
    Bad,
    /// Less important.
    Soft,
    /// A name.
    Strong,
    /// Nothing special.
    Plain,
}

/// One field of a table.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A text, made plain.
    pub(crate) fn new(tone: Tone, text: &str) -> Cell {
        Cell { text: plain(text), tone }
    }

    /// A state with its symbol.
    pub(crate) fn state(word: &str) -> Cell {
        let tone = tone(word);
        let symbol = match tone {
            Tone::Ok => "✓",
            Tone::Wait => "◌",
            Tone::Bad => "✗",
            _ => "?",
        };
        let word = if word.is_empty() { "Unknown" } else { word };
        Cell { text: format!("{symbol} {}", plain(word)), tone }
    }
}

/// How a sync state or a health is meant.
pub(crate) fn tone(word: &str) -> Tone {
    match word {
        "Synced" | "Healthy" => Tone::Ok,
        "OutOfSync" | "Progressing" | "Pruning" | "Missing" | "Suspended" => Tone::Wait,
        "" | "Unknown" => Tone::Soft,
        _ => Tone::Bad,
    }
}

/// Text without anything a terminal acts on: control characters and direction marks are shown as a replacement, line
/// ends as spaces.
pub(crate) fn plain(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\t' | '\r' => ' ',
        '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            '\u{fffd}'
        }
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.trim().chars().map(shown).collect()
}

/// At spaces where there are any, within a word where it is too long.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        let line = lines.last_mut().expect("there is always a last line");
        let taken = line.chars().count();
        if taken > 0 && taken + 1 + word.len() <= width {
            line.push(' ');
            line.extend(word);
            continue;
        }
        if taken > 0 {
            lines.push(String::new());
        }
        while word.len() > width.max(1) {
            let rest = word.split_off(width.max(1));
            lines.last_mut().expect("there is always a last line").extend(word);
            lines.push(String::new());
            word = rest;
        }
        lines.last_mut().expect("there is always a last line").extend(word);
    }
    lines
}

/// "3 s", "5 min", "2 h", "4 d".
pub(crate) fn ago(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min", s / 60),
        s @ 3600..172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86400),
    }
}

/// A revision as people say it: seven digits of a hash, other names whole.
pub(crate) fn short(revision: &str) -> String {
    let hash = revision.len() >= 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain(if hash { &revision[..7] } else { revision })
}
