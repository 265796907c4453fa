//! The image store as its users see it: real files, real overlay mounts, a registry in the test's own process.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]

#[path = "images/build.rs"]
mod build;
#[path = "images/fixture.rs"]
mod fixture;
#[path = "images/layers.rs"]
mod layers;
#[path = "images/registry.rs"]
mod registry;
#[path = "images/shelf.rs"]
mod shelf;
