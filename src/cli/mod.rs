//! The command line: one file per command, each thin.
//!
//! Results go to stdout, progress and diagnostics to stderr. Exit code 0, 1 (the work failed) or 2 (the request was wrong).

/// Prints a line on stderr. A reader that has gone away ends nothing.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::show::told(&format!($($text)*), "\n") };
}

mod compile;
mod doctor;
mod evidence;
mod explain;
mod export;
mod inference;
mod pages;
mod plan;
mod profile;
mod rules;
mod show;
mod snapshot;
mod train;
mod trainer;
mod what;

use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::format::Format;
use crate::model::{Model, Written};
use crate::plan::{Overrides, Policy};
use crate::rewrite::RuleSet;
use crate::train::{Optimizer, Settings};
use bytesize::ByteSize;
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use show::{Reporter, out};

/// What the binary was built from.
const VERSION: &str = env!("MANTISSA_VERSION");

/// A compiler for mixed-precision training: plans a number format for every value of a training step, and trains.
#[derive(Parser)]
#[command(name = "mantissa", version = VERSION, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model: a run file, or a model file with --data
    Train(train::TrainArgs),
    /// Print the precision plan of a model's training step
    Plan(plan::PlanArgs),
    /// Say why a value has the format it has, and what else there was
    Explain(explain::ExplainArgs),
    /// Run some steps in f32 and print what every value's numbers look like
    Profile(profile::ProfileArgs),
    /// Write a trainer: one executable that needs no compiler
    Compile(compile::CompileArgs),
    /// Write a trained model as ONNX, in f32
    Export(export::ExportArgs),
    /// List the rewrite rules, or test them numerically
    Rules {
        #[command(subcommand)]
        action: rules::RulesCommand,
    },
    /// Keep what becomes of models as text, and show what is different now
    Snapshot(snapshot::SnapshotArgs),
    /// Say what this machine can run on
    Doctor(doctor::DoctorArgs),
    /// Print what completes this command's arguments in a shell
    Completions(pages::CompletionsArgs),
    /// Write manual pages into a folder
    Man(pages::ManArgs),
}

/// Options that decide what is compiled.
#[derive(Args, Clone, Debug)]
pub struct StepArgs {
    /// fp32, o1 (autocast's lists), o2, o3 (everything low), greedy (the lists, whatever casts cost), auto (by evidence from data, within a budget)
    #[arg(long, value_name = "POLICY")]
    policy: Option<String>,
    /// The narrow format of the lists, and the only one of auto: f16, bf16, or tf32 (in products alone)
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// What auto chooses from besides f32 [default: f16,bf16,tf32 where the target multiplies them]
    #[arg(long, value_name = "FORMAT,..", value_delimiter = ',', conflicts_with = "format")]
    formats: Vec<String>,
    /// Formats by name and by operation, which go before the policy's: lines such as "*.lm_head.*" = "f32" and op.softmax = "f32"
    #[arg(long, value_name = "FILE.toml")]
    policy_file: Option<PathBuf>,
    /// What the plan is made for: cpu, sm_70 (V100), sm_75 (T4), sm_80 (A100), sm_89 (L4), sm_90 (H200), h100, sm_100 (B200)
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
    /// Memory that the step may take, as in 8GB: what does not fit is computed again in the backward pass
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<ByteSize>,
    /// Samples per step
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Size of another named extent, as in seq=128
    #[arg(long = "dim", value_name = "NAME=N")]
    dims: Vec<String>,
    /// An input that always is this number, where a file decides by one, as in sr=16000
    #[arg(long = "value", value_name = "NAME=X")]
    values: Vec<String>,
    /// The loss: cross_entropy, nll, bce (on logits), mse, l1, huber, or a scalar value of the model
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
    /// The share of the target spread over all classes
    #[arg(long, value_name = "X")]
    label_smoothing: Option<f64>,
    /// Where the Huber loss turns from a square to a line
    #[arg(long, value_name = "X")]
    huber_delta: Option<f64>,
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
    /// sgd, adam or adamw
    #[arg(long)]
    optimizer: Option<String>,
    /// Learning rate
    #[arg(long)]
    lr: Option<f64>,
    /// Read rules from this directory instead of the built-in ones
    #[arg(long, value_name = "DIR")]
    rules: Option<PathBuf>,
}

