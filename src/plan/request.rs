//! What a plan is asked to be.

use super::evidence::Calibration;
use super::{Overrides, Policy};
use crate::cost::Target;
use crate::format::{Format, Formats};
use std::fmt;
use std::sync::Arc;

/// What to plan for.
#[derive(Clone, Debug)]
pub struct Request {
    /// How formats are chosen.
    pub policy: Policy,
    /// The narrow format that lists of operations lower to.
    pub low: Format,
    /// The narrow formats that evidence may choose from.
    pub formats: Formats,
    /// What the plan is to be fast on.
    pub target: Target,
    /// Evidence, which policy `auto` goes by; none: by the autocast lists.
    pub calibration: Option<Arc<Calibration>>,
    /// What a user wants otherwise than the policy.
    pub overrides: Overrides,
    /// Find out what other budgets would cost.
    pub frontier: bool,
    /// Whole steps that the search may lower at most; none: as many as a step of its size is worth.
    pub search: Option<usize>,
}

impl Request {
    /// A plan by a policy's lists, with one narrow format.
    pub fn by_lists(policy: Policy, low: Format, target: Target) -> Request {
        Request {
            policy,
            low,
            formats: Formats::from_iter([low]),
            target,
            calibration: None,
            overrides: Overrides::default(),
            frontier: false,
            search: None,
        }
    }

    /// The narrow formats that a plan may use.
    pub fn allowed(&self) -> Formats {
        match self.policy {
            Policy::Fp32 => Formats::NONE,
            Policy::Auto if self.calibration.is_some() => self.formats,
            _ => Formats::from_iter([self.low]),
        }
    }

    /// The same in words: `f16, bf16`, or `f32` where nothing is narrow.
    pub fn narrow(&self) -> String {
        let names: Vec<&str> = self.allowed().iter().map(Format::name).collect();
        if names.is_empty() { Format::F32.name().to_owned() } else { names.join(", ") }
    }

    /// The formats that values may be stored in: those of the plan, and scaled ones where they are asked for by name.
    pub fn stored(&self) -> Formats {
        let scaled = self.target.scaled.iter().copied().collect::<Formats>();
        self.allowed().or(scaled.and(self.overrides.formats()))
    }
}

/// `policy o1 with f16 on sm_90 (NVIDIA H200 SXM)`.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Target { name, device, .. } = &self.target;
        write!(f, "policy {} with {} on {name} ({device})", self.policy, self.narrow())
    }
}
