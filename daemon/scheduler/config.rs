//! What can be chosen about scheduling.

use serde::{Deserialize, Serialize};

/// `[scheduler]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which of several nodes that can take a pod gets it.
    pub strategy: Strategy,
}

/// How the room on nodes counts when one is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The emptier node: pods are spread.
    #[default]
    LeastAllocated,
    /// The fuller node: pods are packed, and other nodes stay free.
    MostAllocated,
}
