//! Reads YAML bodies into JSON within bounds.
//!
//! Invariant: what aliases unfold to counts in full, so a small body never becomes a large object.

mod twice;

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

pub(crate) use twice::given_twice;

/// What a body may unfold to: as much as a body may hold in the first place, and the values in it.
const MOST_BYTES: usize = 6 * 1024 * 1024;
/// What a value takes beside its text.
const VALUE_BYTES: usize = 8;

/// Brackets that may stand open at once: the parser below looks at all of them for every word it reads.
const MOST_OPEN: usize = 1000;

/// The one document of a body.
pub(crate) fn read(body: &[u8]) -> Result<Value, serde_yaml::Error> {
    if open_at_once(body) > MOST_OPEN {
        return Err(Error::custom(format!("more than {MOST_OPEN} brackets are open at once")));
    }
    let left = Cell::new(MOST_BYTES);
    Bounded { left: &left }.deserialize(serde_yaml::Deserializer::from_slice(body))
}

/// Brackets of texts count as well: it is a bound, not a reading.
fn open_at_once(body: &[u8]) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    for byte in body {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// A value of which only so much may be left to come.
#[derive(Clone, Copy)]
struct Bounded<'a> {
    left: &'a Cell<usize>,
}

impl Bounded<'_> {
    fn take<E: Error>(self, bytes: usize) -> Result<(), E> {
        let left = self.left.get().checked_sub(bytes + VALUE_BYTES);
        self.left.set(left.ok_or_else(|| E::custom("aliases unfold to more than a body may hold"))?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any valid JSON value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.take(0).map(|()| value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.take(0).map(|()| value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.take(0).map(|()| value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.take(0).map(|()| value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.take(value.len()).map(|()| value.into())
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.take(0).map(|()| Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        self.deserialize(from)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.take(0)?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.take(0)?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            self.take(key.len())?;
            map.insert(key, entries.next_value_seed(self)?);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_is_read_as_before() {
        let text = "a: &a [1, -2, 0.5, true, ~, 'x']\nb: {c: *a, \"d\": |\n  two\n  lines\n }\n";
        let text = text.replace(", \"d\": |\n  two\n  lines\n }", "}");
        let value = read(text.as_bytes()).unwrap();
        assert_eq!(
            value,
            json!({"a": [1, -2, 0.5, true, null, "x"], "b": {"c": [1, -2, 0.5, true, null, "x"]}})
        );
        assert_eq!(value, serde_yaml::from_str::<Value>(&text).unwrap());
    }

    #[test]
    fn a_small_body_that_unfolds_to_a_large_object_is_refused() {
        let long = format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(1_000_000), "*a, ".repeat(100_000));
        let nested = (1..12).fold("a0: &a0 [x, x, x, x, x, x, x, x]\n".to_owned(), |text, level| {
            let below = format!("*a{}, ", level - 1).repeat(8);
            format!("{text}a{level}: &a{level} [{below}]\n")
        });
        for bomb in [long, nested, "- ".repeat(20_000), "[".repeat(100_000)] {
            assert!(read(bomb.as_bytes()).is_err(), "{}", &bomb[..40]);
        }
    }
}
