//! Reads, compares, adds and writes resource quantities such as `100m`, `1.5Gi` and `1e3`.
//!
//! Invariant: a quantity is an exact whole number of billionths; what is finer is rounded away from zero on reading.
//! Invariant: the canonical form of a canonical form is itself.

use std::cmp::Ordering;
use std::fmt;

use serde_json::Value;

/// Billionths in one.
const NANO: i128 = 1_000_000_000;
/// The largest quantity with a binary suffix, as Kubernetes caps it: 2^63 - 1.
const BINARY_MAX: i128 = i64::MAX as i128 * NANO;
/// Binary suffixes with their power of two.
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
/// Decimal suffixes with their power of ten.
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

/// The family of suffixes a quantity was written with; its canonical form keeps the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `Ki`, `Mi`, `Gi`, … powers of 1024.
    BinarySi,
    /// `n`, `u`, `m`, none, `k`, `M`, … powers of 1000.
    DecimalSi,
    /// `e3`, `E-6`, …
    DecimalExponent,
}

/// A fixed-point number as Kubernetes' `resource.Quantity`; equality and order look at the value only.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

/// Why a text is no quantity; the words are Kubernetes'.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text as a whole does not have the form of a quantity.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Form,
    /// The number before the suffix cannot be read.
    #[error("unable to parse numeric part of quantity")]
    Number,
    /// The suffix is none of the known ones.
    #[error("unable to parse quantity's suffix")]
    Suffix,
    /// The number is beyond what is kept (about 1.7e29).
    #[error("quantity is too large")]
    TooLarge,
}

impl Quantity {
    /// Nothing, in decimal notation.
    pub const ZERO: Quantity = Quantity { nano: 0, format: Format::DecimalSi };

    /// Reads a quantity as Kubernetes does: surrounding white space is the caller's to remove.
    pub fn parse(text: &str) -> Result<Quantity, QuantityError> {
        let (negative, number, suffix) = split(text)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return Err(QuantityError::Number);
        }
        let (mut format, nano) = match parse_suffix(suffix)? {
            Suffix::Power2(power) => (Format::BinarySi, binary(whole, fraction, power)),
            Suffix::Power10(power, format) => (format, decimal(whole, fraction, power)?),
        };
        // Less than one in binary is written in decimal: 0.5Ki stays binary, 0.0005Ki does not.
        if format == Format::BinarySi && nano > 0 && nano < NANO {
            format = Format::DecimalSi;
        }
        Ok(Quantity { nano: if negative { -nano } else { nano }, format })
    }

    /// Reads a quantity from JSON, where a number stands for its decimal text.
    pub fn from_value(value: &Value) -> Result<Quantity, QuantityError> {
        match value {
            Value::String(text) => Quantity::parse(text.trim()),
            Value::Number(number) => Quantity::parse(&number.to_string()),
            _ => Err(QuantityError::Form),
        }
    }

    /// A whole number of thousandths (millicores) in decimal notation.
    pub fn from_milli(milli: i64) -> Quantity {
        Quantity { nano: i128::from(milli) * 1_000_000, format: Format::DecimalSi }
    }

    /// A whole number of bytes in binary notation.
    pub fn from_bytes(bytes: i64) -> Quantity {
        Quantity { nano: i128::from(bytes) * NANO, format: Format::BinarySi }
    }

    /// A whole number in decimal notation.
    pub fn from_count(count: i64) -> Quantity {
        Quantity { nano: i128::from(count) * NANO, format: Format::DecimalSi }
    }

    /// Thousandths, rounded away from zero: a tenth of a millicore asked for is a millicore.
    pub fn as_milli(&self) -> i128 {
        divide_up(self.nano, 1_000_000)
    }

    /// Whole units (bytes, pods), rounded away from zero.
    pub fn as_bytes(&self) -> i128 {
        divide_up(self.nano, NANO)
    }

    /// Whether this is zero.
    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }

    /// Whether this is below zero.
    pub fn is_negative(&self) -> bool {
        self.nano < 0
    }

    /// The notation the canonical form uses.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The sum, in this quantity's notation, or the other's when this is zero. Saturates.
    pub fn add(&self, other: &Quantity) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nano: self.nano.saturating_add(other.nano), format }
    }

    /// The difference, in this quantity's notation, or the other's when this is zero. Saturates.
    pub fn subtract(&self, other: &Quantity) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nano: self.nano.saturating_sub(other.nano), format }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

/// The canonical form: no fractional digits, the largest suffix that needs none.
impl fmt::Display for Quantity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return out.write_str("0");
        }
        let binary =
            self.format == Format::BinarySi && self.nano.abs() >= 1024 * NANO && self.nano % NANO == 0;
        if binary {
            return write_binary(self.nano / NANO, out);
        }
        write_decimal(self.nano, self.format, out)
    }
}

enum Suffix {
    Power2(u32),
    Power10(i32, Format),
}

