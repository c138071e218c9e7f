//! `mantissa train`.

use super::evidence::EvidenceArgs;
use super::{Reporter, StepArgs, out, read_to_train};
use crate::data::{self, Dataset, Source};
use crate::error::{Error, Result};
use crate::plan::{PlanFile, Policy, percent};
use crate::run::{Backend, DeviceKind};
use crate::train::{Bench, Compiled, EpochReport, Outcome, Place, Run, RunFile, Settings, train};
use clap::Args;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Args)]
pub struct TrainArgs {
    /// A run file (.toml), or a model (.mir, .onnx) together with --data
    #[arg(value_name = "RUN.toml|MODEL")]
    what: PathBuf,
    #[command(flatten)]
    step: StepArgs,
    #[command(flatten)]
    evidence: EvidenceArgs,
    #[command(flatten)]
    run: RunArgs,
    /// Use a plan made by `mantissa plan -o`
    #[arg(long, value_name = "PLAN.json")]
    plan: Option<PathBuf>,
    /// Change a value of the run file, as in train.epochs=5
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// What to train on.
#[derive(Args, Clone, Debug)]
pub struct DataArgs {
    /// Training data: .npz with x and y, .csv, or a directory of IDX files
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Test data, as --data; a directory holds both splits
    #[arg(long)]
    pub test: Option<PathBuf>,
    /// Multiply features by this
    #[arg(long, value_name = "X")]
    pub scale: Option<f64>,
    /// Decides initial values, order of samples and dropout [default: 0]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// Options of a run that do not change what is compiled; compiled trainers have the same.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Passes over the training data [default: 10]
    #[arg(long, value_name = "N")]
    pub epochs: Option<usize>,
    /// cpu, cuda, or auto (cuda if there is one)
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Where to write metrics and the checkpoint [default: a new directory under runs/]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write into --out even if it exists
    #[arg(long)]
    pub force: bool,
    /// Go on from a checkpoint
    #[arg(long, value_name = "CHECKPOINT")]
    pub resume: Option<PathBuf>,
    /// At the end, time every kernel and print it beside its prediction
    #[arg(long)]
    pub profile: bool,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
}

impl DataArgs {
    /// The run that the options ask for; `base` supplies what they leave open.
    pub fn change(&self, base: Run) -> Result<Run> {
        let mut run = base;
        if let Some(path) = &self.data {
            run.train = Source::find(path, "train")?;
            run.test = if path.is_dir() { Source::find(path, "test").ok() } else { None };
        }
        if let Some(path) = &self.test {
            run.test = Some(Source::find(path, "test")?);
        }
        run.scale = self.scale.unwrap_or(run.scale);
        run.seed = self.seed.unwrap_or(run.seed);
        Ok(run)
    }
}

/// Refuses `--set` where there is no run file.
pub(super) fn require_none(set: &[String]) -> Result<()> {
    match set {
        [] => Ok(()),
        _ => Err(Error::Request("--set changes values of a run file; with a model, use the options themselves".into())),
    }
}

/// What to train, how, and on what: by a run file, or by a model and options.
pub(super) fn prepare(what: &Path, set: &[String], args: &DataArgs) -> Result<(PathBuf, Settings, Run, Dataset)> {
    let is_run_file = what.extension().is_some_and(|e| e == "toml");
    if is_run_file {
        let file = RunFile::read(what, set)?;
        let dir = what.parent().unwrap_or(Path::new("."));
        let name = what.parent().and_then(Path::file_name).map_or("run".into(), |n| n.to_string_lossy().into_owned());
        let run = Run {
            name,
            train: file.data.train.relative_to(dir),
            test: file.data.test.as_ref().map(|t| t.relative_to(dir)),
            scale: file.data.scale,
            epochs: file.train.epochs,
            seed: file.train.seed,
        };
        let run = args.change(run)?;
        let data = data::load(&run.train, run.scale)?;
        Ok((dir.join(&file.model), file.settings(data.samples), run, data))
    } else {
        let Some(path) = &args.data else {
            return Err(Error::Request(format!(
                "{}: a model needs --data to train on (or give a run file, .toml)",
                what.display()
            )));
        };
        require_none(set)?;
        let name = what.file_stem().map_or("run".into(), |n| n.to_string_lossy().into_owned());
        let run = args.change(Run::on(name, Source::find(path, "train")?))?;
        let data = data::load(&run.train, run.scale)?;
        Ok((what.to_owned(), Settings::default(), run, data))
    }
}

pub fn run(args: &TrainArgs) -> Result<()> {
    let (model_path, mut settings, mut run, data) = prepare(&args.what, &args.set, &args.run.data)?;
    run.epochs = args.run.epochs.unwrap_or(run.epochs);
    args.step.apply(&mut settings)?;
    settings.total_steps = (data.samples / settings.batch() * run.epochs) as u64;
    let model = read_to_train(&model_path, &args.step)?;
    let saved = match &args.plan {
        Some(path) => Some((PlanFile::read(path)?, path.as_path())),
        None => None,
    };
    if let Some((file, _)) = &saved {
        (settings.policy, settings.low, settings.target) = (file.policy, file.low, file.target.clone());
        if let Some(e) = &file.evidence {
            settings.recipe.scaler.init = e.loss_scale;
            settings.formats.clone_from(&e.formats);
        }
    }
    let backend = args.run.device.parse::<DeviceKind>()?.backend();
    let compiled = if settings.policy == Policy::Auto && saved.is_none() {
        let bench = Bench { data: &data, seed: run.seed, backend: &*backend };
        args.evidence.compile(&settings, &model, &args.step, bench)?
    } else {
        settings.compile(&model, &args.step.rule_set()?, saved.as_ref().map(|(f, p)| (f, *p)))?
    };
    if let (Some(m), Some(c)) = (&compiled.planned.measured, &compiled.settings.calibration) {
        say!("{}; the plan adds {} of that, measured on {}", c.budget_text(), percent(m.overall()), m.on());
        if let Some(line) = m.given_up_text() {
            say!("{line}");
        }
    }
    to_the_end(compiled, &data, &run, &args.run, &*backend)
}

/// How much of a run may be lost, besides an epoch, if something ends it.
const KEEP: Duration = Duration::from_secs(30);

/// Trains and prints a summary.
pub fn to_the_end(compiled: Compiled, data: &Dataset, run: &Run, args: &RunArgs, backend: &dyn Backend) -> Result<()> {
    let (out_dir, resume) = (args.out.as_deref(), args.resume.as_deref());
    let place = Place { device: backend, out: out_dir, force: args.force, resume, keep: KEEP };
    let outcome = train(compiled, data, run, &place, &Reporter::new(run.epochs, data.samples))?;
    let Some(last) = &outcome.last else {
        let (had, asked) = (outcome.session.epoch, run.epochs);
        out(&format!("nothing to do: the checkpoint has {had} epochs, {asked} were asked for\n"));
        return Ok(());
    };
    if args.json {
        let Outcome { seconds, best_test_accuracy, checkpoint, .. } = &outcome;
        let summary = serde_json::json!({ "seconds": seconds, "last": last, "best_test_accuracy": best_test_accuracy, "checkpoint": checkpoint });
        out(&format!("{summary}\n"));
        return Ok(());
    }
    out(&summary(&outcome, last));
    if args.profile {
        out(&format!("\n{}", outcome.session.profile()?));
    }
    Ok(())
}

fn summary(outcome: &Outcome, last: &EpochReport) -> String {
    let seconds = outcome.seconds;
    let samples = last.steps as usize * outcome.session.compiled.settings.batch() * last.epoch;
    let mut text =
        format!("trained {} epochs in {seconds:.2} s ({:.0} samples/s)\n", last.epoch, samples as f64 / seconds);
    text += &format!("training loss   {:.4}\n", last.loss);
    if let Some(t) = last.test {
        text += &format!("test loss       {:.4}\n", t.loss);
    }
    if let Some(a) = last.test.and_then(|t| t.accuracy) {
        let best = outcome.best_test_accuracy.unwrap_or(a);
        text += &format!("test accuracy   {:.2} % (best epoch {:.2} %)\n", 100.0 * a, 100.0 * best);
    }
    let plural = if last.skipped_in_all == 1 { "" } else { "s" };
    text += &format!("loss scale      {}, {} step{plural} skipped\n", last.scale, last.skipped_in_all);
    text + &format!("written to      {}\n", outcome.dir.display())
}
