//! Options and progress of planning by evidence.

use super::StepArgs;
use super::show::bar;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::plan::Budget;
use crate::rewrite::RuleSet;
use crate::train::{
    Bench, Compiled, Effort, Laboratory, PlannedInference, Settings, Stage, compile_by_evidence, plan_inference,
};
use clap::Args;

/// The default budget of inference, as a share of the outputs.
const OF_OUTPUTS: f64 = 1e-2;

#[derive(Args, Clone, Debug)]
pub struct EvidenceArgs {
    /// With policy auto: how much noise rounding may add to the gradients, as a share of their noise from batch to batch
    /// (10%), or of the gradients themselves (rel=1e-3); with --inference, of the outputs [default: 10%; rel=1e-2]
    #[arg(long, value_name = "SHARE")]
    budget: Option<String>,
    /// With policy auto: batches to calibrate on [default: 8]
    #[arg(long, value_name = "N")]
    calibration_batches: Option<usize>,
}

impl EvidenceArgs {
    fn effort(&self, budget: Budget) -> Result<Effort> {
        let budget = self.budget.as_ref().map_or(Ok(budget), |b| b.parse())?;
        let mut effort = Effort { budget, ..Effort::default() };
        if let Some(n) = self.calibration_batches {
            if n == 0 {
                return Err(Error::Request("--calibration-batches must be at least 1".into()));
            }
            effort.batches = n;
        }
        Ok(effort)
    }

    /// Compiles by what the data shows, saying on stderr what goes on.
    pub fn compile(&self, settings: &Settings, model: &Model, step: &StepArgs, bench: Bench) -> Result<Compiled> {
        let (effort, rules) = (self.effort(Budget::default())?, step.rule_set()?);
        told(&effort, settings, |progress| compile_by_evidence(settings, model, &rules, bench, effort, progress))
    }

    /// Plans a model for inference, by what the data shows where there is some.
    pub fn plan_inference(
        &self,
        settings: &Settings,
        model: &Model,
        rules: &RuleSet,
        bench: Option<Bench>,
        as_file: bool,
    ) -> Result<PlannedInference> {
        let effort = self.effort(Budget::Outputs(OF_OUTPUTS))?;
        let run = |progress: &dyn Fn(Stage)| plan_inference(settings, model, rules, bench, effort, as_file, progress);
        if bench.is_some() { told(&effort, settings, run) } else { run(&|_| {}) }
    }
}

/// Runs what calibrates, with a bar on stderr that says how far it is.
fn told<T>(effort: &Effort, settings: &Settings, run: impl FnOnce(&dyn Fn(Stage)) -> Result<T>) -> Result<T> {
    let bar = bar(Laboratory::ticks(effort, settings.probed().len()), "{msg} {pos} of {len}");
    bar.set_message("calibrating, run");
    let out = run(&|stage| match stage {
        Stage::Ran => bar.inc(1),
        Stage::Planning => bar.set_message("planning;"),
        Stage::Measuring => bar.set_message("measuring the plan;"),
        Stage::Tightening => {
            bar.suspend(|| say!("the plan adds more noise than it may; planning again, more strictly"));
            bar.inc_length((effort.batches * effort.draws * settings.probed().len()) as u64);
        }
    })?;
    bar.finish_and_clear();
    Ok(out)
}
