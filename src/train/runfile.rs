//! `run.toml`: a training run as a file.

use super::compile::Settings;
use super::loss::Objective;
use super::recipe::Recipe;
use crate::data::Source;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::model::{Frozen, Modes};
use crate::plan::{Overrides, Policy};
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A run file. Paths in it are relative to the file.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct RunFile {
    /// A `.mir` or `.onnx` file. Required.
    pub model: PathBuf,
    /// A loss of [`super::LossKind::NAMES`], or a scalar of the model by name. Default: the model's own.
    #[serde(default)]
    pub loss: Option<String>,
    /// Options of the loss.
    #[serde(default)]
    pub objective: Objective,
    /// What is trained and evaluated on. Required.
    pub data: DataSection,
    /// How the step is planned.
    #[serde(default)]
    pub plan: PlanSection,
    /// How, and how long.
    #[serde(default)]
    pub train: TrainSection,
}

/// Section `[data]`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// What is trained on. Required.
    pub train: Source,
    /// What is evaluated on after every epoch. Default: nothing.
    #[serde(default)]
    pub test: Option<Source>,
    /// Features are multiplied by this; of several arrays, those that are not of whole numbers. Default: 1.
    #[serde(default = "one")]
    pub scale: f64,
}

fn one() -> f64 {
    1.0
}

/// Section `[plan]`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct PlanSection {
    /// How formats are chosen. Default: `o1`.
    pub policy: Policy,
    /// The narrow format of the policy's lists: f16, bf16 or tf32. Default: f16.
    pub format: Format,
    /// What policy `auto` chooses from besides f32. Default: those of f16, bf16 and tf32 that the target multiplies.
    pub formats: Vec<Format>,
    /// A built-in target, or the `.toml` file of a profile. Default: `sm_90`.
    pub target: String,
    /// As a policy file has them. Default: none.
    pub overrides: Overrides,
    /// Memory that the step may take, as in "8GB". Default: no limit.
    pub memory_limit: Option<ByteSize>,
}

impl Default for PlanSection {
    fn default() -> PlanSection {
        let s = Settings::default();
        PlanSection {
            policy: s.policy,
            format: s.low,
            formats: s.formats,
            target: s.target,
            overrides: s.overrides,
            memory_limit: s.memory_limit,
        }
    }
}

/// Section `[train]`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSection {
    /// Default: 10.
    pub epochs: usize,
    /// Samples of a step, at least 1. Default: 32.
    pub batch: usize,
    /// Decides initial values, the order of samples and dropout. Default: 0.
    pub seed: u64,
    /// Sizes for the model's other named extents, at least 1. Default: none.
    pub sizes: BTreeMap<String, usize>,
    /// Batch norms that use running statistics and leave them alone: "train" (none; the default), "frozen" (all), or
    /// patterns of names.
    pub batch_norm: Frozen,
    /// Dropouts that drop nothing, likewise.
    pub dropout: Frozen,
    /// Patterns of names of parameters that are not trained. Default: none.
    pub freeze: Vec<String>,
    #[serde(flatten)]
    pub recipe: RecipeFields,
}

/// [`Recipe`], spelled out because `flatten` and `deny_unknown_fields` do not mix.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(default)]
pub struct RecipeFields {
    pub optimizer: super::recipe::Optimizer,
    pub schedule: super::recipe::Schedule,
    pub clip_norm: Option<f64>,
    pub scaler: super::recipe::Scaler,
}

impl Default for TrainSection {
    fn default() -> TrainSection {
        TrainSection {
            epochs: 10,
            batch: 32,
            seed: 0,
            sizes: BTreeMap::new(),
            batch_norm: Frozen::None,
            dropout: Frozen::None,
            freeze: Vec::new(),
            recipe: RecipeFields::default(),
        }
    }
}

impl RunFile {
    /// Parses a run file; `overrides` are `key=value` pairs with dotted keys, as in `train.batch=64`.
    ///
    /// # Errors
    /// A file that cannot be read; keys that are not known and values of the wrong kind, with their place.
    pub fn read(path: &Path, overrides: &[String]) -> Result<RunFile> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let at = |e: toml::de::Error| Error::Source {
            file: path.display().to_string(),
            text: text.clone(),
            span: e.span().unwrap_or(0..0),
            message: e.message().to_owned(),
            help: None,
        };
        let file: RunFile = toml::from_str(&text).map_err(at)?;
        if overrides.is_empty() {
            return Ok(file);
        }
        let mut table: toml::Table = toml::from_str(&text).map_err(at)?;
        for o in overrides {
            set(&mut table, o)?;
        }
        table.try_into().map_err(|e: toml::de::Error| Error::Request(format!("--set: {}", e.message())))
    }

    /// The settings this file asks for. `samples` is the size of the training split.
    pub fn settings(&self, samples: usize) -> Settings {
        let t = &self.train;
        let mut sizes = t.sizes.clone();
        sizes.insert("batch".into(), t.batch);
        let r = t.recipe.clone();
        Settings {
            policy: self.plan.policy,
            low: self.plan.format,
            target: self.plan.target.clone(),
            sizes,
            loss: self.loss.clone(),
            objective: self.objective.clone(),
            recipe: Recipe { optimizer: r.optimizer, schedule: r.schedule, clip_norm: r.clip_norm, scaler: r.scaler },
            formats: self.plan.formats.clone(),
            overrides: self.plan.overrides.clone(),
            modes: Modes { batch_norm: t.batch_norm.clone(), dropout: t.dropout.clone() },
            freeze: t.freeze.clone(),
            frontier: false,
            search: None,
            memory_limit: self.plan.memory_limit,
            calibration: None,
            total_steps: (samples / t.batch.max(1) * t.epochs) as u64,
        }
    }
}

/// Sets one dotted key to a TOML value; what is no TOML value is text.
fn set(table: &mut toml::Table, assignment: &str) -> Result<()> {
    let (key, value) = assignment
        .split_once('=')
        .ok_or_else(|| Error::Request(format!("--set takes key=value, not `{assignment}`")))?;
    let parsed = toml::from_str::<toml::Table>(&format!("v = {value}")).ok().and_then(|mut t| t.remove("v"));
    let value = parsed.unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut at = table;
    let mut parts = key.split('.').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            at.insert(part.to_owned(), value);
            return Ok(());
        }
        let next = at.entry(part.to_owned()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = next
            .as_table_mut()
            .ok_or_else(|| Error::Request(format!("--set {key}: `{part}` is a value, not a section")))?;
    }
    Ok(())
}
