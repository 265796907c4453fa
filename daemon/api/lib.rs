//! Objects as JSON, and every rule about them that needs neither clock nor I/O: the table of kinds, the schema table,
//! defaults, validation, patches, selectors, quantities, health, discovery, OpenAPI, tables and error answers.
//!
//! Invariant: pure. The same arguments give the same answer; time is an argument.
//! Invariant: what can be said by the fact tables (`facts/`) is said there and nowhere else.

pub mod cel;
pub mod convert;
pub mod cron;
pub mod custom;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod damage;
pub mod discovery;
pub mod error;
pub mod health;
pub mod kinds;
pub mod legacy;
pub mod limits;
pub mod openapi;
pub mod patch;
pub mod pod;
pub mod proto;
pub mod quantity;
pub mod quota;
pub mod schema;
pub mod security;
pub mod select;
pub mod table;
pub mod validate;
pub mod volumes;
