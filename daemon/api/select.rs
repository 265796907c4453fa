//! Reads label selectors and field selectors and says what they match.
//!
//! Invariant: an empty selector matches everything; the selector that is absent (null) matches nothing.
//! Invariant: a field that a kind cannot be selected by is refused, never ignored.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::kinds::Kind;

/// A label selector: every requirement must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    nothing: bool,
    requirements: Vec<Requirement>,
}

/// A field selector: every term must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fields {
    terms: Vec<Term>,
}

/// Why a selector cannot be used; answered as 400 BadRequest with these words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// The text of a label selector breaks the grammar.
    #[error("unable to parse requirement: found '{found}', expected: {expected}")]
    Syntax {
        /// What stands there; empty at the end of the text.
        found: String,
        /// What could have stood there.
        expected: &'static str,
    },
    /// A label key or value has a form that no label can have.
    #[error("unable to parse requirement: {part}: Invalid value: \"{value}\": {rule}")]
    Label {
        /// `key` or `values[0][app]`.
        part: String,
        /// The offending text.
        value: String,
        /// What it has to look like.
        rule: &'static str,
    },
    /// A LabelSelector object is not shaped like one.
    #[error("invalid label selector: {0}")]
    Object(String),
    /// A term of a field selector has no operator.
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Field {
        /// The whole selector.
        selector: String,
        /// The term without an operator.
        term: String,
    },
    /// A field selector escapes what needs no escape.
    #[error("invalid field selector: invalid escape sequence: {0}")]
    Escape(String),
    /// The kind cannot be selected by this field.
    #[error("field label not supported: {field} ({kind} can be selected by {known})")]
    Unsupported {
        /// The field asked for.
        field: String,
        /// The kind listed.
        kind: String,
        /// The fields it can be selected by.
        known: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Missing,
    Above(i64),
    Below(i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    key: String,
    equal: bool,
    value: String,
}

impl Labels {
    /// Matches every object.
    pub fn everything() -> Labels {
        Labels { nothing: false, requirements: Vec::new() }
    }

    /// Matches no object.
    pub fn nothing() -> Labels {
        Labels { nothing: true, requirements: Vec::new() }
    }

    /// Reads the text form: `app=web,tier in (a,b),!canary,size>3`.
    pub fn parse(text: &str) -> Result<Labels, SelectError> {
        let mut parser = Parser { tokens: tokens(text), next: 0 };
        let requirements = parser.selector()?;
        Ok(Labels { nothing: false, requirements })
    }

    /// Reads a LabelSelector object with `matchLabels` and `matchExpressions`; null matches nothing.
    pub fn from_selector(selector: &Value) -> Result<Labels, SelectError> {
        if selector.is_null() {
            return Ok(Labels::nothing());
        }
        let Value::Object(map) = selector else {
            return Err(SelectError::Object(format!("expected an object, found {selector}")));
        };
        let mut requirements = match map.get("matchLabels") {
            None | Some(Value::Null) => Vec::new(),
            Some(labels) => equalities(labels)?,
        };
        match map.get("matchExpressions") {
            None | Some(Value::Null) => {}
            Some(Value::Array(list)) => {
                for expression in list {
                    requirements.push(expression_requirement(expression)?);
                }
            }
            Some(other) => {
                return Err(SelectError::Object(format!("matchExpressions: expected a list, found {other}")));
            }
        }
        Ok(Labels { nothing: false, requirements })
    }

    /// Reads a plain map of labels as Services and ReplicationControllers select; null and `{}` match nothing,
    /// since a Service without selector has no pods.
    pub fn from_map(labels: &Value) -> Result<Labels, SelectError> {
        match labels {
            Value::Null => Ok(Labels::nothing()),
            Value::Object(map) if map.is_empty() => Ok(Labels::nothing()),
            labels => Ok(Labels { nothing: false, requirements: equalities(labels)? }),
        }
    }

    /// Whether these labels satisfy every requirement.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// Whether an object's `metadata.labels` satisfy every requirement.
    pub fn matches_object(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.matches_with(|key| labels.get(key).and_then(Value::as_str))
    }

    /// Whether the labels found by `lookup` satisfy every requirement.
    pub fn matches_with<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.operator.holds(lookup(&r.key)))
    }

    /// Whether every object matches.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }
}

impl Operator {
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match self {
            Operator::In(set) => value.is_some_and(|v| set.iter().any(|s| s == v)),
            Operator::NotIn(set) => value.is_none_or(|v| set.iter().all(|s| s != v)),
            Operator::Exists => value.is_some(),
            Operator::Missing => value.is_none(),
            Operator::Above(limit) => number().is_some_and(|n| n > *limit),
            Operator::Below(limit) => number().is_some_and(|n| n < *limit),
        }
    }
}

