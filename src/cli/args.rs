//! Options that several commands have.

use crate::error::{Error, Result};
use crate::format::Format;
use crate::plan::{Overrides, Policy};
use crate::rewrite::RuleSet;
use crate::train::{Optimizer, Settings};
use bytesize::ByteSize;
use clap::Args;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Sizes of a model, and inputs that always have one value.
#[derive(Args, Clone, Debug)]
pub struct SizeArgs {
    /// Samples per step [default: 32, or the model's own]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Size of another named extent, as in seq=128
    #[arg(long = "dim", value_name = "NAME=N")]
    dims: Vec<String>,
    /// An input that always is this number, where a file decides by one, as in sr=16000
    #[arg(long = "value", value_name = "NAME=X")]
    pub values: Vec<String>,
}

/// The loss, and what it is taken of.
#[derive(Args, Clone, Debug)]
pub struct LossArgs {
    /// The loss: cross_entropy, nll, bce (on logits), mse, l1, huber, or a scalar value of the model [default: the model's own]
    #[arg(long)]
    loss: Option<String>,
    /// The output that the loss compares with the label, where the model has several
    #[arg(long, value_name = "NAME")]
    prediction: Option<String>,
    /// The model's input that is the label, where it has one
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
    /// The axis of the prediction that classes lie on [default: the last]
    #[arg(long, value_name = "N")]
    class_axis: Option<usize>,
    /// Positions with this label do not count
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    ignore_index: Option<i64>,
    /// A weight for each class
    #[arg(long, value_name = "W,..", value_delimiter = ',')]
    class_weights: Vec<f64>,
    /// The share of the target spread over all classes [default: 0]
    #[arg(long, value_name = "X")]
    label_smoothing: Option<f64>,
    /// Where the Huber loss turns from a square to a line [default: 1]
    #[arg(long, value_name = "X")]
    huber_delta: Option<f64>,
}

/// Options that decide what is compiled.
#[derive(Args, Clone, Debug)]
pub struct StepArgs {
    /// fp32, o1 (autocast's lists), o2, o3 (everything low), greedy (the lists, whatever casts cost), auto (by evidence from data, within a budget) [default: o1]
    #[arg(long, value_name = "POLICY")]
    policy: Option<String>,
    /// The narrow format of the lists, and the only one of auto: f16, bf16, or tf32 (in products alone) [default: f16]
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// What auto chooses from besides f32 [default: f16,bf16,tf32 where the target multiplies them]
    #[arg(long, value_name = "FORMAT,..", value_delimiter = ',', conflicts_with = "format")]
    formats: Vec<String>,
    /// Formats by name and by operation, which go before the policy's: lines such as "*.lm_head.*" = "f32" and op.softmax = "f32"
    #[arg(long, value_name = "FILE.toml")]
    policy_file: Option<PathBuf>,
    /// What the plan is made for: cpu, sm_70 (V100), sm_75 (T4), sm_80 (A100), sm_89 (L4), sm_90 (H200), h100, sm_100 (B200) [default: sm_90]
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
    /// Memory that the step may take, as in 8GB: what does not fit is computed again in the backward pass
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<ByteSize>,
    #[command(flatten)]
    pub sizes: SizeArgs,
    #[command(flatten)]
    loss: LossArgs,
    /// Batch norms: train (the batch's statistics), frozen (running ones, left alone), or frozen=PATTERN,.. by names of nodes
    /// or tensors [default: train]
    #[arg(long, value_name = "MODE")]
    batch_norm: Option<String>,
    /// Dropouts: train, frozen (nothing is dropped), or frozen=PATTERN,.. [default: train]
    #[arg(long, value_name = "MODE")]
    dropout: Option<String>,
    /// Parameters that are not trained, by patterns of names
    #[arg(long, value_name = "PATTERN,..", value_delimiter = ',')]
    freeze: Vec<String>,
    /// sgd, adam or adamw [default: adamw]
    #[arg(long)]
    optimizer: Option<String>,
    /// Learning rate [default: 1e-3]
    #[arg(long)]
    lr: Option<f64>,
    /// Read rules from this directory instead of the built-in ones
    #[arg(long, value_name = "DIR")]
    rules: Option<PathBuf>,
}

