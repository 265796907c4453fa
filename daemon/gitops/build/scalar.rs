//! What a plain YAML scalar means to Kubernetes: YAML 1.1 as `sigs.k8s.io/yaml` (go-yaml v2) reads it.
//!
//! Invariant: `yes`, `on` and `y` are booleans, `0644` is 420, a date stays a string; checked against `kubectl`.

use serde_json::{Number, Value};

/// The value of a plain (unquoted, untagged) scalar. `Err` names what JSON cannot hold.
pub(crate) fn resolve(text: &str) -> Result<Value, &'static str> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Ok(Value::Bool(true));
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Ok(Value::Bool(false));
        }
        ".nan" | ".NaN" | ".NAN" => return Err("a value that is not a number cannot be written as JSON"),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf" | "-.INF" => {
            return Err("an infinite number cannot be written as JSON");
        }
        _ => {}
    }
    let number = match text.as_bytes().first() {
        Some(b'0'..=b'9' | b'+' | b'-' | b'.') => number(text),
        _ => None,
    };
    Ok(number.map_or_else(|| Value::String(text.to_owned()), Value::Number))
}

/// The same as kustomize reads it: words that YAML 1.1 takes for booleans are text, a date is a moment.
pub(crate) fn resolve_for_kustomize(text: &str) -> Result<Value, &'static str> {
    match resolve(text)? {
        Value::Bool(_) if !text.eq_ignore_ascii_case("true") && !text.eq_ignore_ascii_case("false") => {
            Ok(Value::String(text.to_owned()))
        }
        Value::String(word) if is_date(&word) => Ok(Value::String(format!("{word}T00:00:00Z"))),
        value => Ok(value),
    }
}

fn is_date(text: &str) -> bool {
    let form = text.bytes().enumerate().all(|(at, byte)| match at {
        4 | 7 => byte == b'-',
        _ => byte.is_ascii_digit(),
    });
    text.len() == 10 && form && text.parse::<jiff::civil::Date>().is_ok()
}

/// A plain scalar as an integer or a float, or nothing.
fn number(text: &str) -> Option<Number> {
    let plain = if text.starts_with('.') { text.to_owned() } else { text.replace('_', "") };
    integer(&plain).or_else(|| float(&plain))
}

/// Go's `ParseInt(s, 0, 64)`, then `ParseUint`: `0x`, `0o`, `0b` and a leading `0` tell the base.
fn integer(plain: &str) -> Option<Number> {
    let (negative, digits) = match plain.as_bytes().first()? {
        b'-' => (true, &plain[1..]),
        b'+' => (false, &plain[1..]),
        _ => (false, plain),
    };
    let (base, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(base)) {
        return None;
    }
    let size = u64::from_str_radix(digits, base).ok()?;
    if !negative {
        return Some(Number::from(size));
    }
    0i64.checked_sub_unsigned(size).map(Number::from)
}

/// go-yaml's float form; a whole number is written without a fraction, as Go's JSON does.
fn float(plain: &str) -> Option<Number> {
    if !is_float(plain) {
        return None;
    }
    // Go refuses what overflows, Rust makes it infinite; both leave a string.
    let value: f64 = plain.parse().ok().filter(|value: &f64| value.is_finite())?;
    let whole = value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0;
    // The cast is exact: the value is whole and within 2^53.
    if whole { Some(Number::from(value as i64)) } else { Number::from_f64(value) }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_float(plain: &str) -> bool {
    let body = plain.strip_prefix(['-', '+']).unwrap_or(plain);
    let (mantissa, exponent) = match body.find(['e', 'E']) {
        Some(at) => (&body[..at], Some(&body[at + 1..])),
        None => (body, None),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let mantissa = match mantissa.split_once('.') {
        Some(("", fraction)) => digits(fraction),
        Some((whole, fraction)) => digits(whole) && (fraction.is_empty() || digits(fraction)),
        None => digits(mantissa),
    };
    mantissa && exponent.is_none_or(|exponent| digits(exponent.strip_prefix(['-', '+']).unwrap_or(exponent)))
}

/// A mapping key as the string that JSON wants, the way `sigs.k8s.io/yaml` writes it (`true: x` is `"true"`).
pub(crate) fn key(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn plain_scalars_mean_what_kubectl_makes_of_them() {
        // Left: as written; right: what `kubectl patch --local -o json` (1.32) prints for it.
        let table = [
            ("y", json!(true)),
            ("yes", json!(true)),
            ("on", json!(true)),
            ("n", json!(false)),
            ("Off", json!(false)),
            ("0644", json!(420)),
            ("0o17", json!(15)),
            ("1_000", json!(1000)),
            ("08", json!(8)),
            ("1e3", json!(1000)),
            ("0x1F", json!(31)),
            ("0b11", json!(3)),
            ("-0", json!(0)),
            ("+5", json!(5)),
            (".5", json!(0.5)),
            ("-.5", json!(-0.5)),
            ("1.0", json!(1)),
            ("1.", json!(1)),
            ("0.1", json!(0.1)),
            ("12345678901234567890123", json!(1.2345678901234568e22)),
            ("18446744073709551615", json!(18446744073709551615u64)),
            ("-9223372036854775808", json!(-9223372036854775808i64)),
            ("1e1000", json!("1e1000")),
            ("123e", json!("123e")),
            ("2020-01-01", json!("2020-01-01")),
            ("1:30", json!("1:30")),
            ("1.2.3", json!("1.2.3")),
            ("=", json!("=")),
            ("~", Value::Null),
            ("nginx:1", json!("nginx:1")),
        ];
        for (text, want) in table {
            assert_eq!(resolve(text), Ok(want), "{text}");
        }
        assert!(resolve(".inf").is_err());
    }
}