impl Fields {
    /// Reads `metadata.name=a,status.phase!=Running`; `\` escapes `,`, `=` and itself in values.
    pub fn parse(text: &str) -> Result<Fields, SelectError> {
        let mut terms = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let unreadable = || SelectError::Field { selector: text.to_owned(), term: term.to_owned() };
            let (key, equal, value) = split_term(term).ok_or_else(unreadable)?;
            terms.push(Term { key: key.to_owned(), equal, value: unescape(value)? });
        }
        Ok(Fields { terms })
    }

    /// The same selection in the field names of the version that objects of this kind are stored in.
    pub fn as_stored(mut self, kind: &Kind) -> Fields {
        for term in &mut self.terms {
            term.key = crate::convert::stored_field(kind, &term.key);
        }
        self
    }

    /// Whether the values found by `lookup` satisfy every term; a field without a value counts as empty.
    pub fn matches(&self, lookup: impl Fn(&str) -> Option<String>) -> bool {
        self.terms.iter().all(|t| (lookup(&t.key).unwrap_or_default() == t.value) == t.equal)
    }

    /// Whether an object of this kind satisfies every term.
    pub fn matches_object(&self, kind: &Kind, object: &Value) -> bool {
        self.terms.is_empty() || {
            let fields = selectable_fields(kind, object);
            self.matches(|key| fields.get(key).cloned())
        }
    }

    /// The fields named, in order.
    pub fn keys(&self) -> Vec<&str> {
        self.terms.iter().map(|t| t.key.as_str()).collect()
    }

    /// Whether every object matches.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that a term requires this field to equal, such as the one name a list is narrowed to.
    pub fn required(&self, key: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && t.key == key).map(|t| t.value.as_str())
    }

    /// Refuses a field that this kind cannot be selected by.
    pub fn check(&self, kind: &Kind) -> Result<(), SelectError> {
        let known = field_names(kind);
        match self.terms.iter().find(|t| !known.contains(&t.key.as_str())) {
            None => Ok(()),
            Some(term) => Err(SelectError::Unsupported {
                field: term.key.clone(),
                kind: kind.kind.clone(),
                known: known.join(", "),
            }),
        }
    }
}

/// The values of all fields that this kind can be selected by; those without a value are empty.
pub fn selectable_fields(kind: &Kind, object: &Value) -> BTreeMap<String, String> {
    let value = |name: &&'static str| ((*name).to_owned(), field_value(name, object));
    field_names(kind).iter().map(value).collect()
}

/// The fields that a kind can be selected by, as the documentation of field selectors lists them.
pub fn field_names(kind: &Kind) -> Vec<&'static str> {
    let own: &[&str] = match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("" | "events.k8s.io", "Event") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("", "Secret") => &["type"],
        ("", "Namespace") => &["status.phase"],
        ("", "Node") => &["spec.unschedulable"],
        ("", "Service") => &["spec.clusterIP", "spec.type"],
        ("", "ReplicationController") | ("apps", "ReplicaSet") => &["status.replicas"],
        ("batch", "Job") => &["status.successful"],
        ("certificates.k8s.io", "CertificateSigningRequest") => &["spec.signerName"],
        _ => &[],
    };
    let mut names = vec!["metadata.name"];
    if kind.namespaced {
        names.push("metadata.namespace");
    }
    names.extend_from_slice(own);
    names
}

