//! A tree to a value. Every node costs one, and walking lists and texts costs what they are long.

use std::borrow::Cow;
use std::sync::Arc;

use super::parse::Expr;
use super::value::V;
use super::{CelError, Variables, functions};

pub(super) type Result<T> = std::result::Result<T, CelError>;

/// Names in scope, the innermost last, and what is left to spend.
pub(super) struct Run<'a, 'b> {
    names: Vec<(Cow<'a, str>, V<'a>)>,
    budget: &'b mut u64,
}

pub(super) fn run<'a>(root: &'a Expr, variables: &Variables<'a>, budget: &mut u64) -> Result<V<'a>> {
    let names = variables.iter().map(|(name, value)| (Cow::Borrowed(*name), value.clone())).collect();
    Run { names, budget }.of(root)
}

pub(super) fn error<T>(what: impl Into<String>) -> Result<T> {
    Err(CelError::Evaluate(what.into()))
}

impl<'a> Run<'a, '_> {
    /// Takes what something costs.
    pub(super) fn pay(&mut self, cost: usize) -> Result<()> {
        let left = self.budget.checked_sub(cost as u64);
        *self.budget = left.unwrap_or(0);
        if left.is_some() { Ok(()) } else { Err(CelError::TooExpensive) }
    }

    fn of(&mut self, expr: &'a Expr) -> Result<V<'a>> {
        self.pay(1)?;
        match expr {
            Expr::Null => Ok(V::Null),
            Expr::Bool(bool) => Ok(V::Bool(*bool)),
            Expr::Int(int) => Ok(V::Int(*int)),
            Expr::Uint(uint) => Ok(V::Uint(*uint)),
            Expr::Double(double) => Ok(V::Double(*double)),
            Expr::Str(text) => Ok(V::Str(Cow::Borrowed(text))),
            Expr::Name(name) => self.name(name),
            Expr::List(items) => {
                let items: Result<Vec<V<'a>>> = items.iter().map(|item| self.of(item)).collect();
                Ok(V::List(Arc::new(items?)))
            }
            Expr::Map(pairs) => {
                let mut map = Vec::new();
                for (key, value) in pairs {
                    map.push((self.of(key)?.plain(), self.of(value)?));
                }
                Ok(V::Map(Arc::new(map)))
            }
            Expr::Select(of, field, optional) => {
                let of = self.of(of)?;
                select(of, &V::Str(Cow::Borrowed(field)), *optional)
            }
            Expr::Index(of, index, optional) => {
                let (of, index) = (self.of(of)?, self.of(index)?.plain());
                select(of, &index, *optional)
            }
            Expr::Has(of, field) => self.has(of, field),
            Expr::Not(of) => match self.of(of)?.plain() {
                V::Bool(bool) => Ok(V::Bool(!bool)),
                other => error(format!("no such overload: !{}", other.type_name())),
            },
            Expr::Negative(of) => match self.of(of)?.plain() {
                V::Int(int) => int.checked_neg().map(V::Int).map_or_else(|| error("integer overflow"), Ok),
                V::Double(double) => Ok(V::Double(-double)),
                other => error(format!("no such overload: -{}", other.type_name())),
            },
            Expr::And(a, b) => self.both(a, b, false),
            Expr::Or(a, b) => self.both(a, b, true),
            Expr::Condition(test, yes, no) => match self.of(test)?.plain() {
                V::Bool(true) => self.of(yes),
                V::Bool(false) => self.of(no),
                other => error(format!("no such overload: {} ? _ : _", other.type_name())),
            },
            Expr::Binary(sign, a, b) => {
                let (a, b) = (self.of(a)?.plain(), self.of(b)?.plain());
                self.pay(a.size().unwrap_or(0).min(b.size().unwrap_or(0)) / 10)?;
                functions::binary(self, sign, &a, &b)
            }
            Expr::Each { of, over, name, first, second } => {
                self.each(of, over, name, (first, second.as_deref()))
            }
            Expr::Bind(name, init, body) => {
                let value = self.of(init)?;
                self.with(name, value, body)
            }
            Expr::Call(name, target, arguments) => {
                let target = target.as_ref().map(|target| self.of(target)).transpose()?;
                let arguments: Result<Vec<V<'a>>> =
                    arguments.iter().map(|one| self.of(one).map(V::plain)).collect();
                functions::call(self, name, target.map(V::plain), arguments?)
            }
        }
    }

    fn name(&self, name: &'a str) -> Result<V<'a>> {
        if let Some((_, value)) = self.names.iter().rev().find(|(known, _)| known == name) {
            return Ok(value.clone());
        }
        functions::type_named(name)
            .map_or_else(|| error(format!("no such attribute: {name}")), |of| Ok(V::Type(of)))
    }

    fn has(&mut self, of: &'a Expr, field: &'a str) -> Result<V<'a>> {
        let of = match self.of(of)? {
            V::Optional(None) => return Ok(V::Bool(false)),
            V::Optional(Some(of)) => *of,
            of => of,
        };
        if of.keys().is_none() {
            return error(format!("no such overload: has({})", of.type_name()));
        }
        Ok(V::Bool(of.get(&V::Str(Cow::Borrowed(field))).is_some()))
    }

    /// `&&` (decided by false) and `||` (decided by true): what decides hides the error of the other side.
    fn both(&mut self, a: &'a Expr, b: &'a Expr, decides: bool) -> Result<V<'a>> {
        let bool = |value: Result<V<'a>>| match value?.plain() {
            V::Bool(bool) => Ok(bool),
            other => error(format!("no such overload: {} with a logical operator", other.type_name())),
        };
        let first = bool(self.of(a));
        if first == Ok(decides) {
            return Ok(V::Bool(decides));
        }
        if first == Err(CelError::TooExpensive) {
            return Err(CelError::TooExpensive);
        }
        let second = bool(self.of(b))?;
        if second == decides { Ok(V::Bool(decides)) } else { first.map(|_| V::Bool(!decides)) }
    }

    fn with(&mut self, name: &'a str, value: V<'a>, body: &'a Expr) -> Result<V<'a>> {
        self.names.push((Cow::Borrowed(name), value));
        let result = self.of(body);
        self.names.pop();
        result
    }

    fn each(
        &mut self,
        of: &str,
        over: &'a Expr,
        name: &'a str,
        (first, second): (&'a Expr, Option<&'a Expr>),
    ) -> Result<V<'a>> {
        let over = self.of(over)?;
        let Some(items) = over.items().or_else(|| over.keys()) else {
            return error(format!("no such overload: {}.{of}()", over.type_name()));
        };
        let (mut count, mut list, mut failed) = (0, Vec::new(), None);
        for item in items {
            self.pay(1)?;
            let found = self.with(name, item.clone(), first);
            if of == "map" && second.is_none() {
                list.push(found?);
                continue;
            }
            let holds = match found.map(V::plain) {
                Ok(V::Bool(holds)) => holds,
                Ok(other) => return error(format!("no such overload: {of} of {}", other.type_name())),
                Err(CelError::TooExpensive) => return Err(CelError::TooExpensive),
                // Another item may decide; if none does, this is the answer.
                Err(why) if matches!(of, "all" | "exists") => {
                    failed.get_or_insert(why);
                    continue;
                }
                Err(why) => return Err(why),
            };
            match (of, holds) {
                ("all", false) => return Ok(V::Bool(false)),
                ("exists", true) => return Ok(V::Bool(true)),
                ("filter", true) => list.push(item),
                ("map", true) => {
                    if let Some(second) = second {
                        list.push(self.with(name, item, second)?);
                    }
                }
                _ => count += usize::from(holds),
            }
        }
        match (of, failed) {
            (_, Some(why)) => Err(why),
            ("all", _) => Ok(V::Bool(true)),
            ("exists", _) => Ok(V::Bool(false)),
            ("exists_one", _) => Ok(V::Bool(count == 1)),
            _ => Ok(V::List(Arc::new(list))),
        }
    }
}

fn select<'a>(of: V<'a>, key: &V<'a>, optional: bool) -> Result<V<'a>> {
    let (of, optional) = match of {
        V::Optional(None) => return Ok(V::Optional(None)),
        V::Optional(Some(of)) => (*of, true),
        of => (of, optional),
    };
    let found = match (of.items(), key.clone().plain()) {
        (Some(items), V::Int(at)) => usize::try_from(at).ok().and_then(|at| items.get(at).cloned()),
        (None, key) => of.get(&key),
        _ => None,
    };
    match found {
        Some(value) if optional => Ok(V::Optional(Some(Box::new(value)))),
        Some(value) => Ok(value),
        None if optional => Ok(V::Optional(None)),
        None if of.items().is_some() => error(format!("index out of bounds: {}", key.text())),
        None => error(format!("no such key: {}", key.text())),
    }
}
