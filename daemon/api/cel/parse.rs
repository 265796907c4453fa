//! Text to a tree. Precedence as the language's specification has it.
//!
//! Invariant: names are checked here: a name or function that does not exist never reaches evaluation.

use super::CelError;
use super::functions;

/// Deeper expressions are refused.
const MAX_DEPTH: usize = 100;
/// Taller trees are refused: `a + b + c` grows to the left, and whoever walks it goes down as many steps as it has signs.
const MAX_HEIGHT: usize = 250;

/// A node.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expr {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Str(String),
    Name(String),
    List(Vec<Expr>),
    Map(Vec<(Expr, Expr)>),
    /// A field; optional with `.?`.
    Select(Box<Expr>, String, bool),
    Index(Box<Expr>, Box<Expr>, bool),
    /// `has(a.b)`.
    Has(Box<Expr>, String),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Condition(Box<Expr>, Box<Expr>, Box<Expr>),
    Binary(&'static str, Box<Expr>, Box<Expr>),
    /// `all`, `exists`, `exists_one`, `filter`, `map` over a list or the keys of a map.
    Each {
        of: &'static str,
        over: Box<Expr>,
        name: String,
        first: Box<Expr>,
        second: Option<Box<Expr>>,
    },
    Bind(String, Box<Expr>, Box<Expr>),
    Call(String, Option<Box<Expr>>, Vec<Expr>),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Int(i64),
    Uint(u64),
    Double(f64),
    Str(String),
    Name(String),
    Sign(&'static str),
    End,
}

const SIGNS: &[&str] = &[
    "&&", "||", "==", "!=", "<=", ">=", ".?", "[?", "(", ")", "[", "]", "{", "}", ".", ",", ":", "?", "<",
    ">", "+", "-", "*", "/", "%", "!",
];

pub(super) fn expression(text: &str, names: &[&str]) -> Result<Expr, CelError> {
    let tokens = tokens(text)?;
    let scope = names.iter().map(|name| (*name).to_owned()).collect();
    let mut parser = Parser { tokens, at: 0, depth: 0, height: 0, scope };
    let root = parser.condition()?;
    match parser.peek() {
        Token::End => Ok(root),
        other => Err(parser.wrong(format!("Syntax error: unexpected {}", told(other)))),
    }
}

fn told(token: &Token) -> String {
    match token {
        Token::End => "end of input".to_owned(),
        Token::Sign(sign) => format!("{sign:?}"),
        Token::Name(name) => format!("{name:?}"),
        _ => "literal".to_owned(),
    }
}

fn tokens(text: &str) -> Result<Vec<(Token, usize)>, CelError> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let column = at + 1;
        let wrong = |what: &str| CelError::Compile { column, what: format!("Syntax error: {what}") };
        let rest = &text[at..];
        if c.is_whitespace() {
            at += c.len_utf8();
        } else if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if c.is_ascii_digit() || (c == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit())) {
            let (token, length) = number(rest).ok_or_else(|| wrong("invalid number"))?;
            tokens.push((token, column));
            at += length;
        } else if let Some((token, length)) = string(rest) {
            tokens.push((token.ok_or_else(|| wrong("invalid string"))?, column));
            at += length;
        } else if c.is_ascii_alphabetic() || c == '_' {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            tokens.push((Token::Name(rest[..end].to_owned()), column));
            at += end;
        } else if c == '`' {
            let end = rest[1..].find('`').ok_or_else(|| wrong("unterminated identifier"))?;
            tokens.push((Token::Name(rest[1..=end].to_owned()), column));
            at += end + 2;
        } else {
            let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
            let sign = sign.ok_or_else(|| wrong(&format!("token recognition error at: '{c}'")))?;
            tokens.push((Token::Sign(sign), column));
            at += sign.len();
        }
    }
    tokens.push((Token::End, text.len() + 1));
    Ok(tokens)
}

fn number(text: &str) -> Option<(Token, usize)> {
    if let Some(hex) = text.strip_prefix("0x") {
        let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
        return Some((Token::Int(i64::from_str_radix(&hex[..end], 16).ok()?), end + 2));
    }
    let bytes = text.as_bytes();
    let mut end = 0;
    let mut double = false;
    while end < bytes.len() {
        match bytes[end] {
            b'0'..=b'9' => {}
            b'.' if !double && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) => double = true,
            b'e' | b'E' if end > 0 => {
                double = true;
                if matches!(bytes.get(end + 1), Some(b'+' | b'-')) {
                    end += 1;
                }
            }
            _ => break,
        }
        end += 1;
    }
    let digits = &text[..end];
    if double {
        return Some((Token::Double(digits.parse().ok()?), end));
    }
    if text[end..].starts_with(['u', 'U']) {
        return Some((Token::Uint(digits.parse().ok()?), end + 1));
    }
    // The least number there is has no positive counterpart: it is read as its own negative.
    let int = digits.parse::<i64>().ok().or_else(|| (digits == "9223372036854775808").then_some(i64::MIN));
    Some((Token::Int(int?), end))
}

