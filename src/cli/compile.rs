//! `mantissa compile`.

use super::new_file;
use super::what::WhatArgs;
use crate::error::Result;
use crate::files::write_executable;
use crate::run::cuda;
use crate::trainer;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct CompileArgs {
    /// A model (.mir, .onnx), or a run file (.toml) for the step that `train` would run
    #[arg(value_name = "MODEL|RUN.toml")]
    model: PathBuf,
    /// The executable to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    what: WhatArgs,
    /// GPU architectures to carry compiled kernels for; `none` for none
    #[arg(long, value_name = "ARCH,..", value_delimiter = ',', default_value = "sm_75,sm_80,sm_86,sm_89,sm_90a")]
    archs: Vec<String>,
    /// Overwrite the output file
    #[arg(long)]
    force: bool,
}

pub fn run(args: &CompileArgs) -> Result<()> {
    new_file(&args.output, args.force)?;
    let compiled = args.what.compile(&args.model)?;
    let archs: Vec<String> = args.archs.iter().filter(|a| *a != "none").cloned().collect();
    let cubins = if archs.is_empty() || cuda::nvrtc_present() {
        trainer::compile_kernels(&compiled, &archs)?
    } else {
        say!(
            "note: NVRTC was not found (see `mantissa doctor`), so the trainer carries no compiled kernels; on a GPU it will need NVRTC"
        );
        Default::default()
    };
    let bytes = trainer::build(&compiled, &cubins)?;
    write_executable(&args.output, &bytes)?;
    say!("written to {} ({:.1} MB)", args.output.display(), bytes.len() as f64 / 1e6);
    Ok(())
}
