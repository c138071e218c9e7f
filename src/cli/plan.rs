//! `mantissa plan`.

use super::what::{Asked, WhatArgs, emit_planned};
use super::{new_file, out};
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::plan::{
    Heading, PlanFile, Planned, Policy, Request, clip, diff, percent, plan, print_summary, print_table, report, seconds,
};
use crate::train::{Compiled, Settings};
use clap::Args;
use rayon::prelude::*;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct PlanArgs {
    /// A model (.mir, .onnx), or a run file (.toml) for the step that `train` would run
    #[arg(value_name = "MODEL|RUN.toml", required_unless_present = "diff")]
    pub(super) model: Option<PathBuf>,
    /// Show two written plans' differences instead
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"], exclusive = true)]
    diff: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) what: WhatArgs,
    /// Write the plan as JSON, for `train --plan`
    #[arg(short, long, value_name = "PLAN.json")]
    pub(super) output: Option<PathBuf>,
    /// Plan the model as it acts in inference, not a training step
    #[arg(long)]
    pub(super) inference: bool,
    /// With --inference: write the model's own file in mixed precision, with casts where formats meet and weights stored low
    #[arg(long, value_name = "MIXED.onnx", requires = "inference")]
    pub(super) onnx: Option<PathBuf>,
    /// Write the plan as one page to look at: graph, time, memory, histograms, values
    #[arg(long, value_name = "PLAN.html")]
    pub(super) report: Option<PathBuf>,
    /// Overwrite output files
    #[arg(long)]
    pub(super) force: bool,
    /// Print stages of the compiler instead of the table: ir, step, plan, kernels, cuda
    #[arg(long, value_name = "STAGE,..", value_delimiter = ',')]
    pub(super) emit: Vec<String>,
    /// Print the plan as JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl PlanArgs {
    /// The model or run file, where what is asked for makes sense and overwrites nothing.
    pub(super) fn checked(&self) -> Result<&Path> {
        if let Some(bad) = self.emit.iter().find(|s| !STAGES.contains(&s.as_str())) {
            return Err(Error::Request(format!("there is no stage `{bad}`; stages are {}", STAGES.join(", "))));
        }
        for path in self.output.iter().chain(&self.report).chain(&self.onnx) {
            new_file(path, self.force)?;
        }
        self.model.as_deref().ok_or_else(|| Error::Request("name a model or a run file".into()))
    }
}

/// What `--emit` prints.
const STAGES: [&str; 5] = ["ir", "step", "plan", "kernels", "cuda"];

pub fn run(args: &PlanArgs) -> Result<()> {
    if let [a, b] = &args.diff[..] {
        let (name_a, name_b) = (a.display().to_string(), b.display().to_string());
        out(&diff((&name_a, &PlanFile::read(a)?), (&name_b, &PlanFile::read(b)?)));
        return Ok(());
    }
    let asked = args.what.read(args.checked()?, true)?;
    let compares = args.report.is_some() || (args.emit.is_empty() && !args.json);
    let compare = || if compares { others(&asked) } else { Ok(Vec::new()) };
    let (compiled, others) = rayon::join(|| args.what.compile_read(&asked), compare);
    let compiled = compiled?;
    let settings = compiled.settings.clone();
    let request = settings.request()?;
    let file = PlanFile::new(&compiled.step, &compiled.planned, &request);
    if let Some(path) = &args.output {
        write_atomically(path, file.to_json().as_bytes())?;
        say!("written to {}", path.display());
    }
    let others = others?;
    if let Some(path) = &args.report {
        let others = others.iter().map(|(label, p)| ((*label).to_owned(), p.estimate.seconds)).collect();
        let (batch, parameters) = (settings.batch(), compiled.parameters());
        let heading = Heading { run: "a training step", batch, parameters, others };
        write_atomically(path, report(&compiled.step, &compiled.planned, &request, heading)?.as_bytes())?;
        say!("written to {}", path.display());
    }
    if !args.emit.is_empty() {
        for stage in &args.emit {
            out(&emit(&compiled, stage)?);
        }
        return Ok(());
    }
    if args.json {
        out(&file.to_json());
        return Ok(());
    }
    let g = &compiled.step;
    out(&format!(
        "training step of `{}`: {} values, {} parameters, batch {}\n",
        g.name,
        g.len(),
        compiled.parameters(),
        compiled.settings.batch()
    ));
    out(&format!("{request}\n{}\n", compiled.layers));
    out(&evidence_text(&compiled, &settings));
    out(&print_table(&compiled.planned, &request)?);
    let plans = std::iter::once(("this plan", &compiled.planned)).chain(others.iter().map(|(label, p)| (*label, p)));
    out(&format!("\n{}", print_summary("step", &plans.collect::<Vec<_>>())?));
    for limit in compiled.planned.limits() {
        out(&format!("note: {limit}\n"));
    }
    Ok(())
}

/// Plans to compare with: everything f32, and everything low.
fn others(asked: &Asked) -> Result<Vec<(&'static str, Planned)>> {
    let Asked { model, settings, rules, .. } = asked;
    let request = settings.request()?;
    let policies = [("everything f32 (fp32)", Policy::Fp32), ("everything low (o3)", Policy::O3)];
    let wanted =
        |policy| policy != settings.policy && (policy != Policy::O3 || request.target.multiplies(settings.low));
    let planned = |(label, policy)| {
        let other = Settings { policy, ..settings.clone() };
        let (_, step) = other.build(model, rules)?;
        let request = Request { policy, frontier: false, ..request.clone() };
        Ok((label, plan(&step, &request, rules)?))
    };
    policies.into_par_iter().filter(|p| wanted(p.1)).map(planned).collect()
}

/// What policy auto went by, and what came of it.
fn evidence_text(compiled: &Compiled, settings: &Settings) -> String {
    if settings.policy != Policy::Auto {
        return String::new();
    }
    let (Some(c), Some(m)) = (&settings.calibration, &compiled.planned.measured) else {
        return "without data: the formats are those of autocast's lists, and of values whose operations bound them, chosen by cost;\n--calibrate DATA chooses them by evidence\n\n".into();
    };
    let mut text = format!(
        "calibrated on {} batches; {}. The plan is estimated to add {} of that; measured on {}: {}",
        c.batches,
        c.budget_text(),
        percent(compiled.planned.estimated_noise()),
        m.on(),
        percent(m.overall())
    );
    if let Some((name, error)) = m.worst() {
        text += &format!(" (most in the gradient of `{name}`: {})", percent(error));
    }
    text += &format!("\nloss scale {} to begin with\n", c.loss_scale);
    if let Some(line) = m.given_up_text() {
        text += &format!("{line}\n");
    }
    for (name, format, share) in compiled.planned.noise.iter().take(3) {
        text += &format!("  {:<28} to {format}: {} of the budget's square\n", clip(name, 28), percent(*share));
    }
    if compiled.planned.frontier.len() > 1 {
        text += "what other budgets would cost (estimated noise in budgets: time of the step)\n ";
        for (noise, s) in &compiled.planned.frontier {
            text += &format!(" {}: {}", percent(*noise), seconds(*s));
        }
        text += "\n";
    }
    text + "\n"
}

fn emit(compiled: &Compiled, stage: &str) -> Result<String> {
    match compiled.emit(stage) {
        Some(text) => Ok(text),
        None => emit_planned(&compiled.planned.graph, stage),
    }
}
