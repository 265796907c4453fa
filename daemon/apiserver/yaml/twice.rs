//! Keys that a YAML body gives twice: what is decoded from it cannot tell.

use std::collections::BTreeSet;

use saphyr_parser::{Event, Parser};

/// A list or map that is still being read.
enum Open {
    List,
    Map {
        seen: BTreeSet<String>,
        /// The key whose value comes next; its own text where it is a scalar.
        key: Option<Option<String>>,
    },
}

/// In the words of Kubernetes' reader, `line 10: key "foo" already set in map`, with the line where the second value
/// begins. Empty when the text cannot be read: whoever decodes it says why.
pub(crate) fn given_twice(text: &str) -> Vec<String> {
    let (mut told, mut open) = (Vec::new(), Vec::<Open>::new());
    let mut parser = Parser::new_from_str(text);
    while let Some(step) = parser.next_event() {
        let Ok((event, span)) = step else { return Vec::new() };
        let scalar = match &event {
            Event::Scalar(text, ..) => Some(text.to_string()),
            _ => None,
        };
        match event {
            // What follows the first document is not read.
            Event::DocumentEnd => break,
            Event::SequenceEnd | Event::MappingEnd => {
                open.pop();
            }
            Event::Scalar(..) | Event::Alias(_) | Event::SequenceStart(..) | Event::MappingStart(..) => {
                if let Some(Open::Map { seen, key }) = open.last_mut() {
                    match key.take() {
                        None => *key = Some(scalar),
                        Some(Some(name)) if seen.contains(&name) => {
                            told.push(format!("line {}: key {name:?} already set in map", span.start.line()));
                        }
                        Some(name) => seen.extend(name),
                    }
                }
                match event {
                    Event::SequenceStart(..) => open.push(Open::List),
                    Event::MappingStart(..) => open.push(Open::Map { seen: BTreeSet::new(), key: None }),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::given_twice;

    #[test]
    fn a_key_given_twice_is_told_with_the_line_of_its_second_value() {
        let text = "a: 1\nb:\n  c: 1\n  d: [{e: 1, e: 2}]\n  c:\n    x: 1\na: 2\n";
        assert_eq!(
            given_twice(text),
            [
                "line 4: key \"e\" already set in map",
                "line 6: key \"c\" already set in map",
                "line 7: key \"a\" already set in map"
            ]
        );
        // The same key in two maps is not the same key.
        assert!(given_twice("a: {x: 1}\nb: {x: 1}\nc: [{x: 1}, {x: 1}]\n---\na: 1\na: 2\n").is_empty());
        assert!(given_twice("a: [").is_empty());
    }
}