impl StepArgs {
    /// Changes settings as asked.
    pub fn apply(&self, s: &mut Settings) -> Result<()> {
        for (given, mode) in [(&self.batch_norm, &mut s.modes.batch_norm), (&self.dropout, &mut s.modes.dropout)] {
            if let Some(word) = given {
                *mode = word.parse()?;
            }
        }
        s.freeze.extend(self.freeze.iter().cloned());
        if let Some(p) = &self.policy {
            s.policy = p.parse::<Policy>()?;
        }
        if let Some(f) = &self.format {
            s.low = narrow(f)?;
            s.formats = vec![s.low];
        }
        if !self.formats.is_empty() {
            let all = self.formats.iter().filter(|f| *f != "f32");
            s.formats = all.map(|f| narrow(f)).collect::<Result<_>>()?;
            s.low = *s.formats.first().ok_or_else(|| {
                Error::Request(
                    "--formats takes at least one narrow format; for f32 alone there is --policy fp32".into(),
                )
            })?;
        }
        if let Some(path) = &self.policy_file {
            s.overrides = Overrides::read(path)?;
        }
        if let Some(t) = &self.target {
            s.target = t.clone();
        }
        s.memory_limit = self.memory_limit.or(s.memory_limit);
        self.sizes.apply(s)?;
        self.loss.apply(s);
        if let Some(name) = &self.optimizer {
            let lr = s.recipe.optimizer.lr();
            let table = format!("name = \"{name}\"\nlr = {lr}");
            s.recipe.optimizer = toml::from_str::<Optimizer>(&table)
                .map_err(|_| Error::Request(format!("unknown optimizer `{name}`; optimizers are sgd, adam, adamw")))?;
        }
        if let Some(lr) = self.lr {
            *s.recipe.optimizer.lr_mut() = lr;
        }
        Ok(())
    }

    /// With its files (a policy's, a profile's) named from a folder.
    pub fn within(mut self, dir: &Path) -> StepArgs {
        self.policy_file = self.policy_file.map(|path| dir.join(path));
        let is_file = |target: &String| target.ends_with(".toml");
        if let Some(file) = self.target.take_if(|target| is_file(target)) {
            self.target = Some(dir.join(file).display().to_string());
        }
        self
    }

    /// Does it ask for rules of its own?
    pub fn has_rules(&self) -> bool {
        self.rules.is_some()
    }

    pub fn rule_set(&self) -> Result<RuleSet> {
        RuleSet::load_from(self.rules.as_deref())
    }
}

impl SizeArgs {
    /// Changes settings as asked.
    pub fn apply(&self, s: &mut Settings) -> Result<()> {
        if let Some(b) = self.batch {
            s.sizes.insert("batch".into(), b);
        }
        for d in &self.dims {
            let pair = d.split_once('=').and_then(|(k, v)| Some((k.to_owned(), v.parse::<usize>().ok()?)));
            let (name, n) = pair.ok_or_else(|| Error::Request(format!("--dim takes NAME=N, not `{d}`")))?;
            s.sizes.insert(name, n);
        }
        if s.sizes.values().any(|&n| n == 0) {
            return Err(Error::Request("sizes must be at least 1".into()));
        }
        Ok(())
    }

    /// The sizes that were given, and no others.
    pub fn given(&self, s: &Settings) -> BTreeMap<String, usize> {
        let given = |name: &str| {
            (name == "batch" && self.batch.is_some()) || self.dims.iter().any(|d| d.split('=').next() == Some(name))
        };
        s.sizes.iter().filter(|(name, _)| given(name)).map(|(name, n)| (name.clone(), *n)).collect()
    }
}

impl LossArgs {
    /// Changes settings as asked.
    pub fn apply(&self, s: &mut Settings) {
        if self.loss.is_some() {
            s.loss = self.loss.clone();
        }
        let o = &mut s.objective;
        o.prediction = self.prediction.clone().or(o.prediction.take());
        o.label = self.label.clone().or(o.label.take());
        o.class_axis = self.class_axis.or(o.class_axis);
        o.ignore_index = self.ignore_index.or(o.ignore_index);
        o.label_smoothing = self.label_smoothing.unwrap_or(o.label_smoothing);
        o.huber_delta = self.huber_delta.unwrap_or(o.huber_delta);
        if !self.class_weights.is_empty() {
            o.class_weights = self.class_weights.clone();
        }
    }
}

/// A narrow format that can be planned.
fn narrow(name: &str) -> Result<Format> {
    match name.parse::<Format>() {
        Ok(low) if Format::MULTIPLIED.contains(&low) => Ok(low),
        Ok(other) => {
            Err(Error::Request(format!("formats to plan with are f16, bf16 and tf32; {other} cannot be planned yet")))
        }
        Err(_) => Err(Error::Request(format!("unknown format `{name}`; formats to plan with are f16, bf16 and tf32"))),
    }
}
