//! What expressions can call: the language's own functions and those that Kubernetes adds.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::SignedDuration;

use super::eval::{Result, Run, error};
use super::times::{of_span, of_time, span};
use super::value::V;
use crate::custom;
use crate::quantity::Quantity;

/// Functions that are called by name alone.
const GLOBAL: &[&str] = &[
    "bool",
    "bytes",
    "cidr",
    "double",
    "duration",
    "dyn",
    "int",
    "ip",
    "isCIDR",
    "isIP",
    "isQuantity",
    "isURL",
    "optional.none",
    "optional.of",
    "optional.ofNonZeroValue",
    "quantity",
    "sets.contains",
    "sets.equivalent",
    "sets.intersects",
    "size",
    "string",
    "timestamp",
    "type",
    "uint",
    "matches",
    "ip.isCanonical",
    "math.greatest",
    "math.least",
    "jsonpatch.escapeKey",
];
/// Functions that are called on a value.
const METHODS: &[&str] = &[
    "add",
    "asApproximateFloat",
    "asInteger",
    "charAt",
    "compareTo",
    "contains",
    "endsWith",
    "family",
    "find",
    "findAll",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getFullYear",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getSeconds",
    "hasValue",
    "indexOf",
    "isGreaterThan",
    "isInteger",
    "isLessThan",
    "isSorted",
    "join",
    "lastIndexOf",
    "lowerAscii",
    "matches",
    "max",
    "min",
    "or",
    "orValue",
    "replace",
    "reverse",
    "sign",
    "size",
    "split",
    "startsWith",
    "sub",
    "substring",
    "sum",
    "trim",
    "upperAscii",
    "value",
];
const TYPES: &[(&str, &str)] = &[
    ("bool", "bool"),
    ("bytes", "bytes"),
    ("double", "double"),
    ("int", "int"),
    ("list", "list"),
    ("map", "map"),
    ("null_type", "null_type"),
    ("string", "string"),
    ("type", "type"),
    ("uint", "uint"),
];

pub(super) fn exists(name: &str, method: bool) -> bool {
    if method { METHODS.contains(&name) } else { GLOBAL.contains(&name) }
}

/// A name before a dot that is no value.
pub(super) fn is_space(name: &str) -> bool {
    matches!(name, "sets" | "optional" | "math" | "cel" | "jsonpatch")
}

pub(super) fn is_type(name: &str) -> bool {
    type_named(name).is_some()
}

pub(super) fn type_named(name: &str) -> Option<&'static str> {
    TYPES.iter().find(|(known, _)| *known == name).map(|(_, of)| *of)
}

fn text<'a>(value: String) -> Result<V<'a>> {
    Ok(V::Str(Cow::Owned(value)))
}

fn list<'a>(items: Vec<V<'a>>) -> Result<V<'a>> {
    Ok(V::List(Arc::new(items)))
}

fn whole<'a>(number: usize) -> Result<V<'a>> {
    i64::try_from(number).map(V::Int).or_else(|_| error("integer overflow"))
}

/// Operators of two values.
pub(super) fn binary<'a>(run: &mut Run<'a, '_>, sign: &str, a: &V<'a>, b: &V<'a>) -> Result<V<'a>> {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let refused = || error(format!("no such overload: {} {sign} {}", a.type_name(), b.type_name()));
    match sign {
        "==" => Ok(V::Bool(a.equals(b))),
        "!=" => Ok(V::Bool(!a.equals(b))),
        "in" => match (b.items(), b.keys()) {
            (Some(items), _) => {
                run.pay(items.len())?;
                Ok(V::Bool(items.iter().any(|item| item.equals(a))))
            }
            (None, Some(_)) => Ok(V::Bool(b.get(a).is_some())),
            _ => refused(),
        },
        "<" | "<=" | ">" | ">=" => match a.compare(b) {
            Some(order) => Ok(V::Bool(match sign {
                "<" => order == Less,
                "<=" => order != Greater,
                ">" => order == Greater,
                _ => order == Equal || order == Greater,
            })),
            None => refused(),
        },
        _ => arithmetic(run, sign, a, b).unwrap_or_else(refused),
    }
}

