//! `mantissa explain`.

use super::what::WhatArgs;
use super::{inference, out};
use crate::error::Result;
use crate::plan::{Explanation, explain};
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
    /// Explain the plan of the model as it acts in inference, not of a training step
    #[arg(long)]
    inference: bool,
    /// Print the explanation as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &ExplainArgs) -> Result<()> {
    let explanation = if args.inference {
        let (planned, _, rules) = inference::planned(&args.what, &args.model, None)?;
        explain(&planned.model.fed()?, &planned.settings.request()?, &rules, &args.value)?
    } else {
        let asked = args.what.read(&args.model, false)?;
        let (compiled, rules) = (args.what.compile_read(&asked)?, asked.rules);
        let explanation = explain(&compiled.step, &compiled.settings.request()?, &rules, &args.value)?;
        Explanation { computed_again: compiled.planned.computes_again(&args.value), ..explanation }
    };
    if args.json {
        out(&(serde_json::to_string_pretty(&explanation).expect("an explanation is plain data") + "\n"));
    } else {
        out(&explanation.print());
    }
    Ok(())
}