/// A quoted text, raw or not, in one or three quotes; none when the text does not begin with one.
fn string(text: &str) -> Option<(Option<Token>, usize)> {
    let prefix = text.len() - text.trim_start_matches(['r', 'R']).len();
    let (raw, body) = match prefix {
        0 => (false, text),
        1 => (true, &text[1..]),
        _ => return None,
    };
    let quote = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quote| body.starts_with(quote))?;
    let inner = &body[quote.len()..];
    let mut out = String::new();
    let mut at = 0;
    while at < inner.len() {
        if inner[at..].starts_with(quote) {
            return Some((Some(Token::Str(out)), prefix + quote.len() * 2 + at));
        }
        let c = inner[at..].chars().next()?;
        if c == '\\' && !raw {
            let Some((c, length)) = escape(&inner[at + 1..]) else { return Some((None, 0)) };
            out.push(c);
            at += 1 + length;
        } else {
            out.push(c);
            at += c.len_utf8();
        }
    }
    Some((None, 0))
}

fn escape(text: &str) -> Option<(char, usize)> {
    let c = text.chars().next()?;
    let hex = |digits: usize| {
        let code = u32::from_str_radix(text.get(1..=digits)?, 16).ok()?;
        Some((char::from_u32(code)?, digits + 1))
    };
    Some(match c {
        'n' => ('\n', 1),
        't' => ('\t', 1),
        'r' => ('\r', 1),
        'a' => ('\x07', 1),
        'b' => ('\x08', 1),
        'f' => ('\x0c', 1),
        'v' => ('\x0b', 1),
        'x' | 'X' => return hex(2),
        'u' => return hex(4),
        'U' => return hex(8),
        '\\' | '"' | '\'' | '`' | '?' => (c, 1),
        _ => return None,
    })
}

/// One tree of many terms, no taller than it must be: the order of evaluation stays.
fn balanced(mut terms: Vec<Expr>, join: fn(Box<Expr>, Box<Expr>) -> Expr) -> Expr {
    let right = terms.split_off(terms.len().div_ceil(2));
    match (terms.len(), right.is_empty()) {
        (1, true) => terms.remove(0),
        _ => join(Box::new(balanced(terms, join)), Box::new(balanced(right, join))),
    }
}

/// `Object`, `Object.spec.template`, `JSONPatch`: the types of what mutations make.
fn is_made_type(value: &Expr) -> bool {
    match value {
        Expr::Name(name) => matches!(name.as_str(), "Object" | "JSONPatch"),
        Expr::Select(of, _, false) => is_made_type(of),
        _ => false,
    }
}

struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
    /// How tall the tree of the condition at hand can be: its own links, and its tallest inner condition.
    height: usize,
    scope: Vec<String>,
}