/// Cuts a text into sign, number and suffix.
fn split(text: &str) -> Result<(bool, &str, &str), QuantityError> {
    let (negative, rest) = match text.as_bytes().first() {
        None => return Err(QuantityError::Form),
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        Some(_) => (false, text),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    if number.bytes().filter(|b| *b == b'.').count() > 1 || !suffix_has_form(suffix) {
        return Err(QuantityError::Form);
    }
    Ok((negative, number, suffix))
}

/// `[eEinumkKMGTP]*[-+]?[0-9]*`
fn suffix_has_form(suffix: &str) -> bool {
    let rest = suffix.trim_start_matches(|c: char| "eEinumkKMGTP".contains(c));
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    rest.bytes().all(|b| b.is_ascii_digit())
}

fn parse_suffix(suffix: &str) -> Result<Suffix, QuantityError> {
    if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Ok(Suffix::Power2(*power));
    }
    if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok(Suffix::Power10(*power, Format::DecimalSi));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
    let power: i32 = exponent.parse().map_err(|_| QuantityError::Suffix)?;
    Ok(Suffix::Power10(power, Format::DecimalExponent))
}

/// The value in billionths of `whole.fraction × 2^power`, capped as Kubernetes caps it.
fn binary(whole: &str, fraction: &str, power: u32) -> i128 {
    // 18 digits of fraction are more than 2^60 can tell apart at a billionth's rounding.
    let fraction = &fraction[..fraction.len().min(18)];
    let Some(digits) = digits(whole, fraction) else { return BINARY_MAX };
    let Some(scaled) = digits.checked_mul(1 << power) else { return BINARY_MAX };
    shift(scaled, 9 - fraction.len() as i32).map_or(BINARY_MAX, |nano| nano.min(BINARY_MAX))
}

/// The value in billionths of `whole.fraction × 10^power`.
fn decimal(whole: &str, fraction: &str, power: i32) -> Result<i128, QuantityError> {
    let kept = &fraction[..fraction.len().min(18)];
    let lost = fraction[kept.len()..].bytes().any(|b| b != b'0');
    let digits = digits(whole, kept).ok_or(QuantityError::TooLarge)?;
    let places = power.saturating_add(9 - kept.len() as i32);
    let nano = shift(digits, places).ok_or(QuantityError::TooLarge)?;
    // What was cut off rounds up too, unless the shift has already done so.
    let rounded = places < 0 && shift(nano, -places) != Some(digits);
    Ok(if lost && !rounded { nano.saturating_add(1) } else { nano })
}

fn digits(whole: &str, fraction: &str) -> Option<i128> {
    whole
        .bytes()
        .chain(fraction.bytes())
        .try_fold(0_i128, |sum, digit| sum.checked_mul(10)?.checked_add(i128::from(digit - b'0')))
}

/// `value × 10^places`, rounded up.
fn shift(value: i128, places: i32) -> Option<i128> {
    if value == 0 {
        return Some(0);
    }
    match u32::try_from(places) {
        Ok(up) => value.checked_mul(10_i128.checked_pow(up)?),
        Err(_) => Some(match 10_i128.checked_pow(places.unsigned_abs()) {
            Some(divisor) => divide_up(value, divisor),
            None => 1,
        }),
    }
}

fn divide_up(value: i128, divisor: i128) -> i128 {
    let (quotient, rest) = (value / divisor, value % divisor);
    quotient + rest.signum()
}

fn write_binary(units: i128, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (mut number, mut step) = (units, 0);
    while number % 1024 == 0 && step < BINARY.len() {
        number /= 1024;
        step += 1;
    }
    let suffix = if step == 0 { "" } else { BINARY[step - 1].0 };
    write!(out, "{number}{suffix}")
}

