//! Planning by evidence: calibrate, plan, measure the plan on batches it was not chosen by, and tighten where it adds more
//! noise than it may.

use super::calibrate::{Effort, Laboratory, Trial};
use super::compile::{Compiled, Settings};
use super::gradients::with_gradients;
use super::subject::Subject;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::model::{Model, Weights};
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
    let subject = Subject::training(&before, model, rules, data, seed, effort.batches, &|| progress(Stage::Ran))?;
    let mut lab = Laboratory::new(&before, subject, data, seed, effort, &|| progress(Stage::Ran))?;
    within_budget(&mut lab, &mut settings, effort.budget, progress, |settings| {
        let compiled = settings.compile(model, rules, None)?;
        let (graph, outputs) = with_gradients(&compiled.planned, &compiled.step, &compiled.gradient_of)?;
        Ok((compiled, Trial { graph, outputs, constants: Weights::new() }))
    })
}

impl AsMut<Planned> for Compiled {
    fn as_mut(&mut self) -> &mut Planned {
        &mut self.planned
    }
}

/// Plans by evidence and measures what comes out, more strictly until it keeps to the budget.
pub(super) fn within_budget<T: AsMut<Planned>>(
    lab: &mut Laboratory,
    settings: &mut Settings,
    budget: Budget,
    progress: &dyn Fn(Stage),
    mut plan: impl FnMut(&Settings) -> Result<(T, Trial)>,
) -> Result<T> {
    for attempt in 1.. {
        let calibration = lab.calibration(&|| progress(Stage::Ran))?;
        settings.recipe.scaler.init = calibration.loss_scale;
        settings.calibration = Some(Arc::new(calibration));
        progress(Stage::Planning);
        let (mut out, trial) = plan(settings)?;
        progress(Stage::Measuring);
        let measured = lab.measure(&trial)?;
        if measured.keeps_budget() {
            out.as_mut().measured = Some(measured);
            return Ok(out);
        }
        if attempt == ATTEMPTS {
            return Err(over_budget(out.as_mut(), &measured, budget));
        }
        lab.tighten(&measured);
        progress(Stage::Tightening);
    }
    unreachable!("the last attempt returns")
}

fn over_budget(planned: &Planned, measured: &Measured, budget: Budget) -> Error {
    let (worst, error) = measured.worst().unwrap_or(("", 0.0));
    let low: Vec<String> = planned.noise.iter().take(5).map(|(name, f, _)| format!("`{name}` to {f}")).collect();
    Error::Request(format!(
        "no plan keeps to the budget ({budget}): the last adds {:.1} times as much noise, {error:.1} times in {}; what it still rounds: {}. Allow more with --budget, or wider formats with --formats",
        measured.overall(),
        budget.result(worst),
        if low.is_empty() { "nothing that was probed".to_owned() } else { low.join(", ") }
    ))
}
