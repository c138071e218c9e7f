//! Planning by evidence: calibrate, plan, measure the plan on batches it was not chosen by, and tighten where it adds more
//! noise than it may.

use super::calibrate::{Effort, Laboratory};
use super::compile::{Compiled, Settings};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::model::Model;
use crate::plan::{Budget, Measured, Planned, Policy};
use crate::rewrite::RuleSet;
use std::sync::Arc;

/// Plans that are tried before giving up.
const ATTEMPTS: usize = 4;

/// How far planning has come, for those who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// One of [`Laboratory::ticks`] runs of the step is done.
    Ran,
    Planning,
    Measuring,
    /// The plan added more noise than it may.
    Tightening,
}

/// Compiles a model under policy `auto` with formats chosen by what the data shows.
///
/// # Errors
/// Where no plan keeps to the budget: says what still adds the most noise.
pub fn compile_by_evidence(
    settings: &Settings,
    model: &Model,
    rules: &RuleSet,
    data: &Dataset,
    seed: u64,
    effort: Effort,
    progress: &dyn Fn(Stage),
) -> Result<Compiled> {
    let mut settings = Settings { policy: Policy::Auto, calibration: None, ..settings.clone() };
    // A step with f16 in it needs a loss scale.
    let formats = settings.formats();
    settings.low = if formats.contains(&Format::F16) { Format::F16 } else { *formats.first().unwrap_or(&Format::Bf16) };
    let before = settings.clone();
    let mut lab = Laboratory::new(&before, model, rules, data, seed, effort, &|| progress(Stage::Ran))?;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let calibration = lab.calibration(&|| progress(Stage::Ran))?;
        settings.recipe.scaler.init = calibration.loss_scale;
        settings.calibration = Some(Arc::new(calibration));
        progress(Stage::Planning);
        let mut compiled = settings.compile(model, rules, None)?;
        progress(Stage::Measuring);
        let measured = lab.measure(&compiled)?;
        if measured.keeps_budget() {
            compiled.planned.measured = Some(measured);
            return Ok(compiled);
        }
        if attempt == ATTEMPTS {
            return Err(over_budget(&compiled.planned, &measured, effort.budget));
        }
        lab.tighten(&measured);
        progress(Stage::Tightening);
    }
}

fn over_budget(planned: &Planned, measured: &Measured, budget: Budget) -> Error {
    let (worst, error) = measured.worst().unwrap_or(("", 0.0));
    let low: Vec<String> = planned.noise.iter().take(5).map(|(name, f, _)| format!("`{name}` to {f}")).collect();
    Error::Request(format!(
        "no plan keeps to the budget ({budget}): the last adds {:.1} times as much noise, {error:.1} times in the gradient of `{worst}`; what it still rounds: {}. Allow more with --budget, or wider formats with --formats",
        measured.overall(),
        if low.is_empty() { "nothing in the two passes".to_owned() } else { low.join(", ") }
    ))
}