fn write_decimal(nano: i128, format: Format, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (mut number, mut power) = (nano, -9);
    while number % 1000 == 0 && (power < 18 || format == Format::DecimalExponent) {
        number /= 1000;
        power += 3;
    }
    if format == Format::DecimalExponent {
        return if power == 0 { write!(out, "{number}") } else { write!(out, "{number}e{power}") };
    }
    let suffix = DECIMAL.iter().find(|(_, p)| *p == power).map_or("", |(name, _)| name);
    write!(out, "{number}{suffix}")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(&str, i128, i128), QuantityError>) {
        let got = Quantity::parse(text).map(|q| (q.to_string(), q.as_milli(), q.as_bytes()));
        let expected = expected.map(|(form, milli, units)| (form.to_owned(), milli, units));
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn quantities_have_kubernetes_canonical_forms() {
        check("0", Ok(("0", 0, 0)));
        check("0Ki", Ok(("0", 0, 0)));
        check("0.5", Ok(("500m", 500, 1)));
        check(".5", Ok(("500m", 500, 1)));
        check("1.", Ok(("1", 1000, 1)));
        check("1000m", Ok(("1", 1000, 1)));
        check("1500m", Ok(("1500m", 1500, 2)));
        check("100m", Ok(("100m", 100, 1)));
        check("+007", Ok(("7", 7000, 7)));
        check("-1", Ok(("-1", -1000, -1)));
        check("1024Ki", Ok(("1Mi", 1_048_576_000, 1_048_576)));
        check("1.5Gi", Ok(("1536Mi", 1_610_612_736_000, 1_610_612_736)));
        check("0.5Ki", Ok(("512", 512_000, 512)));
        check("1025", Ok(("1025", 1_025_000, 1025)));
        check("1000k", Ok(("1M", 1_000_000_000, 1_000_000)));
        check("1e3", Ok(("1e3", 1_000_000, 1000)));
        check("1E3", Ok(("1e3", 1_000_000, 1000)));
        check("100e1", Ok(("1e3", 1_000_000, 1000)));
        check("12e0", Ok(("12", 12_000, 12)));
        check("1e-3", Ok(("1e-3", 1, 1)));
        check("1E", Ok(("1E", 1_000_000_000_000_000_000_000, 1_000_000_000_000_000_000)));
        check("1000E", Ok(("1000E", 1_000_000_000_000_000_000_000_000, 1_000_000_000_000_000_000_000)));
        check("0.1m", Ok(("100u", 1, 1)));
        check("1n", Ok(("1n", 1, 1)));
        check("0.0000000001", Ok(("1n", 1, 1)));
        check("0.00000000000000000000000000001", Ok(("1n", 1, 1)));
        check("1.00000000000000000000000000001", Ok(("1000000001n", 1001, 2)));
        check("100Ei", Ok(("9223372036854775807", 9_223_372_036_854_775_807_000, 9_223_372_036_854_775_807)));
        check("1e-999", Ok(("1e-9", 1, 1)));
    }

    #[test]
    fn what_is_no_quantity_is_refused_in_kubernetes_words() {
        check("", Err(QuantityError::Form));
        check("1.2.3", Err(QuantityError::Form));
        check("1Gib", Err(QuantityError::Form));
        check("1 Gi", Err(QuantityError::Form));
        check("ü", Err(QuantityError::Form));
        check("1KI", Err(QuantityError::Form));
        check("1ki", Err(QuantityError::Suffix));
        check("1ee3", Err(QuantityError::Suffix));
        check("1e99999999999", Err(QuantityError::Suffix));
        check("m", Err(QuantityError::Number));
        check(".", Err(QuantityError::Number));
        check("-", Err(QuantityError::Number));
        check("1e30", Err(QuantityError::TooLarge));
        check(&"9".repeat(60), Err(QuantityError::TooLarge));
    }

    #[test]
    fn sums_keep_the_notation_of_the_first_that_is_not_zero() {
        let parse = |text| Quantity::parse(text).unwrap();
        assert_eq!(parse("1Gi").add(&parse("512Mi")).to_string(), "1536Mi");
        assert_eq!(parse("500m").add(&parse("1")).to_string(), "1500m");
        assert_eq!(Quantity::ZERO.add(&parse("2048Ki")).to_string(), "2Mi");
        assert_eq!(parse("1").subtract(&parse("1500m")).to_string(), "-500m");
        assert!(parse("1Gi") > parse("1G") && parse("1000m") == parse("1"));
        assert_eq!(Quantity::from_milli(250).to_string(), "250m");
        assert_eq!(Quantity::from_bytes(1 << 30).to_string(), "1Gi");
        assert_eq!(Quantity::from_count(110).to_string(), "110");
        assert_eq!(Quantity::from_value(&serde_json::json!(0.25)).unwrap().to_string(), "250m");
    }

    proptest! {
        #[test]
        fn the_canonical_form_reads_back_as_the_same_quantity(
            number in "[+-]?[0-9]{1,6}(\\.[0-9]{0,4})?",
            suffix in "(n|u|m||k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|e-?[0-9])",
        ) {
            let quantity = Quantity::parse(&format!("{number}{suffix}")).unwrap();
            let again = Quantity::parse(&quantity.to_string()).unwrap();
            prop_assert_eq!(quantity, again);
            prop_assert_eq!(quantity.to_string(), again.to_string());
            prop_assert!(!quantity.to_string().contains('.'));
        }

        #[test]
        fn any_text_is_a_quantity_or_an_error_and_never_a_panic(text in "[-+0-9.eEinumkKMGTP x]{0,50}") {
            let _ = Quantity::parse(&text).map(|q| (q.to_string(), q.as_milli(), q.as_bytes()));
        }

        #[test]
        fn addition_is_exact_and_commutes(a in -1_000_000_i64..1_000_000, b in -1_000_000_i64..1_000_000) {
            let (x, y) = (Quantity::from_milli(a), Quantity::from_milli(b));
            prop_assert_eq!(x.add(&y), y.add(&x));
            prop_assert_eq!(x.add(&y).as_milli(), i128::from(a + b));
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
        }
    }
}
