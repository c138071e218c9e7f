//! `mantissa compile`.

use super::{StepArgs, read_model};
use crate::error::{Error, Result};
use crate::train::Settings;
use crate::trainer;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct CompileArgs {
    /// A model: .mir or .onnx
    model: PathBuf,
    /// The executable to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    step: StepArgs,
    /// Overwrite the output file
    #[arg(long)]
    force: bool,
}

pub fn run(args: &CompileArgs) -> Result<()> {
    let mut settings = Settings::default();
    args.step.apply(&mut settings)?;
    if args.output.exists() && !args.force {
        return Err(Error::Request(format!("{} exists; give another name, or --force to overwrite it", args.output.display())));
    }
    let model = read_model(&args.model)?;
    let compiled = settings.compile(&model, &args.step.rule_set()?, None)?;
    let bytes = trainer::build(&compiled)?;
    trainer::write_executable(&args.output, &bytes)?;
    eprintln!("written to {} ({:.1} MB)", args.output.display(), bytes.len() as f64 / 1e6);
    Ok(())
}
