//! The command line: one file per command, each thin.
//!
//! Results go to stdout, progress and diagnostics to stderr. Exit code 0, 1 (the work failed) or 2 (the request was wrong).

/// Prints a line on stderr. A reader that has gone away ends nothing.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::show::told(&format!($($text)*), "\n") };
}

mod args;
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
use crate::model::{Model, Written};
use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

use args::{LossArgs, SizeArgs, StepArgs};
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
fn read_model(path: &std::path::Path, args: &SizeArgs) -> Result<Model> {
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
    let model = read_model(path, &args.sizes)?;
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
