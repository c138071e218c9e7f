//! `mantissa plan`.

use super::{StepArgs, new_file, out, read_model};
use crate::data;
use crate::error::{Error, Result};
use crate::ir::verify;
use crate::lower::{lower, outline};
use crate::model::write_atomically;
use crate::plan::{PlanFile, Planned, Policy, Request, plan, print_table, summary_line};
use crate::train::{RunFile, Settings};
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct PlanArgs {
    /// A model (.mir, .onnx), or a run file (.toml) for the step that `train` would run
    #[arg(value_name = "MODEL|RUN.toml")]
    model: PathBuf,
    #[command(flatten)]
    step: StepArgs,
    /// Write the plan as JSON, for `train --plan`
    #[arg(short, long, value_name = "PLAN.json")]
    output: Option<PathBuf>,
    /// Overwrite the output file
    #[arg(long)]
    force: bool,
    /// Print stages of the compiler instead of the table: ir, step, plan, kernels, cuda
    #[arg(long, value_name = "STAGE,..", value_delimiter = ',')]
    emit: Vec<String>,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

/// What `--emit` prints.
const STAGES: [&str; 5] = ["ir", "step", "plan", "kernels", "cuda"];

pub fn run(args: &PlanArgs) -> Result<()> {
    let (model_path, mut settings) = if args.model.extension().is_some_and(|e| e == "toml") {
        let file = RunFile::read(&args.model, &[])?;
        let dir = args.model.parent().unwrap_or(Path::new("."));
        let samples = data::load(&file.data.train.relative_to(dir), file.data.scale)?.samples;
        (dir.join(&file.model), file.settings(samples))
    } else {
        (args.model.clone(), Settings::default())
    };
    args.step.apply(&mut settings)?;
    if let Some(bad) = args.emit.iter().find(|s| !STAGES.contains(&s.as_str())) {
        return Err(Error::Request(format!("there is no stage `{bad}`; stages are {}", STAGES.join(", "))));
    }
    if let Some(path) = &args.output {
        new_file(path, args.force)?;
    }
    let model = read_model(&model_path)?;
    let request = settings.request()?;
    if settings.policy != Policy::Fp32 {
        request.target.require(settings.low)?;
    }
    let rules = args.step.rule_set()?;
    let compiled = settings.compile(&model, &rules, None)?;
    let file = PlanFile::new(&compiled.step, &compiled.planned, &request);
    if let Some(path) = &args.output {
        write_atomically(path, file.to_json().as_bytes())?;
        eprintln!("written to {}", path.display());
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
    out(&format!(
        "policy {} with {} on {} ({})\n\n",
        settings.policy, settings.low, request.target.name, request.target.device
    ));
    out(&print_table(&compiled.planned, &request)?);
    out(&format!("\n{:<28} {:>10} {:>11} {:>9}\n", "predicted for one step", "time", "bytes", "launches"));
    let launches = |p: &Planned| Ok::<_, Error>(lower(verify(&p.graph)?)?.launches.len());
    out(&format!("{}\n", summary_line("this plan", compiled.planned.estimate, launches(&compiled.planned)?)));
    for (label, policy) in [("everything f32 (fp32)", Policy::Fp32), ("everything low (o3)", Policy::O3)] {
        if policy == settings.policy || (policy == Policy::O3 && !request.target.multiplies(settings.low)) {
            continue;
        }
        let other = Settings { policy, ..settings.clone() };
        let (_, step) = other.build(&model, &rules)?;
        let planned = plan(&step, &Request { policy, ..request.clone() }, &rules)?;
        out(&format!("{}\n", summary_line(label, planned.estimate, launches(&planned)?)));
    }
    if compiled.planned.search_cut_short {
        out(&format!(
            "note: the search ended after {} candidates; the step is large, and a cheaper plan may exist\n",
            compiled.planned.evaluations
        ));
    }
    for phase in compiled.planned.phases.iter().filter(|p| p.cut_short.is_some()) {
        out(&format!(
            "note: phase `{}` was cut short at {}; the plan may miss rewrites\n",
            phase.phase,
            phase.cut_short.as_deref().unwrap_or("")
        ));
    }
    Ok(())
}

fn emit(compiled: &crate::train::Compiled, stage: &str) -> Result<String> {
    if let Some(text) = compiled.emit(stage) {
        return Ok(text);
    }
    let plan = verify(&compiled.planned.graph)?;
    match stage {
        "cuda" => Ok(crate::lower::cuda::generate(&lower(plan)?)?.source),
        "kernels" => Ok(crate::lower::print_program(&outline(plan)?)),
        _ => unreachable!("stages are checked first"),
    }
}