type Parsed = Result<Expr, CelError>;

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    fn next(&mut self) -> Token {
        let token = self.tokens[self.at].0.clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn takes(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Token::Sign(known) if *known == sign);
        if found {
            self.next();
        }
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), CelError> {
        if self.takes(sign) {
            return Ok(());
        }
        Err(self.wrong(format!("Syntax error: expected {sign:?}, found {}", told(self.peek()))))
    }

    fn wrong(&self, what: String) -> CelError {
        CelError::Compile { column: self.tokens[self.at].1, what }
    }

    /// Counts a node above those that were read.
    fn link(&mut self) -> Result<(), CelError> {
        self.height += 1;
        if self.height > MAX_HEIGHT {
            return Err(self.wrong("expression has too many operations in a row".to_owned()));
        }
        Ok(())
    }

    fn condition(&mut self) -> Parsed {
        self.apart(Parser::condition_alone)
    }

    /// Reads a part whose links do not add to those beside it.
    fn apart(&mut self, read: fn(&mut Parser) -> Parsed) -> Parsed {
        let outer = std::mem::take(&mut self.height);
        let parsed = read(self)?;
        self.link()?;
        self.height = self.height.max(outer);
        Ok(parsed)
    }

    fn condition_alone(&mut self) -> Parsed {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.wrong("expression is nested too deeply".to_owned()));
        }
        let test = self.or()?;
        let parsed = if self.takes("?") {
            let yes = self.or()?;
            self.expect(":")?;
            let no = self.condition()?;
            Expr::Condition(Box::new(test), Box::new(yes), Box::new(no))
        } else {
            test
        };
        self.depth -= 1;
        Ok(parsed)
    }

    fn or(&mut self) -> Parsed {
        let mut terms = vec![self.and()?];
        while self.takes("||") {
            terms.push(self.and()?);
        }
        Ok(balanced(terms, Expr::Or))
    }

    fn and(&mut self) -> Parsed {
        let mut terms = vec![self.apart(Parser::relation)?];
        while self.takes("&&") {
            terms.push(self.apart(Parser::relation)?);
        }
        Ok(balanced(terms, Expr::And))
    }

    fn relation(&mut self) -> Parsed {
        let mut left = self.sum()?;
        loop {
            let sign = match self.peek() {
                Token::Sign(sign @ ("==" | "!=" | "<" | "<=" | ">" | ">=")) => *sign,
                Token::Name(name) if name == "in" => "in",
                _ => return Ok(left),
            };
            self.next();
            self.link()?;
            left = Expr::Binary(sign, Box::new(left), Box::new(self.sum()?));
        }
    }

    fn sum(&mut self) -> Parsed {
        let mut left = self.product()?;
        while let Token::Sign(sign @ ("+" | "-")) = *self.peek() {
            self.next();
            self.link()?;
            left = Expr::Binary(sign, Box::new(left), Box::new(self.product()?));
        }
        Ok(left)
    }

    fn product(&mut self) -> Parsed {
        let mut left = self.unary()?;
        while let Token::Sign(sign @ ("*" | "/" | "%")) = *self.peek() {
            self.next();
            self.link()?;
            left = Expr::Binary(sign, Box::new(left), Box::new(self.unary()?));
        }
        Ok(left)
    }

    fn unary(&mut self) -> Parsed {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.wrong("expression is nested too deeply".to_owned()));
        }
        let parsed = if self.takes("!") {
            Expr::Not(Box::new(self.unary()?))
        } else if self.takes("-") {
            match self.unary()? {
                Expr::Int(int) => Expr::Int(int.wrapping_neg()),
                Expr::Double(double) => Expr::Double(-double),
                other => Expr::Negative(Box::new(other)),
            }
        } else {
            self.member()?
        };
        self.depth -= 1;
        Ok(parsed)
    }

    fn member(&mut self) -> Parsed {
        let mut value = self.primary()?;
        while matches!(self.peek(), Token::Sign("." | ".?" | "[" | "[?"))
            || (is_made_type(&value) && matches!(self.peek(), Token::Sign("{")))
        {
            self.link()?;
            if self.takes(".") {
                let Token::Name(name) = self.next() else {
                    return Err(self.wrong("Syntax error: expected a name after '.'".to_owned()));
                };
                value = if self.takes("(") {
                    self.method(value, name)?
                } else {
                    Expr::Select(Box::new(value), name, false)
                };
            } else if self.takes(".?") {
                let Token::Name(name) = self.next() else {
                    return Err(self.wrong("Syntax error: expected a name after '.?'".to_owned()));
                };
                value = Expr::Select(Box::new(value), name, true);
            } else if is_made_type(&value) && self.takes("{") {
                value = self.made()?;
            } else if self.takes("[") {
                let index = self.condition()?;
                self.expect("]")?;
                value = Expr::Index(Box::new(value), Box::new(index), false);
            } else {
                self.expect("[?")?;
                let index = self.condition()?;
                self.expect("]")?;
                value = Expr::Index(Box::new(value), Box::new(index), true);
            }
        }
        Ok(value)
    }

    /// The fields of an object that is made, after its opening brace: a map with names for keys.
    fn made(&mut self) -> Parsed {
        let mut fields = Vec::new();
        while !self.takes("}") {
            if !fields.is_empty() {
                self.expect(",")?;
                if self.takes("}") {
                    break;
                }
            }
            let Token::Name(name) = self.next() else {
                return Err(self.wrong("Syntax error: expected the name of a field".to_owned()));
            };
            self.expect(":")?;
            fields.push((Expr::Str(name), self.condition()?));
        }
        Ok(Expr::Map(fields))
    }

    /// A call on a value, after its opening parenthesis; the macros among them.
    fn method(&mut self, target: Expr, name: String) -> Parsed {
        const EACH: [&str; 5] = ["all", "exists", "exists_one", "filter", "map"];
        if let (Expr::Name(space), "bind") = (&target, name.as_str())
            && space == "cel"
        {
            let variable = self.variable()?;
            let init = self.condition()?;
            self.expect(",")?;
            let body = self.within(&variable)?;
            self.expect(")")?;
            return Ok(Expr::Bind(variable, Box::new(init), Box::new(body)));
        }
        let is_macro = matches!(self.tokens.get(self.at + 1), Some((Token::Sign(","), _)));
        let of = EACH.iter().copied().chain(["existsOne"]).find(|each| *each == name);
        if let (Some(of), true) = (of, is_macro) {
            let variable = self.variable()?;
            let first = self.within(&variable)?;
            let second = if self.takes(",") { Some(Box::new(self.within(&variable)?)) } else { None };
            self.expect(")")?;
            let of = if of == "existsOne" { "exists_one" } else { of };
            return Ok(Expr::Each {
                of,
                over: Box::new(target),
                name: variable,
                first: Box::new(first),
                second,
            });
        }
        let arguments = self.arguments()?;
        // Functions of a name space, such as sets.contains, look like calls on a name.
        if let Expr::Name(space) = &target
            && functions::is_space(space)
        {
            return self.call(format!("{space}.{name}"), None, arguments);
        }
        self.call(name, Some(Box::new(target)), arguments)
    }

    fn call(&self, name: String, target: Option<Box<Expr>>, arguments: Vec<Expr>) -> Parsed {
        if functions::exists(&name, target.is_some()) {
            return Ok(Expr::Call(name, target, arguments));
        }
        Err(self.wrong(format!("undeclared reference to '{name}' (in container '')")))
    }

    /// The variable of a macro, and the comma after it.
    fn variable(&mut self) -> Result<String, CelError> {
        match self.next() {
            Token::Name(name) => self.expect(",").map(|()| name),
            _ => Err(self.wrong("argument is not an identifier".to_owned())),
        }
    }

    /// An expression in which one more name is known.
    fn within(&mut self, name: &str) -> Parsed {
        self.scope.push(name.to_owned());
        let parsed = self.condition();
        self.scope.pop();
        parsed
    }

    fn arguments(&mut self) -> Result<Vec<Expr>, CelError> {
        let mut arguments = Vec::new();
        while !self.takes(")") {
            if !arguments.is_empty() {
                self.expect(",")?;
            }
            arguments.push(self.condition()?);
        }
        Ok(arguments)
    }

    fn primary(&mut self) -> Parsed {
        let before = self.at;
        match self.next() {
            Token::Int(int) => Ok(Expr::Int(int)),
            Token::Uint(uint) => Ok(Expr::Uint(uint)),
            Token::Double(double) => Ok(Expr::Double(double)),
            Token::Str(text) => Ok(Expr::Str(text)),
            Token::Name(name) => self.named(name, before),
            Token::Sign("(") => {
                let inner = self.condition()?;
                self.expect(")").map(|()| inner)
            }
            Token::Sign("[") => {
                let mut items = Vec::new();
                while !self.takes("]") {
                    if !items.is_empty() {
                        self.expect(",")?;
                        if self.takes("]") {
                            break;
                        }
                    }
                    items.push(self.condition()?);
                }
                Ok(Expr::List(items))
            }
            Token::Sign("{") => {
                let mut pairs = Vec::new();
                while !self.takes("}") {
                    if !pairs.is_empty() {
                        self.expect(",")?;
                        if self.takes("}") {
                            break;
                        }
                    }
                    let key = self.condition()?;
                    self.expect(":")?;
                    pairs.push((key, self.condition()?));
                }
                Ok(Expr::Map(pairs))
            }
            other => {
                self.at = before;
                Err(self.wrong(format!("Syntax error: unexpected {}", told(&other))))
            }
        }
    }

    fn named(&mut self, name: String, at: usize) -> Parsed {
        match name.as_str() {
            "true" => return Ok(Expr::Bool(true)),
            "false" => return Ok(Expr::Bool(false)),
            "null" => return Ok(Expr::Null),
            _ => {}
        }
        if self.takes("(") {
            let mut arguments = self.arguments()?;
            if name == "has" {
                return match arguments.pop() {
                    Some(Expr::Select(of, field, _)) if arguments.is_empty() => Ok(Expr::Has(of, field)),
                    _ => Err(self.wrong("invalid argument to has() macro".to_owned())),
                };
            }
            return self.call(name, None, arguments);
        }
        let known = self.scope.contains(&name) || functions::is_type(&name);
        let space = functions::is_space(&name) && matches!(self.peek(), Token::Sign("."));
        if known || space {
            return Ok(Expr::Name(name));
        }
        self.at = at;
        Err(self.wrong(format!("undeclared reference to '{name}' (in container '')")))
    }
}