impl StepArgs {
    /// Changes settings as asked.
    fn apply(&self, s: &mut Settings) -> Result<()> {
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

    /// With files named from a folder.
    fn within(&self, dir: &std::path::Path) -> StepArgs {
        let file = |path: &Option<PathBuf>| path.as_ref().map(|p| dir.join(p));
        StepArgs { policy_file: file(&self.policy_file), rules: file(&self.rules), ..self.clone() }
    }

    /// The sizes that were given, and no others.
    fn sizes(&self, s: &Settings) -> BTreeMap<String, usize> {
        let given = |name: &str| {
            (name == "batch" && self.batch.is_some()) || self.dims.iter().any(|d| d.split('=').next() == Some(name))
        };
        s.sizes.iter().filter(|(name, _)| given(name)).map(|(name, n)| (name.clone(), *n)).collect()
    }

    fn rule_set(&self) -> Result<RuleSet> {
        match &self.rules {
            Some(dir) => RuleSet::from_dir(dir),
            None => RuleSet::builtin(),
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

/// Refuses to overwrite a file unless that was asked for.
fn new_file(path: &std::path::Path, force: bool) -> Result<()> {
    if path.exists() && !force {
        return Err(Error::Request(format!(
            "{} exists; give another name, or --force to overwrite it",
            path.display()
        )));
    }
    Ok(())
}

/// What the file of values beside an ONNX file is called, where they are too many for one.
fn data_name(onnx: &std::path::Path) -> String {
    onnx.file_name().map_or_else(String::new, |n| format!("{}.data", n.to_string_lossy()))
}

/// Writes an ONNX file, with its values beside it if they are apart.
fn write_onnx(path: &std::path::Path, written: &Written, force: bool) -> Result<()> {
    if let Some(data) = &written.data {
        let beside = path.with_file_name(data_name(path));
        new_file(&beside, force)?;
        write_atomically(&beside, data)?;
    }
    write_atomically(path, &written.model)
}

/// Reads a model, or says what is wrong with the path.
fn read_model(path: &std::path::Path, args: &StepArgs) -> Result<Model> {
    if !path.exists() {
        return Err(Error::model(path, "there is no such file"));
    }
    args.values.iter().try_fold(Model::read(path)?, |model, pair| {
        let bad = || Error::Request(format!("--value takes NAME=X, not `{pair}`"));
        let (name, value) = pair.split_once('=').ok_or_else(bad)?;
        model.with_fixed(name, value.parse().map_err(|_| bad())?)
    })
}

/// Reads a model that is about to be trained, and says what about it may be not as expected.
fn read_to_train(path: &std::path::Path, args: &StepArgs) -> Result<Model> {
    let model = read_model(path, args)?;
    model.hints().iter().for_each(|hint| say!("hint: {hint}"));
    Ok(model)
}

/// Runs the program and reports its error, if any.
pub fn main() -> ExitCode {
    let result = match crate::trainer::embedded() {
        Ok(Some(payload)) => trainer::main(payload),
        Ok(None) => match Cli::parse().command {
            Command::Train(args) => train::run(&args),
            Command::Plan(args) if args.inference => inference::run(&args),
            Command::Plan(args) => plan::run(&args),
            Command::Explain(args) => explain::run(&args),
            Command::Profile(args) => profile::run(&args),
            Command::Compile(args) => compile::run(&args),
            Command::Export(args) => export::run(&args),
            Command::Rules { action } => rules::run(&action),
            Command::Snapshot(args) => snapshot::run(&args),
            Command::Doctor(args) => doctor::run(&args),
            Command::Completions(args) => pages::completions(&args, Cli::command()),
            Command::Man(args) => pages::man(&args, Cli::command()),
        },
        Err(e) => Err(e),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            say!("{}", e.render(console::colors_enabled_stderr()).trim_end());
            ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(1))
        }
    }
}
