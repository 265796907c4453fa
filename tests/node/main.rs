//! The whole binary on this machine's kernel, with real kubectl, git and registry.
//!
//! Invariant: every test has nodes of its own (data directory, ports, names), so tests run side by side.
//! Invariant: nothing sleeps for a condition; conditions are looked at until they hold, bounded, and then tell why not.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]

mod access;
mod adopt;
mod bad_input;
mod builds;
mod clients;
mod decisions;
mod defined;
mod demo;
mod down;
mod drift;
mod faults;
mod git;
mod git_remote;
mod idle;
mod image;
mod images;
mod kubectl;
mod kustomize;
mod limits;
mod machine;
mod node;
mod pods;
mod push;
mod rollout;
mod saves;
mod scheduling;
mod start;
mod taints;
mod workloads;
