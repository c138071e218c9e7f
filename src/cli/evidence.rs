//! Options and progress of planning by evidence.

use super::StepArgs;
use super::show::bar;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::train::{Compiled, Effort, Laboratory, Settings, Stage, compile_by_evidence};
use clap::Args;

#[derive(Args, Clone, Debug)]
pub struct EvidenceArgs {
    /// With policy auto: how much noise rounding may add to the gradients, as a share of their noise from batch to batch
    /// (10%), or of the gradients themselves (rel=1e-3) [default: 10%]
    #[arg(long, value_name = "SHARE")]
    budget: Option<String>,
    /// With policy auto: batches to calibrate on [default: 8]
    #[arg(long, value_name = "N")]
    calibration_batches: Option<usize>,
}

impl EvidenceArgs {
    fn effort(&self) -> Result<Effort> {
        let mut effort = Effort::default();
        if let Some(b) = &self.budget {
            effort.budget = b.parse()?;
        }
        if let Some(n) = self.calibration_batches {
            if n == 0 {
                return Err(Error::Request("--calibration-batches must be at least 1".into()));
            }
            effort.batches = n;
        }
        Ok(effort)
    }

    /// Compiles by what the data shows, saying on stderr what goes on.
    pub fn compile(
        &self,
        settings: &Settings,
        model: &Model,
        step: &StepArgs,
        data: &Dataset,
        seed: u64,
    ) -> Result<Compiled> {
        let effort = self.effort()?;
        let ticks = Laboratory::ticks(&effort, settings.formats().len());
        let bar = bar(ticks, "{msg} {pos} of {len}");
        bar.set_message("calibrating, run");
        let progress = |stage: Stage| match stage {
            Stage::Ran => bar.inc(1),
            Stage::Planning => bar.set_message("planning;"),
            Stage::Measuring => bar.set_message("measuring the plan;"),
            Stage::Tightening => {
                bar.suspend(|| eprintln!("the plan adds more noise than it may; planning again, more strictly"));
                bar.inc_length((effort.batches * effort.draws * settings.formats().len()) as u64);
            }
        };
        let compiled = compile_by_evidence(settings, model, &step.rule_set()?, data, seed, effort, &progress)?;
        bar.finish_and_clear();
        Ok(compiled)
    }
}
