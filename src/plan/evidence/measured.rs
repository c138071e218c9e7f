//! What a plan was measured to do to the gradients, or to a model's outputs.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A single result may get this many times the budget, as long as all together keep to it.
const WORST: f64 = 3.0;

/// Errors of a plan's results against those of f32, on batches that nothing was chosen by, where there are such. Results are
/// gradients, by parameter; in inference a model's outputs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// How many the plan ran on.
    pub batches: usize,
    /// The batches are others than those that formats were chosen by; too little data leaves none.
    pub fresh: bool,
    /// Root mean square error of each result, in budgets.
    #[serde(alias = "parameters")]
    pub results: BTreeMap<String, f64>,
    /// Values that were estimated to fit the budget and stay in f32 all the same, because the plans that rounded them were
    /// measured to be over it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given_up: Vec<String>,
}

impl Measured {
    /// What it was measured on, in words.
    pub fn on(&self) -> String {
        let plural = if self.batches == 1 { "batch" } else { "batches" };
        match self.fresh {
            true => format!("{} held-out {plural}", self.batches),
            false => format!("the same {} {plural}, for want of more data", self.batches),
        }
    }

    /// What stays in f32 because of what was measured, in a line; none if nothing does.
    pub fn given_up_text(&self) -> Option<String> {
        let shown: Vec<String> = self.given_up.iter().take(5).map(|name| format!("`{name}`")).collect();
        let rest = match self.given_up.len().saturating_sub(shown.len()) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let kept = match self.keeps_budget() {
            true => "plans that rounded them were over the budget",
            false => "even so the plan is over it, by f32's own rounding",
        };
        (!shown.is_empty()).then(|| format!("kept in f32, for {kept}: {}{rest}", shown.join(", ")))
    }

    /// Root mean square over the results, in budgets.
    pub fn overall(&self) -> f64 {
        let squares: f64 = self.results.values().map(|e| e * e).sum();
        (squares / self.results.len().max(1) as f64).sqrt()
    }

    /// The result that suffers most.
    pub fn worst(&self) -> Option<(&str, f64)> {
        self.results.iter().map(|(p, &e)| (p.as_str(), e)).max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// Is it within the budget, and no result far beyond?
    pub fn keeps_budget(&self) -> bool {
        self.overall() <= 1.0 && self.worst().is_none_or(|(_, e)| e <= WORST)
    }
}
