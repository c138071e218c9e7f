//! `mantissa explain`.

use super::out;
use super::plan::WhatArgs;
use crate::error::Result;
use crate::plan::explain;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct ExplainArgs {
    /// A model (.mir, .onnx), or a run file (.toml) for the step that `train` would run
    #[arg(value_name = "MODEL|RUN.toml")]
    model: PathBuf,
    #[command(flatten)]
    what: WhatArgs,
    /// A value of the step: one of the model, or a gradient, as d.h
    #[arg(value_name = "VALUE")]
    value: String,
    /// Print the explanation as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &ExplainArgs) -> Result<()> {
    let (compiled, _, rules) = args.what.compile(&args.model, false)?;
    let explanation = explain(&compiled.step, &compiled.settings.request()?, &rules, &args.value)?;
    if args.json {
        out(&(serde_json::to_string_pretty(&explanation).expect("an explanation is plain data") + "\n"));
    } else {
        out(&explanation.print());
    }
    Ok(())
}
