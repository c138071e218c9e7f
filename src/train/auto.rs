//! Planning by evidence: calibrate, plan, measure the plan on batches it was not chosen by, and tighten where it adds more
//! noise than it may.

use super::calibrate::{Effort, Laboratory};
use super::compile::{Compiled, Settings};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::model::Model;
use crate::plan::Policy;
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
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let calibration = lab.calibration(&|| progress(Stage::Ran))?;
        settings.recipe.scaler.init = calibration.loss_scale;
        settings.calibration = Some(Arc::new(calibration));
        progress(Stage::Planning);
        let mut compiled = settings.compile(model, rules, None)?;
        progress(Stage::Measuring);
        let measured = lab.measure(&compiled)?;
        let keeps = measured.keeps_budget();
        lab.tighten(&measured);
        compiled.planned.measured = Some(measured);
        if keeps {
            return Ok(compiled);
        }
        progress(Stage::Tightening);
        last = Some(compiled);
    }
    let compiled = last.expect("there was an attempt");
    let measured = compiled.planned.measured.as_ref().expect("it was measured");
    let (worst, error) = measured.worst().unwrap_or(("", 0.0));
    let noise = compiled.planned.noise.iter().take(5);
    let low: Vec<String> = noise.map(|(name, format, _)| format!("`{name}` to {format}")).collect();
    Err(Error::Request(format!(
        "no plan keeps to the budget ({}): the last adds {:.1} times as much noise, {error:.1} times in the gradient of `{worst}`; what it still rounds: {}. Allow more with --budget, or wider formats with --formats",
        effort.budget,
        measured.overall(),
        if low.is_empty() { "nothing in the two passes".to_owned() } else { low.join(", ") }
    )))
}
