//! Damaged input: texts made from good ones by small accidents, the same ones in every run.
//!
//! Rooms that read what strangers send include this file in their tests. Each text is read once; what the reader does
//! with it is the room's claim, that it does it in a bounded time is this file's.

use std::time::{Duration, Instant};

/// No text of a few kilobytes may keep a reader busy for so long, on a busy machine and without optimisation.
const MOST: Duration = Duration::from_secs(5);
/// Longer texts are cut: size is not what is tried here.
const LONGEST: usize = 16 * 1024;
/// What parsers trip over, whatever they read.
const WORDS: [&str; 30] = [
    "",
    "\0",
    "\n",
    "\r\n",
    "\t",
    " ",
    "\"",
    "'",
    "\\",
    "\\u0000",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    ":",
    ",",
    "-",
    "%",
    "$",
    "&a",
    "*a",
    "<<",
    "null",
    "-1",
    "9223372036854775808",
    "1e999",
    "ü",
    "\u{202e}",
];

/// Numbers that look random and are the same in every run (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) as usize % sides.max(1)
    }
}

/// Gives so many damaged copies of the good texts to a reader, one after the other. `words` are the language's own.
pub(crate) fn each(good: &[&[u8]], words: &[&str], count: usize, mut read: impl FnMut(&[u8])) {
    for seed in 0..count {
        let text = damaged(good, words, &mut Dice(seed as u64));
        let begin = Instant::now();
        read(&text);
        let took = begin.elapsed();
        assert!(took < MOST, "took {took:?} to read {:?}", String::from_utf8_lossy(&text));
    }
}

/// The same for readers of text.
pub(crate) fn each_text(good: &[&str], words: &[&str], count: usize, mut read: impl FnMut(&str)) {
    let good: Vec<&[u8]> = good.iter().map(|text| text.as_bytes()).collect();
    each(&good, words, count, |text| read(&String::from_utf8_lossy(text)));
}

fn damaged(good: &[&[u8]], words: &[&str], dice: &mut Dice) -> Vec<u8> {
    let mut text = good[dice.below(good.len())].to_vec();
    for _ in 0..1 + dice.below(4) {
        let (from, to) = span(&text, dice);
        match dice.below(8) {
            0 => drop(text.drain(from..to)),
            1 => text.truncate(from),
            2 => {
                if let Some(byte) = text.get_mut(from) {
                    *byte ^= 1 << dice.below(8);
                }
            }
            3 => {
                let part = text[from..to].to_vec();
                text.splice(from..from, part);
            }
            4 => {
                let other = good[dice.below(good.len())];
                let (a, b) = span(other, dice);
                text.splice(from..to, other[a..b].iter().copied());
            }
            5 => {
                // Bombs: one piece a great many times.
                let piece = word(words, dice).repeat([2, 20, 300, 3000][dice.below(4)]);
                text.splice(from..from, piece.bytes());
            }
            _ => {
                let end = if dice.below(2) == 0 { from } else { to };
                text.splice(from..end, word(words, dice).bytes());
            }
        }
        text.truncate(LONGEST);
    }
    text
}

fn word<'a>(words: &[&'a str], dice: &mut Dice) -> &'a str {
    let at = dice.below(words.len() + WORDS.len());
    words.get(at).copied().unwrap_or_else(|| WORDS[at - words.len()])
}

/// A part of a text, mostly a short one.
fn span(text: &[u8], dice: &mut Dice) -> (usize, usize) {
    let from = dice.below(text.len() + 1);
    let longest = text.len() - from;
    let length = if dice.below(4) == 0 { dice.below(longest + 1) } else { dice.below(longest.min(12) + 1) };
    (from, from + length)
}