/// None when the types do not go together.
fn arithmetic<'a>(run: &mut Run<'a, '_>, sign: &str, a: &V<'a>, b: &V<'a>) -> Option<Result<V<'a>>> {
    let int = |found: Option<i64>| Some(found.map(V::Int).map_or_else(|| error("integer overflow"), Ok));
    if matches!(sign, "/" | "%") && matches!(b, V::Int(0) | V::Uint(0)) {
        return Some(error(if sign == "/" { "division by zero" } else { "modulus by zero" }));
    }
    match (a, b) {
        (V::Int(a), V::Int(b)) => int(match sign {
            "+" => a.checked_add(*b),
            "-" => a.checked_sub(*b),
            "*" => a.checked_mul(*b),
            "/" => a.checked_div(*b),
            _ => a.checked_rem(*b),
        }),
        (V::Uint(a), V::Uint(b)) => {
            let found = match sign {
                "+" => a.checked_add(*b),
                "-" => a.checked_sub(*b),
                "*" => a.checked_mul(*b),
                "/" => a.checked_div(*b),
                _ => a.checked_rem(*b),
            };
            Some(found.map(V::Uint).map_or_else(|| error("unsigned integer overflow"), Ok))
        }
        (V::Double(a), V::Double(b)) => match sign {
            "+" => Some(Ok(V::Double(a + b))),
            "-" => Some(Ok(V::Double(a - b))),
            "*" => Some(Ok(V::Double(a * b))),
            "/" => Some(Ok(V::Double(a / b))),
            _ => None,
        },
        (V::Str(a), V::Str(b)) if sign == "+" => {
            Some(run.pay((a.len() + b.len()) / 10).and_then(|()| text(format!("{a}{b}"))))
        }
        (V::Time(a), V::Span(b)) => {
            let moved = if sign == "+" { a.checked_add(*b) } else { a.checked_sub(*b) };
            matches!(sign, "+" | "-").then(|| moved.map(V::Time).or_else(|_| error("timestamp overflow")))
        }
        (V::Span(a), V::Time(b)) if sign == "+" => {
            Some(b.checked_add(*a).map(V::Time).or_else(|_| error("timestamp overflow")))
        }
        (V::Time(a), V::Time(b)) if sign == "-" => Some(Ok(V::Span(a.duration_since(*b)))),
        (V::Span(a), V::Span(b)) => {
            let found = if sign == "+" { a.checked_add(*b) } else { a.checked_sub(*b) };
            matches!(sign, "+" | "-")
                .then(|| found.map(V::Span).map_or_else(|| error("duration overflow"), Ok))
        }
        _ if sign == "+" => {
            let (mut first, second) = (a.items()?, b.items()?);
            Some(run.pay(first.len() + second.len()).and_then(|()| {
                first.extend(second);
                list(first)
            }))
        }
        _ => None,
    }
}

pub(super) fn call<'a>(
    run: &mut Run<'a, '_>,
    name: &str,
    target: Option<V<'a>>,
    arguments: Vec<V<'a>>,
) -> Result<V<'a>> {
    let size = target.as_ref().and_then(V::size).unwrap_or(0);
    run.pay(size / 10 + arguments.iter().filter_map(V::size).sum::<usize>() / 10)?;
    let refused = || {
        let types: Vec<&str> = arguments.iter().map(V::type_name).collect();
        let of = target.as_ref().map(|of| format!("{}.", of.type_name())).unwrap_or_default();
        error(format!("no such overload: {of}{name}({})", types.join(", ")))
    };
    let found = match &target {
        None => global(run, name, &arguments),
        Some(V::Str(of)) => of_text(run, of, name, &arguments),
        Some(V::Time(of)) => of_time(*of, name, &arguments),
        Some(V::Span(of)) => of_span(*of, name),
        Some(V::Quantity(of)) => of_quantity(of, name, &arguments),
        Some(V::Optional(of)) => of_optional(of.as_deref(), name, &arguments),
        Some(of) => of_list(run, of, name, &arguments),
    };
    found.unwrap_or_else(refused)
}

