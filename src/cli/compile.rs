//! `mantissa compile`.

use super::{StepArgs, new_file, read_model};
use crate::error::Result;
use crate::run::cuda;
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
    /// GPU architectures to carry compiled kernels for; `none` for none
    #[arg(long, value_name = "ARCH,..", value_delimiter = ',', default_value = "sm_75,sm_80,sm_86,sm_89,sm_90a")]
    archs: Vec<String>,
    /// Overwrite the output file
    #[arg(long)]
    force: bool,
}

pub fn run(args: &CompileArgs) -> Result<()> {
    let mut settings = Settings::default();
    args.step.apply(&mut settings)?;
    new_file(&args.output, args.force)?;
    let model = read_model(&args.model)?;
    let compiled = settings.compile(&model, &args.step.rule_set()?, None)?;
    let archs: Vec<String> = args.archs.iter().filter(|a| *a != "none").cloned().collect();
    let cubins = if archs.is_empty() || cuda::nvrtc_present() {
        trainer::compile_kernels(&compiled, &archs)?
    } else {
        eprintln!(
            "note: NVRTC was not found (see `mantissa doctor`), so the trainer carries no compiled kernels; on a GPU it will need NVRTC"
        );
        Default::default()
    };
    let bytes = trainer::build(&compiled, &cubins)?;
    trainer::write_executable(&args.output, &bytes)?;
    eprintln!("written to {} ({:.1} MB)", args.output.display(), bytes.len() as f64 / 1e6);
    Ok(())
}
