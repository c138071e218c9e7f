//! Planning by evidence: calibrate, plan, measure the plan on batches it was not chosen by, and tighten where it adds more
//! noise than it may.

use super::bench::Bench;
use super::calibrate::{Effort, Laboratory, Trial};
use super::compile::{Compiled, Settings};
use super::gradients::with_gradients;
use super::subject::Subject;
use crate::error::Result;
use crate::format::Format;
use crate::model::{Model, Weights};
use crate::plan::{Calibration, Planned, Policy};
use crate::rewrite::RuleSet;
use std::sync::Arc;

/// Plans that are tried before everything that adds noise stays in f32.
const ATTEMPTS: usize = 5;

/// How far planning has come, for those who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// One of [`Laboratory::ticks`] runs of the step is done.
    Ran,
    /// A plan is being searched for.
    Planning,
    /// A plan runs on held-out batches.
    Measuring,
    /// The plan added more noise than it may.
    Tightening,
}

/// Compiles a model under policy `auto` with formats chosen by what the data shows.
///
/// # Errors
/// Where there is nothing to calibrate by: too little data, gradients that are all zero or not finite.
pub fn compile_by_evidence(
    settings: &Settings,
    model: &Model,
    rules: &RuleSet,
    bench: Bench,
    effort: Effort,
    progress: &dyn Fn(Stage),
) -> Result<Compiled> {
    let mut settings = Settings { policy: Policy::Auto, calibration: None, ..settings.clone() };
    // A step with f16 in it needs a loss scale.
    let formats = settings.formats();
    settings.low = if formats.contains(&Format::F16) { Format::F16 } else { *formats.first().unwrap_or(&Format::Bf16) };
    let before = settings.clone();
    let subject = Subject::training(&before, model, rules, bench, effort.batches, &|| progress(Stage::Ran))?;
    let mut lab = Laboratory::new(&before, subject, bench, effort, &|| progress(Stage::Ran))?;
    within_budget(&mut lab, &mut settings, progress, |settings| {
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

/// Plans by evidence and measures what comes out, more strictly until it keeps to the budget. In the end nothing that adds
/// noise is rounded: that plan is as good as f32, and f32 is what the budget is measured against.
pub(super) fn within_budget<T: AsMut<Planned>>(
    lab: &mut Laboratory,
    settings: &mut Settings,
    progress: &dyn Fn(Stage),
    mut plan: impl FnMut(&Settings) -> Result<(T, Trial)>,
) -> Result<T> {
    let mut first: Option<Arc<Calibration>> = None;
    for attempt in 1.. {
        let calibration = Arc::new(lab.calibration(&|| progress(Stage::Ran))?);
        settings.recipe.scaler.init = calibration.loss_scale;
        settings.calibration = Some(calibration.clone());
        progress(Stage::Planning);
        let (mut out, trial) = plan(settings)?;
        progress(Stage::Measuring);
        let mut measured = lab.measure(&trial)?;
        if measured.keeps_budget() || attempt > ATTEMPTS {
            if let Some(first) = first {
                let left = calibration.roundable();
                measured.given_up = first.roundable().difference(&left).map(|name| (*name).to_owned()).collect();
            }
            out.as_mut().measured = Some(measured);
            return Ok(out);
        }
        first.get_or_insert(calibration);
        match attempt {
            ATTEMPTS => lab.forbid(),
            _ => lab.tighten(&measured),
        }
        progress(Stage::Tightening);
    }
    unreachable!("the last attempt returns")
}