fn global<'a>(run: &mut Run<'a, '_>, name: &str, arguments: &[V<'a>]) -> Option<Result<V<'a>>> {
    let wrong = |what: String| Some(error(what));
    Some(match (name, arguments) {
        ("size", [of]) => whole(of.size()?),
        ("dyn", [of]) => Ok(of.clone()),
        ("type", [of]) => Ok(V::Type(of.type_name())),
        ("string", [of]) => text(of.text()),
        ("bytes", [V::Str(of)]) => Ok(V::Str(of.clone())),
        ("bool", [V::Bool(of)]) => Ok(V::Bool(*of)),
        ("bool", [V::Str(of)]) => match of.as_ref() {
            "true" | "True" | "TRUE" | "t" | "1" => Ok(V::Bool(true)),
            "false" | "False" | "FALSE" | "f" | "0" => Ok(V::Bool(false)),
            other => return wrong(format!("type conversion error from string {other:?} to bool")),
        },
        ("int", [V::Int(of)]) => Ok(V::Int(*of)),
        ("int", [V::Uint(of)]) => i64::try_from(*of).map(V::Int).or_else(|_| error("integer overflow")),
        ("int", [V::Time(of)]) => Ok(V::Int(of.as_second())),
        ("int", [V::Double(of)]) => truncated(*of),
        ("int", [V::Str(of)]) => match of.parse() {
            Ok(int) => Ok(V::Int(int)),
            Err(_) => return wrong(format!("type conversion error from string {of:?} to int")),
        },
        ("uint", [V::Uint(of)]) => Ok(V::Uint(*of)),
        ("uint", [V::Int(of)]) => {
            u64::try_from(*of).map(V::Uint).or_else(|_| error("unsigned integer overflow"))
        }
        ("double", [V::Str(of)]) => match of.parse() {
            Ok(double) => Ok(V::Double(double)),
            Err(_) => return wrong(format!("type conversion error from string {of:?} to double")),
        },
        ("double", [of]) => Ok(V::Double(of.number()?)),
        ("timestamp", [V::Time(of)]) => Ok(V::Time(*of)),
        ("timestamp", [V::Str(of)]) => match of.parse() {
            Ok(time) => Ok(V::Time(time)),
            Err(_) => return wrong(format!("timestamp {of:?} is not in RFC 3339")),
        },
        ("duration", [V::Span(of)]) => Ok(V::Span(*of)),
        ("duration", [V::Str(of)]) => match span(of) {
            Some(span) => Ok(V::Span(span)),
            None => return wrong(format!("time: invalid duration {of:?}")),
        },
        ("quantity", [V::Str(of)]) => match Quantity::parse(of) {
            Ok(quantity) => Ok(V::Quantity(quantity)),
            Err(why) => return wrong(why.to_string()),
        },
        ("isQuantity", [V::Str(of)]) => Ok(V::Bool(Quantity::parse(of).is_ok())),
        ("isIP", [V::Str(of)]) => Ok(V::Bool(of.parse::<IpAddr>().is_ok())),
        ("isCIDR", [V::Str(of)]) => Ok(V::Bool(is_cidr(of))),
        ("isURL", [V::Str(of)]) => Ok(V::Bool(of.contains("://") || of.starts_with('/'))),
        ("ip.isCanonical", [V::Str(of)]) => {
            Ok(V::Bool(of.parse::<IpAddr>().is_ok_and(|ip| ip.to_string() == of.as_ref())))
        }
        ("ip", [V::Str(of)]) if of.parse::<IpAddr>().is_ok() => Ok(V::Str(of.clone())),
        ("cidr", [V::Str(of)]) if is_cidr(of) => Ok(V::Str(of.clone())),
        ("jsonpatch.escapeKey", [V::Str(of)]) => text(of.replace('~', "~0").replace('/', "~1")),
        ("matches", [V::Str(of), V::Str(pattern)]) => pattern_matches(run, pattern, of),
        ("optional.none", []) => Ok(V::Optional(None)),
        ("optional.of", [of]) => Ok(V::Optional(Some(Box::new(of.clone())))),
        ("optional.ofNonZeroValue", [of]) => {
            let zero = match of {
                V::Null | V::Bool(false) | V::Int(0) | V::Uint(0) => true,
                other => other.size() == Some(0) || other.number() == Some(0.0),
            };
            Ok(V::Optional((!zero).then(|| Box::new(of.clone()))))
        }
        ("math.greatest" | "math.least", values) => {
            let wanted =
                if name == "math.greatest" { std::cmp::Ordering::Greater } else { std::cmp::Ordering::Less };
            let values = match values {
                [one] => one.items().unwrap_or_else(|| vec![one.clone()]),
                many => many.to_vec(),
            };
            extreme(values, wanted)?
        }
        (sets, [a, b]) if sets.starts_with("sets.") => {
            let (a, b) = (a.items()?, b.items()?);
            if let Err(why) = run.pay(a.len() * b.len()) {
                return Some(Err(why));
            }
            let within =
                |a: &[V<'a>], b: &[V<'a>]| a.iter().all(|one| b.iter().any(|other| one.equals(other)));
            Ok(V::Bool(match sets {
                "sets.contains" => within(&b, &a),
                "sets.equivalent" => within(&a, &b) && within(&b, &a),
                _ => a.iter().any(|one| b.iter().any(|other| one.equals(other))),
            }))
        }
        _ => return None,
    })
}

