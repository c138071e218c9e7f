//! `mantissa plan --inference`.

use super::plan::PlanArgs;
use super::what::{WhatArgs, emit_planned};
use super::{data_name, out, read_model, write_onnx};
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::ir::{Graph, Op, text};
use crate::model::{Mixed, Model};
use crate::plan::{
    Heading, PlanFile, Planned, Policy, Request, clip, percent, plan, print_summary, print_table, report,
};
use crate::rewrite::RuleSet;
use crate::train::{Bench, PlannedInference, Settings};
use std::path::Path;

/// Plans what the arguments name; with `onnx`, for the model's own file in mixed precision of that name.
pub fn planned(args: &WhatArgs, what: &Path, onnx: Option<&Path>) -> Result<(PlannedInference, Model, RuleSet)> {
    let (model_path, mut settings, data) = args.of_inference(what)?;
    if let Some(path) = onnx {
        require_other(path, &model_path)?;
        // Few runtimes mix f16 and bf16, and some have no bf16 at all.
        if settings.formats.is_empty() {
            settings.formats = vec![settings.low];
        }
    }
    let model = read_model(&model_path, &args.step.sizes)?;
    if settings.policy != Policy::Fp32 {
        settings.request()?.target.require(settings.low)?;
    }
    let rules = args.step.rule_set()?;
    let backend = args.backend()?;
    let bench = data.as_ref().map(|data| Bench { data, seed: 0, backend: &*backend });
    let planned = args.evidence.plan_inference(&settings, &model, &rules, bench, onnx.is_some())?;
    Ok((planned, model, rules))
}

pub fn run(args: &PlanArgs) -> Result<()> {
    let what = args.checked()?;
    let (planned, model, rules) = planned(&args.what, what, args.onnx.as_deref())?;
    let request = planned.settings.request()?;
    let file = PlanFile::new(&planned.model.graph, &planned.planned, &request);
    let mut written = None;
    if let Some(path) = &args.onnx
        && let Some(mixed) = planned.mixed(&model, &notes(&planned, &request), &data_name(path))?
    {
        write_onnx(path, &mixed.written, args.force)?;
        say!("written to {}", path.display());
        written = Some(mixed);
    }
    if let Some(path) = &args.output {
        write_atomically(path, file.to_json().as_bytes())?;
        say!("written to {}", path.display());
    }
    let wide = || f32_plan(&planned, &rules);
    if let Some(path) = &args.report {
        let others = vec![("everything f32 (fp32)".to_owned(), wide()?.estimate.seconds)];
        let (batch, parameters) = (planned.settings.batch(), parameters(&planned.model.graph));
        let heading = Heading { run: "inference", batch, parameters, others };
        write_atomically(path, report(&planned.model.graph, &planned.planned, &request, heading)?.as_bytes())?;
        say!("written to {}", path.display());
    }
    for stage in &args.emit {
        let text = match stage.as_str() {
            "ir" | "step" => text::print(&planned.model.graph),
            stage => emit_planned(&planned.planned.graph, stage)?,
        };
        out(&text);
    }
    if args.json {
        out(&file.to_json());
    } else if args.emit.is_empty() {
        print(&planned, &wide()?, &request, written.as_ref())?;
    }
    Ok(())
}

/// The model itself is not to be overwritten, whatever is forced.
fn require_other(path: &Path, model: &Path) -> Result<()> {
    let same = path.canonicalize().ok().zip(model.canonicalize().ok()).is_some_and(|(a, b)| a == b);
    if same {
        return Err(Error::Request(format!("{} is the model itself; give --onnx another name", path.display())));
    }
    Ok(())
}

/// The same with everything in f32.
fn f32_plan(planned: &PlannedInference, rules: &RuleSet) -> Result<Planned> {
    let settings = Settings { policy: Policy::Fp32, calibration: None, ..planned.settings.clone() };
    plan(&planned.model.fed()?, &settings.request()?, rules)
}

/// What a written file says of itself.
fn notes(planned: &PlannedInference, request: &Request) -> Vec<(String, String)> {
    let mut notes = vec![
        ("mantissa.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("mantissa.policy".to_owned(), request.policy.to_string()),
    ];
    if let Some(m) = &planned.planned.measured {
        for (output, error) in &m.results {
            notes.push((format!("mantissa.error.{output}"), format!("{:e}", error * planned.budget.share())));
        }
    }
    notes
}

/// How many numbers a model holds, running statistics among them.
fn parameters(g: &Graph) -> usize {
    let held = g.sources().filter(|&id| matches!(g.op(id), Op::Param { .. } | Op::State { .. }));
    held.map(|id| g.ty(id).elements()).sum()
}

fn print(planned: &PlannedInference, wide: &Planned, request: &Request, written: Option<&Mixed>) -> Result<()> {
    let g = &planned.model.graph;
    out(&format!(
        "inference of `{}`: {} values, {} parameters, batch {}\n",
        g.name,
        g.len(),
        parameters(g),
        planned.model.batch()
    ));
    out(&format!("{request}\n\n"));
    out(&evidence_text(planned, written.is_some()));
    out(&print_table(&planned.planned, request)?);
    let plans = [("this plan", &planned.planned), ("everything f32 (fp32)", wide)];
    out(&format!("\n{}", print_summary("run", &plans)?));
    for limit in planned.planned.limits() {
        out(&format!("note: {limit}\n"));
    }
    if let Some(m) = written {
        let [before, after] = m.bytes.map(|b| b as f64 / 1e6);
        out(&format!(
            "\nthe file: {} of {} nodes in narrow formats, {} casts, {after:.1} MB of weights ({before:.1} before)\n",
            m.narrow, m.nodes, m.casts
        ));
    }
    Ok(())
}

/// What the plan went by, and what came of it.
fn evidence_text(planned: &PlannedInference, as_file: bool) -> String {
    let Some(m) = &planned.planned.measured else {
        return "without data: the formats are those of autocast's lists, and nothing is known of the outputs' errors;\n--calibrate DATA tells, and with --policy auto chooses\n\n".into();
    };
    let by = match &planned.settings.calibration {
        Some(c) => format!(
            "calibrated on {} batches; {}; estimated: {} of that. ",
            c.batches,
            c.budget_text(),
            percent(planned.planned.estimated_noise())
        ),
        None => String::new(),
    };
    let mut text = format!("{by}Measured on {}{}:\n", m.on(), if as_file { ", for the file" } else { "" });
    for (output, error) in &m.results {
        text += &format!("  {:<28} off by {:.2e} of its norm\n", clip(output, 28), error * planned.budget.share());
    }
    text + "\n"
}