fn field_value(name: &str, object: &Value) -> String {
    let at = |path: &str| path.split('.').fold(object, |value, step| &value[step]);
    let value = match name {
        // events.k8s.io names the same field differently.
        _ if name.starts_with("involvedObject.") && object.get("regarding").is_some() => {
            at(&name.replacen("involvedObject", "regarding", 1))
        }
        "source" => match at("source.component") {
            Value::Null => at("reportingController"),
            found => found,
        },
        "reportingComponent" if object.get("reportingController").is_some() => at("reportingController"),
        "status.podIPs" => at("status.podIP"),
        name => at(name),
    };
    match value {
        Value::String(text) => text.clone(),
        // Go prints the zero value of a field that is not set.
        Value::Null if matches!(name, "spec.unschedulable" | "spec.hostNetwork") => "false".to_owned(),
        Value::Null if matches!(name, "status.replicas" | "status.successful") => "0".to_owned(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn equalities(labels: &Value) -> Result<Vec<Requirement>, SelectError> {
    let Value::Object(map) = labels else {
        return Err(SelectError::Object(format!("matchLabels: expected an object, found {labels}")));
    };
    map.iter()
        .map(|(key, value)| match value {
            Value::String(text) => requirement(key, Operator::In(vec![text.clone()])),
            other => Err(SelectError::Object(format!("matchLabels.{key}: expected a string, found {other}"))),
        })
        .collect()
}

fn expression_requirement(expression: &Value) -> Result<Requirement, SelectError> {
    let word = |name: &str| expression.get(name).and_then(Value::as_str).unwrap_or_default();
    let key = word("key");
    let values = match expression.get("values") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Some(other) => {
            return Err(SelectError::Object(format!("values: expected a list, found {other}")));
        }
    };
    let operator = match word("operator") {
        "In" | "NotIn" if values.is_empty() => {
            let message = format!("{key}: for 'in', 'notin' operators, values set can't be empty");
            return Err(SelectError::Object(message));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let message = format!("{key}: values set must be empty for exists and does not exist");
            return Err(SelectError::Object(message));
        }
        "In" => Operator::In(values),
        "NotIn" => Operator::NotIn(values),
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::Missing,
        other => {
            return Err(SelectError::Object(format!("\"{other}\" is not a valid label selector operator")));
        }
    };
    requirement(key, operator)
}

fn requirement(key: &str, operator: Operator) -> Result<Requirement, SelectError> {
    if !is_label_key(key) {
        return Err(SelectError::Label {
            part: "key".to_owned(),
            value: key.to_owned(),
            rule: "a label key is [prefix/]name: a name of 63 letters, digits, '-', '_' or '.', an optional DNS prefix",
        });
    }
    if let Operator::In(values) | Operator::NotIn(values) = &operator
        && let Some((index, value)) = values.iter().enumerate().find(|(_, v)| !is_label_value(v))
    {
        return Err(SelectError::Label {
            part: format!("values[{index}][{key}]"),
            value: value.clone(),
            rule: "a label value is empty or 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends",
        });
    }
    Ok(Requirement { key: key.to_owned(), operator })
}

fn is_label_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let dns = |text: &str| {
        text.len() <= 253
            && text.split('.').all(|part| {
                !part.is_empty()
                    && !part.starts_with('-')
                    && !part.ends_with('-')
                    && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            })
    };
    !name.is_empty() && is_label_value(name) && prefix.is_none_or(dns)
}

fn is_label_value(value: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    value.len() <= 63
        && edge(value.as_bytes().first())
        && edge(value.as_bytes().last())
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Symbol(&'a str),
    End,
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let symbol = ["==", "!=", "!", "=", ">", "<", "(", ")", ","].iter().find(|s| rest.starts_with(**s));
        let length = match symbol {
            Some(symbol) => symbol.len(),
            None => rest.find(|c: char| c.is_whitespace() || "!=<>(),".contains(c)).unwrap_or(rest.len()),
        };
        let (token, tail) = rest.split_at(length);
        tokens.push(if symbol.is_some() { Token::Symbol(token) } else { Token::Word(token) });
        rest = tail.trim_start();
    }
    tokens
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    next: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens.get(self.next).copied().unwrap_or(Token::End)
    }

    fn take(&mut self) -> Token<'a> {
        let token = self.peek();
        self.next += 1;
        token
    }

    fn selector(&mut self) -> Result<Vec<Requirement>, SelectError> {
        let mut requirements = Vec::new();
        if self.peek() == Token::End {
            return Ok(requirements);
        }
        loop {
            requirements.push(self.requirement()?);
            match self.take() {
                Token::End => return Ok(requirements),
                Token::Symbol(",") => match self.peek() {
                    Token::Word(_) | Token::Symbol("!") => {}
                    other => return Err(unexpected(other, "identifier after ','")),
                },
                other => return Err(unexpected(other, "',' or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectError> {
        if self.peek() == Token::Symbol("!") {
            self.take();
            let key = self.word("identifier")?;
            return requirement(key, Operator::Missing);
        }
        let key = self.word("!, identifier, or 'end of string'")?;
        let operator = match self.peek() {
            Token::End | Token::Symbol(",") => return requirement(key, Operator::Exists),
            operator => {
                self.take();
                operator
            }
        };
        let operator = match operator {
            Token::Word("in") => Operator::In(self.set()?),
            Token::Word("notin") => Operator::NotIn(self.set()?),
            Token::Symbol("=" | "==") => Operator::In(vec![self.value()]),
            Token::Symbol("!=") => Operator::NotIn(vec![self.value()]),
            Token::Symbol(">") => Operator::Above(self.number()?),
            Token::Symbol("<") => Operator::Below(self.number()?),
            other => return Err(unexpected(other, "in, notin, =, ==, !=, gt, lt")),
        };
        requirement(key, operator)
    }

    fn word(&mut self, expected: &'static str) -> Result<&'a str, SelectError> {
        match self.take() {
            Token::Word(word) => Ok(word),
            other => Err(unexpected(other, expected)),
        }
    }

    /// A single value, which may be absent: `app=` asks for the empty one.
    fn value(&mut self) -> String {
        match self.peek() {
            Token::Word(word) => {
                self.take();
                word.to_owned()
            }
            _ => String::new(),
        }
    }

    fn number(&mut self) -> Result<i64, SelectError> {
        let word = self.word("an integer")?;
        word.parse().map_err(|_| {
            unexpected(Token::Word(word), "for 'Gt', 'Lt' operators, the value must be an integer")
        })
    }

    fn set(&mut self) -> Result<Vec<String>, SelectError> {
        if self.take() != Token::Symbol("(") {
            self.next -= 1;
            return Err(unexpected(self.peek(), "'('"));
        }
        let mut values = vec![self.value()];
        loop {
            match self.take() {
                Token::Symbol(",") => values.push(self.value()),
                Token::Symbol(")") => break,
                other => return Err(unexpected(other, "',', ')' or identifier")),
            }
        }
        values.sort();
        values.dedup();
        Ok(values)
    }
}

fn unexpected(token: Token<'_>, expected: &'static str) -> SelectError {
    let found = match token {
        Token::Word(text) | Token::Symbol(text) => text.to_owned(),
        Token::End => String::new(),
    };
    SelectError::Syntax { found, expected }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

/// Cuts a term at its first operator.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let at = term.find(['=', '!'])?;
    let (key, rest) = term.split_at(at);
    let (equal, value) = if let Some(value) = rest.strip_prefix("!=") {
        (false, value)
    } else {
        let value = rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?;
        (true, value)
    };
    Some((key, equal, value))
}

fn unescape(value: &str) -> Result<String, SelectError> {
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => plain.push(c),
                Some(c) => return Err(SelectError::Escape(format!("\\{c}"))),
                None => return Err(SelectError::Escape("\\".to_owned())),
            },
            ',' | '=' => return Err(SelectError::Escape(format!("unescaped character in value: {c}"))),
            c => plain.push(c),
        }
    }
    Ok(plain)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        text.split_terminator(',')
            .map(|pair| pair.split_once('=').unwrap())
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    #[track_caller]
    fn check(selector: &str, matching: &[&str], others: &[&str]) {
        let selector = Labels::parse(selector).unwrap();
        for text in matching {
            assert!(selector.matches(&labels(text)), "{selector:?} has to match {text}");
        }
        for text in others {
            assert!(!selector.matches(&labels(text)), "{selector:?} must not match {text}");
        }
    }

    #[track_caller]
    fn refuse(selector: &str, message: &str) {
        assert_eq!(Labels::parse(selector).unwrap_err().to_string(), message, "{selector}");
    }

    #[test]
    fn label_selectors_match_as_documented() {
        check("", &["", "a=1"], &[]);
        check("app=web", &["app=web,x=y"], &["", "app=api"]);
        check(" app == web , tier!=db ", &["app=web", "app=web,tier=fe"], &["app=web,tier=db"]);
        check("tier!=db", &["", "tier=x"], &["tier=db"]);
        check("tier in (fe, db)", &["tier=fe", "tier=db"], &["tier=x", ""]);
        check("tier notin (fe,db)", &["tier=x", ""], &["tier=fe"]);
        check("tier", &["tier=", "tier=x"], &[""]);
        check("!tier", &["", "x=y"], &["tier="]);
        check("size>3,size<10", &["size=4"], &["size=3", "size=10", "size=x", ""]);
        check("app=,x in (,)", &["app=,x="], &["app=a,x="]);
        check("example.com/app=web", &["example.com/app=web"], &[""]);
        check("in=notin", &["in=notin"], &["in=in"]);
    }

    #[test]
    fn label_selectors_that_break_the_grammar_say_where() {
        refuse(
            "app=a||tier=b",
            "unable to parse requirement: values[0][app]: Invalid value: \"a||tier\": a label value is empty or 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends",
        );
        refuse("app,", "unable to parse requirement: found '', expected: identifier after ','");
        refuse("app in fe", "unable to parse requirement: found 'fe', expected: '('");
        refuse("app in (fe", "unable to parse requirement: found '', expected: ',', ')' or identifier");
        refuse("app web", "unable to parse requirement: found 'web', expected: in, notin, =, ==, !=, gt, lt");
        refuse(",app", "unable to parse requirement: found ',', expected: !, identifier, or 'end of string'");
    }

    #[test]
    fn label_selector_objects_match_as_documented() {
        let matches =
            |selector: Value, text: &str| Labels::from_selector(&selector).unwrap().matches(&labels(text));
        assert!(matches(json!({}), "") && !matches(Value::Null, "a=b"));
        let both = json!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["db"]}]});
        assert!(matches(both.clone(), "app=web") && !matches(both, "app=web,tier=db"));
        assert!(matches(
            json!({"matchExpressions": [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "DoesNotExist"}]}),
            "a=1"
        ));
        for (wrong, message) in [
            (
                json!({"matchExpressions": [{"key": "a", "operator": "Is"}]}),
                "invalid label selector: \"Is\" is not a valid label selector operator",
            ),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "In"}]}),
                "invalid label selector: a: for 'in', 'notin' operators, values set can't be empty",
            ),
            (json!([1]), "invalid label selector: expected an object, found [1]"),
        ] {
            assert_eq!(Labels::from_selector(&wrong).unwrap_err().to_string(), message);
        }
        assert!(!Labels::from_map(&json!({})).unwrap().matches(&labels("a=b")));
        assert!(
            Labels::from_map(&json!({"a": "b"}))
                .unwrap()
                .matches_object(&json!({"metadata": {"labels": {"a": "b"}}}))
        );
    }

    #[test]
    fn field_selectors_match_and_unescape() {
        let lookup = |key: &str| labels("metadata.name=a,status.phase=Running").get(key).cloned();
        for (text, expected) in [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==a,status.phase!=Failed", true),
            ("metadata.name!=a", false),
            ("spec.nodeName=", true),
            ("spec.nodeName!=", false),
            (",metadata.name=a,", true),
        ] {
            assert_eq!(Fields::parse(text).unwrap().matches(lookup), expected, "{text}");
        }
        let escaped = Fields::parse(r"reason=a\,b\=c\\d").unwrap();
        assert_eq!(escaped.required("reason"), Some(r"a,b=c\d"));
        for (text, message) in [
            ("metadata.name", "invalid selector: 'metadata.name'; can't understand 'metadata.name'"),
            (r"a=\n", "invalid field selector: invalid escape sequence: \\n"),
            ("a=b=c", "invalid field selector: invalid escape sequence: unescaped character in value: ="),
        ] {
            assert_eq!(Fields::parse(text).unwrap_err().to_string(), message, "{text}");
        }
    }

    #[test]
    fn a_kind_is_selected_by_its_documented_fields_only() {
        let pod = crate::kinds::by_kind("v1", "Pod").unwrap();
        let object = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running", "podIP": "10.0.0.1"}});
        let fields = selectable_fields(pod, &object);
        assert_eq!(fields["spec.nodeName"], "n");
        assert_eq!(fields["spec.hostNetwork"], "false");
        assert_eq!(fields["metadata.namespace"], "b");
        assert!(Fields::parse("spec.nodeName=n,status.phase!=Failed").unwrap().matches_object(pod, &object));
        let wrong = Fields::parse("spec.foo=1").unwrap().check(pod).unwrap_err().to_string();
        assert!(
            wrong.starts_with("field label not supported: spec.foo (Pod can be selected by metadata.name, "),
            "{wrong}"
        );
        let event = crate::kinds::by_kind("v1", "Event").unwrap();
        let object = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "a"}, "source": {"component": "kubelet"}, "type": "Warning"});
        assert!(
            Fields::parse("involvedObject.name=a,source=kubelet,type=Warning")
                .unwrap()
                .matches_object(event, &object)
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_selector_or_an_error_and_never_a_panic(text in "[-a-z0-9!=<>(), ./\\\\ü]{0,40}") {
            let _ = Labels::parse(&text).map(|l| l.matches(&BTreeMap::new()));
            let _ = Fields::parse(&text).map(|f| f.matches(|_| None));
        }

        #[test]
        fn a_requirement_and_its_negation_are_opposites(key in "[a-z]{1,3}", value in "[a-z]{0,3}", other in "[a-z]{0,3}") {
            let labels = BTreeMap::from([(key.clone(), other)]);
            for (yes, no) in [("=", "!="), (" in (", " notin (")] {
                let end = if yes == "=" { "" } else { ")" };
                let yes = Labels::parse(&format!("{key}{yes}{value}{end}")).unwrap();
                let no = Labels::parse(&format!("{key}{no}{value}{end}")).unwrap();
                prop_assert!(yes.matches(&labels) != no.matches(&labels));
            }
        }
    }
}