#[expect(clippy::cast_possible_truncation, reason = "the range is checked before")]
fn truncated<'a>(double: f64) -> Result<V<'a>> {
    if double.is_finite() && double.abs() < 9.2e18 {
        Ok(V::Int(double as i64))
    } else {
        error("integer overflow")
    }
}

fn is_cidr(text: &str) -> bool {
    text.split_once('/').is_some_and(|(ip, bits)| {
        ip.parse::<IpAddr>()
            .is_ok_and(|ip| bits.parse::<u8>().is_ok_and(|bits| bits <= if ip.is_ipv4() { 32 } else { 128 }))
    })
}

fn pattern_matches<'a>(run: &mut Run<'a, '_>, pattern: &str, of: &str) -> Result<V<'a>> {
    run.pay(of.len() / 4 * (pattern.len() / 4 + 1))?;
    Ok(V::Bool(custom::matches(pattern, of)))
}

fn of_text<'a>(
    run: &mut Run<'a, '_>,
    of: &Cow<'a, str>,
    name: &str,
    arguments: &[V<'a>],
) -> Option<Result<V<'a>>> {
    let at = |index: &i64| usize::try_from(*index).ok().filter(|at| *at <= of.chars().count());
    let from_to = |from: usize, to: usize| -> Result<V<'a>> {
        if from > to {
            return error(format!("invalid substring range. start: {from}, end: {to}"));
        }
        text(of.chars().skip(from).take(to - from).collect())
    };
    let out_of_range = || Some(error("index out of range"));
    Some(match (name, arguments) {
        ("size", []) => whole(of.chars().count()),
        ("startsWith", [V::Str(part)]) => Ok(V::Bool(of.starts_with(part.as_ref()))),
        ("endsWith", [V::Str(part)]) => Ok(V::Bool(of.ends_with(part.as_ref()))),
        ("contains", [V::Str(part)]) => Ok(V::Bool(of.contains(part.as_ref()))),
        ("matches", [V::Str(pattern)]) => pattern_matches(run, pattern, of),
        ("lowerAscii", []) => text(of.to_ascii_lowercase()),
        ("upperAscii", []) => text(of.to_ascii_uppercase()),
        ("trim", []) => text(of.trim().to_owned()),
        ("charAt", [V::Int(index)]) => match at(index) {
            Some(from) => from_to(from, from + 1),
            None => return out_of_range(),
        },
        ("substring", [V::Int(from)]) => match at(from) {
            Some(from) => from_to(from, of.chars().count()),
            None => return out_of_range(),
        },
        ("substring", [V::Int(from), V::Int(to)]) => match (at(from), at(to)) {
            (Some(from), Some(to)) => from_to(from, to),
            _ => return out_of_range(),
        },
        ("indexOf", [V::Str(part)]) => index(of, of.find(part.as_ref())),
        ("lastIndexOf", [V::Str(part)]) => index(of, of.rfind(part.as_ref())),
        ("split", [V::Str(by)]) => list(of.split(by.as_ref()).map(owned).collect()),
        ("split", [V::Str(by), V::Int(most)]) => match usize::try_from(*most) {
            Ok(0) => list(Vec::new()),
            Ok(most) => list(of.splitn(most, by.as_ref()).map(owned).collect()),
            Err(_) => list(of.split(by.as_ref()).map(owned).collect()),
        },
        ("replace", [V::Str(from), V::Str(to)]) => {
            if let Err(why) = run.pay(of.len() * (to.len() + 1) / 10) {
                return Some(Err(why));
            }
            text(of.replace(from.as_ref(), to))
        }
        ("replace", [V::Str(from), V::Str(to), V::Int(most)]) => match usize::try_from(*most) {
            Ok(most) => text(of.replacen(from.as_ref(), to, most)),
            Err(_) => text(of.replace(from.as_ref(), to)),
        },
        ("find", [V::Str(pattern)]) => match custom::pattern(pattern) {
            Some(pattern) => {
                text(pattern.find(of).map(|found| found.as_str().to_owned()).unwrap_or_default())
            }
            None => return Some(error("invalid regular expression")),
        },
        ("findAll", [V::Str(pattern)]) => match custom::pattern(pattern) {
            Some(pattern) => list(pattern.find_iter(of).map(|found| owned(found.as_str())).collect()),
            None => return Some(error("invalid regular expression")),
        },
        ("reverse", []) => text(of.chars().rev().collect()),
        // Addresses are texts here.
        ("family", []) => Ok(V::Int(if of.parse::<IpAddr>().ok()?.is_ipv4() { 4 } else { 6 })),
        _ => return None,
    })
}

