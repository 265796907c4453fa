//! The Common Expression Language, as Kubernetes uses it for rules of custom kinds, admission policies and match conditions.
//!
//! Invariant: pure and bounded: every step costs, and an expression that costs too much ends in an error, whatever it says.
//! Invariant: expressions are compiled when they are stored, so that what cannot be read is refused with its author present.

mod eval;
mod functions;
mod parse;
pub mod rules;
mod times;
mod value;

use serde_json::Value;

pub use value::V;

/// The documented limit of one expression's cost, and of all rules of one object together.
pub const EXPRESSION_COST: u64 = 1_000_000;
/// What all rules of one object may cost together.
pub const TOTAL_COST: u64 = 10_000_000;
/// Longer expressions are refused.
const MAX_LENGTH: usize = 64 * 1024;

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CelError {
    /// It cannot be read.
    #[error("compilation failed: ERROR: <input>:1:{column}: {what}")]
    Compile {
        /// Where, from 1.
        column: usize,
        /// What is wrong there.
        what: String,
    },
    /// It has no value for this input.
    #[error("{0}")]
    Evaluate(String),
    /// It costs too much.
    #[error("operation cancelled: actual cost limit exceeded")]
    TooExpensive,
}

/// An expression that can be evaluated.
#[derive(Debug, Clone)]
pub struct Program {
    root: parse::Expr,
}

/// Names and what they stand for.
pub type Variables<'a> = [(&'a str, V<'a>)];

impl Program {
    /// Reads an expression that may use these names.
    ///
    /// # Errors
    /// [`CelError::Compile`].
    pub fn compile(text: &str, names: &[&str]) -> Result<Program, CelError> {
        if text.len() > MAX_LENGTH {
            return Err(CelError::Compile { column: 1, what: "the expression is too long".to_owned() });
        }
        Ok(Program { root: parse::expression(text, names)? })
    }

    /// The value of the expression; what it costs is taken from `budget`.
    ///
    /// # Errors
    /// [`CelError::Evaluate`], [`CelError::TooExpensive`].
    pub fn evaluate<'a>(&'a self, variables: &Variables<'a>, budget: &mut u64) -> Result<V<'a>, CelError> {
        eval::run(&self.root, variables, budget)
    }

    /// The same of an expression that says yes or no.
    ///
    /// # Errors
    /// As [`Program::evaluate`], and when the value is neither.
    pub fn holds(&self, variables: &Variables<'_>, budget: &mut u64) -> Result<bool, CelError> {
        match self.evaluate(variables, budget)?.plain() {
            V::Bool(holds) => Ok(holds),
            other => Err(CelError::Evaluate(format!("expression is no bool but {}", other.type_name()))),
        }
    }

    /// The same of an expression that says a text.
    ///
    /// # Errors
    /// As [`Program::evaluate`], and when the value is no text.
    pub fn says(&self, variables: &Variables<'_>, budget: &mut u64) -> Result<String, CelError> {
        match self.evaluate(variables, budget)?.plain() {
            V::Str(text) => Ok(text.to_string()),
            other => Err(CelError::Evaluate(format!("expression is no string but {}", other.type_name()))),
        }
    }
}

/// A JSON value for an expression.
pub fn json(value: &Value) -> V<'_> {
    V::Json(value)
}

#[cfg(test)]
mod tests;
