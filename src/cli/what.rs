//! What is planned: a model and settings, or a run file; read, and the stages that can be printed.

use super::evidence::EvidenceArgs;
use super::train::{DataArgs, prepare, require_none};
use super::{StepArgs, read_to_train};
use crate::data::{Dataset, load_features};
use crate::error::Result;
use crate::ir::{Graph, text, verify};
use crate::lower::{lower, outline};
use crate::model::Model;
use crate::plan::Policy;
use crate::rewrite::RuleSet;
use crate::run::{Backend, DeviceKind};
use crate::train::{Bench, Compiled, Settings};
use clap::Args;
use std::path::{Path, PathBuf};

/// What is planned.
#[derive(Args)]
pub struct WhatArgs {
    #[command(flatten)]
    pub(super) step: StepArgs,
    #[command(flatten)]
    pub(super) evidence: EvidenceArgs,
    /// Data for policy auto to choose formats by: .npz with x and y, .csv, or a directory of IDX files. A run file has its own
    #[arg(long, value_name = "DATA")]
    calibrate: Option<PathBuf>,
    /// Multiply the features of --calibrate by this
    #[arg(long, value_name = "X", requires = "calibrate")]
    scale: Option<f64>,
    /// Where the data runs: cpu, cuda, or auto (cuda if there is one)
    #[arg(long, default_value = "auto")]
    device: String,
    /// Change a value of the run file, as in train.epochs=5
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// What is to be planned, read.
pub struct Asked {
    pub model: Model,
    pub settings: Settings,
    pub rules: RuleSet,
    data: Option<Dataset>,
    seed: u64,
}

impl WhatArgs {
    /// Reads what is asked for.
    pub fn read(&self, what: &Path, frontier: bool) -> Result<Asked> {
        let (model_path, mut settings, data, seed) = self.request(what)?;
        self.step.apply(&mut settings)?;
        settings.frontier = frontier;
        let model = read_to_train(&model_path, &self.step)?;
        if settings.policy != Policy::Fp32 {
            settings.request()?.target.require(settings.low)?;
        }
        Ok(Asked { model, settings, rules: self.step.rule_set()?, data, seed })
    }

    /// Plans what was read; the settings it was planned with are those of the result.
    pub fn compile_read(&self, asked: &Asked) -> Result<Compiled> {
        let Asked { model, settings, rules, data, seed } = asked;
        match data {
            Some(data) if settings.policy == Policy::Auto => {
                let backend = self.backend()?;
                let bench = Bench { data, seed: *seed, backend: &*backend };
                self.evidence.compile(settings, model, &self.step, bench)
            }
            _ => settings.compile(model, rules, None),
        }
    }

    /// What calibrates.
    pub fn backend(&self) -> Result<Box<dyn Backend>> {
        Ok(self.device.parse::<DeviceKind>()?.backend())
    }

    /// Reads and plans what is asked for.
    pub fn compile(&self, what: &Path) -> Result<Compiled> {
        self.compile_read(&self.read(what, false)?)
    }

    /// The model, settings and data of an inference plan. Labels are not needed, but a run file has them.
    pub fn of_inference(&self, what: &Path) -> Result<(PathBuf, Settings, Option<Dataset>)> {
        let (model, mut settings, data, _) = match &self.calibrate {
            Some(path) if what.extension().is_none_or(|e| e != "toml") => {
                require_none(&self.set)?;
                let data = load_features(path, self.scale.unwrap_or(1.0))?;
                (what.to_owned(), Settings::default(), Some(data), 0)
            }
            _ => self.request(what)?,
        };
        self.step.apply(&mut settings)?;
        Ok((model, settings, data))
    }

    /// The model, settings and data that are asked for, and the seed.
    fn request(&self, what: &Path) -> Result<(PathBuf, Settings, Option<Dataset>, u64)> {
        if self.calibrate.is_none() && what.extension().is_none_or(|e| e != "toml") {
            require_none(&self.set)?;
            return Ok((what.to_owned(), Settings::default(), None, 0));
        }
        let data = DataArgs { data: self.calibrate.clone(), test: None, scale: self.scale, seed: None };
        let (model, settings, plan, data) = prepare(what, &self.set, &data)?;
        Ok((model, settings, Some(data), plan.seed))
    }
}

/// What becomes of a planned graph: `plan`, `kernels` or `cuda`.
pub(super) fn emit_planned(graph: &Graph, stage: &str) -> Result<String> {
    let plan = verify(graph)?;
    match stage {
        "plan" => Ok(text::print(graph)),
        "cuda" => Ok(crate::lower::cuda::generate(&lower(plan)?)?.source),
        "kernels" => Ok(crate::lower::print_program(&outline(plan)?)),
        _ => unreachable!("stages are checked first"),
    }
}