fn owned<'a>(part: &str) -> V<'a> {
    V::Str(Cow::Owned(part.to_owned()))
}

/// Bytes to characters; -1 for nothing.
fn index<'a>(of: &str, found: Option<usize>) -> Result<V<'a>> {
    found.map_or(Ok(V::Int(-1)), |bytes| whole(of[..bytes].chars().count()))
}

fn of_quantity<'a>(of: &Quantity, name: &str, arguments: &[V<'a>]) -> Option<Result<V<'a>>> {
    use std::cmp::Ordering;
    let other = match arguments.first() {
        Some(V::Quantity(other)) => Some(*other),
        Some(V::Int(int)) => Quantity::parse(&int.to_string()).ok(),
        _ => None,
    };
    let sign = |order: Ordering| match order {
        Ordering::Less => -1,
        Ordering::Equal => 0,
        Ordering::Greater => 1,
    };
    let whole = (of.as_milli() % 1000 == 0).then(|| i64::try_from(of.as_milli() / 1000).ok()).flatten();
    Some(Ok(match (name, other) {
        ("isGreaterThan", Some(other)) => V::Bool(*of > other),
        ("isLessThan", Some(other)) => V::Bool(*of < other),
        ("compareTo", Some(other)) => V::Int(sign(of.cmp(&other))),
        ("add", Some(other)) => V::Quantity(of.add(&other)),
        ("sub", Some(other)) => V::Quantity(of.subtract(&other)),
        ("sign", None) => V::Int(sign(of.as_milli().cmp(&0))),
        ("isInteger", None) => V::Bool(whole.is_some()),
        ("asInteger", None) => match whole {
            Some(int) => V::Int(int),
            None => return Some(error("cannot convert value to integer")),
        },
        ("asApproximateFloat", None) => V::Double(float(of.as_milli())),
        _ => return None,
    }))
}

#[expect(clippy::cast_precision_loss, reason = "it is asked for approximately")]
fn float(milli: i128) -> f64 {
    milli as f64 / 1000.0
}

fn of_optional<'a>(of: Option<&V<'a>>, name: &str, arguments: &[V<'a>]) -> Option<Result<V<'a>>> {
    Some(match (name, of, arguments) {
        ("hasValue", of, []) => Ok(V::Bool(of.is_some())),
        ("value", Some(of), []) => Ok(of.clone()),
        ("value", None, []) => error("optional.none() dereference"),
        ("orValue", Some(of), [_]) => Ok(of.clone()),
        ("orValue", None, [other]) => Ok(other.clone()),
        ("or", Some(of), [_]) => Ok(V::Optional(Some(Box::new(of.clone())))),
        ("or", None, [other]) => Ok(other.clone()),
        _ => return None,
    })
}

fn of_list<'a>(run: &mut Run<'a, '_>, of: &V<'a>, name: &str, arguments: &[V<'a>]) -> Option<Result<V<'a>>> {
    if let ("size", []) = (name, arguments) {
        return of.size().map(whole);
    }
    let items = of.items()?;
    if let Err(why) = run.pay(items.len()) {
        return Some(Err(why));
    }
    let found = |found: Option<usize>| found.map_or(Ok(V::Int(-1)), whole);
    Some(match (name, arguments) {
        ("isSorted", []) => {
            let sorted =
                items.windows(2).all(|two| two[0].compare(&two[1]).is_some_and(std::cmp::Ordering::is_le));
            Ok(V::Bool(sorted))
        }
        ("sum", []) => {
            let mut total = match items.first().map(|item| item.clone().plain()) {
                Some(V::Double(_)) => V::Double(0.0),
                Some(V::Uint(_)) => V::Uint(0),
                Some(V::Span(_)) => V::Span(SignedDuration::ZERO),
                _ => V::Int(0),
            };
            for item in items {
                total = match arithmetic(run, "+", &total, &item.plain())? {
                    Ok(total) => total,
                    Err(why) => return Some(Err(why)),
                };
            }
            Ok(total)
        }
        ("min", []) => extreme(items, std::cmp::Ordering::Less)?,
        ("max", []) => extreme(items, std::cmp::Ordering::Greater)?,
        ("indexOf", [of]) => found(items.iter().position(|item| item.equals(of))),
        ("lastIndexOf", [of]) => found(items.iter().rposition(|item| item.equals(of))),
        ("reverse", []) => list(items.into_iter().rev().collect()),
        ("join", by) => {
            let by = match by {
                [] => "",
                [V::Str(by)] => by.as_ref(),
                _ => return None,
            };
            let texts: Vec<String> = items.iter().map(V::text).collect();
            text(texts.join(by))
        }
        _ => return None,
    })
}

fn extreme<'a>(items: Vec<V<'a>>, wanted: std::cmp::Ordering) -> Option<Result<V<'a>>> {
    let mut items = items.into_iter();
    let Some(mut best) = items.next() else { return Some(error("there is no extreme of nothing")) };
    for item in items {
        if item.compare(&best)? == wanted {
            best = item;
        }
    }
    Some(Ok(best.plain()))
}
