//! `mantissa profile`.

use super::show::bar;
use super::train::{DataArgs, prepare};
use super::{StepArgs, out, read_model};
use crate::error::{Error, Result};
use crate::format::{Fate, Format, Spread};
use crate::ir::{Graph, Stage};
use crate::plan::{Evidence, clip, seconds};
use crate::run::DeviceKind;
use crate::train::{Bench, Observed, observe};
use clap::Args;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Args)]
pub struct ProfileArgs {
    /// A run file (.toml), or a model (.mir, .onnx) together with --data
    #[arg(value_name = "RUN.toml|MODEL")]
    what: PathBuf,
    #[command(flatten)]
    step: StepArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Change a value of the run file, as in train.seed=5
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Steps to run
    #[arg(long, value_name = "N", default_value_t = 8)]
    batches: usize,
    /// Where to run them: cpu, cuda, or auto (cuda if there is one)
    #[arg(long, default_value = "auto")]
    device: String,
    /// Print all values, not only those of the two passes that the format would damage
    #[arg(long)]
    all: bool,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

/// Damage of less than this fraction of a value's elements is not listed.
const NEGLIGIBLE: f64 = 1e-3;
/// Octaves of the histogram, and how many share a column.
const FROM: i32 = -48;
const TO: i32 = 32;
const OCTAVES: i32 = 2;

pub fn run(args: &ProfileArgs) -> Result<()> {
    let (model_path, mut settings, plan, data) = prepare(&args.what, &args.set, &args.data)?;
    args.step.apply(&mut settings)?;
    if args.batches == 0 {
        return Err(Error::Request("--batches must be at least 1".into()));
    }
    if data.samples < settings.batch() {
        return Err(Error::Request(format!(
            "the data has {} samples, fewer than a batch of {}; give a smaller --batch",
            data.samples,
            settings.batch()
        )));
    }
    let (model, rules) = (read_model(&model_path, &args.step.sizes)?, args.step.rule_set()?);
    let bar = bar(args.batches, "step {pos} of {len}");
    let start = Instant::now();
    let tick = || bar.inc(1);
    let backend = args.device.parse::<DeviceKind>()?.backend();
    let bench = Bench { data: &data, seed: plan.seed, backend: &*backend };
    let Observed { mut session, evidence, losses } = observe(&settings, &model, &rules, bench, args.batches, &tick)?;
    bar.finish_and_clear();
    let evidence = evidence.borrow();
    let low = session.compiled.settings.low;
    if args.json {
        out(&format!("{}\n", json(&evidence, low)));
        return Ok(());
    }
    let (loss, scale) = (losses.last().copied().unwrap_or(f64::NAN), session.scale()?);
    out(&format!(
        "{} steps of `{}` in f32, batch {}, in {}; loss {loss:.4}; loss scale {scale}\n\n",
        evidence.steps,
        session.compiled.step.name,
        session.compiled.settings.batch(),
        seconds(start.elapsed().as_secs_f64())
    ));
    out(&table(&evidence, &session.compiled.step, low, args.all));
    Ok(())
}

fn json(evidence: &Evidence, low: Format) -> serde_json::Value {
    let values: serde_json::Map<String, serde_json::Value> = evidence
        .values
        .iter()
        .map(|(name, s)| {
            let fates: serde_json::Map<String, serde_json::Value> =
                [Format::F16, Format::Bf16, Format::F8E4M3, Format::F8E5M2]
                    .into_iter()
                    .map(|f| (f.to_string(), serde_json::json!(s.fate(f))))
                    .collect();
            (name.clone(), serde_json::json!({ "spread": s, "formats": fates }))
        })
        .collect();
    serde_json::json!({
        "steps": evidence.steps, "format": low, "first_non_finite": evidence.first_non_finite, "values": values
    })
}

/// A value's row: how much of it the format would damage decides its place.
struct Row<'a> {
    name: &'a str,
    stage: Option<Stage>,
    spread: &'a Spread,
    fate: Fate,
}

fn table(evidence: &Evidence, step: &Graph, low: Format, all: bool) -> String {
    let damage = |f: &Fate| 1e3 * f.overflow + f.flushed + 1e-3 * f.subnormal;
    let mut rows: Vec<Row> = evidence
        .values
        .iter()
        .map(|(name, spread)| {
            let stage = step.find(name).map(|id| step.node(id).stage);
            Row { name, stage, spread, fate: spread.fate(low) }
        })
        // Scalars of the scaler and the optimizer are f32 in every plan.
        .filter(|r| r.spread.count > evidence.steps as u64)
        .collect();
    rows.sort_by(|a, b| damage(&b.fate).total_cmp(&damage(&a.fate)).then(a.name.cmp(b.name)));
    let listed = |r: &&Row| {
        let watched = all || r.stage != Some(Stage::Update);
        watched
            && (all
                || r.spread.non_finite > 0
                || r.fate.overflow > 0.0
                || r.fate.flushed + r.fate.subnormal > NEGLIGIBLE)
    };
    let columns = ((TO - FROM) / OCTAVES) as usize;
    let mut text = format!(
        "{:<28} {:<8} {:>6} {:>9} {:>9}  {:<columns$}  {low}: above below  lost\n{:<66}{}\n",
        "value",
        "stage",
        "zeros",
        "smallest",
        "largest",
        "magnitudes, by power of two",
        "",
        ruler(low)
    );
    let shown: Vec<&Row> = rows.iter().filter(listed).collect();
    for r in &shown {
        let stage = r.stage.map_or("loop", Stage::name);
        let s = r.spread;
        let none = s.smallest > s.largest;
        let number = |x: f32| if none { "-".to_owned() } else { format!("{x:.2e}") };
        let percent = |x: f64| if x == 0.0 { "·".to_owned() } else { format!("{:.1}%", 100.0 * x) };
        text += &format!(
            "{:<28} {stage:<8} {:>5.1}% {:>9} {:>9}  {}  {:>10} {:>5} {:>5}{}\n",
            clip(r.name, 28),
            100.0 * s.zeros as f64 / s.count.max(1) as f64,
            number(s.smallest),
            number(s.largest),
            histogram(s),
            percent(r.fate.overflow),
            percent(r.fate.subnormal),
            percent(r.fate.flushed),
            if s.non_finite > 0 { format!("  {} not finite", s.non_finite) } else { String::new() }
        );
    }
    let damaged = |r: &&&Row| r.fate.overflow > 0.0 || r.fate.flushed + r.fate.subnormal > NEGLIGIBLE;
    let (updates, passes): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|r| r.stage == Some(Stage::Update));
    let count = |rows: &[&Row]| (rows.iter().filter(damaged).count(), rows.len());
    let ((bad, of), (bad_updates, of_updates)) = (count(&passes), count(&updates));
    text += &format!(
        "\n{bad} of {of} values of the forward and backward pass, and {bad_updates} of {of_updates} of the optimizer's, have more than {} % of\n\
         their elements outside {low}'s range: above its largest number, below its smallest normal one (fewer bits), or lost to zero.\n",
        100.0 * NEGLIGIBLE
    );
    if let Some((at, name)) = &evidence.first_non_finite {
        let origin = step.find(name).and_then(|id| step.node(id).origin.clone());
        let place = origin.map_or(String::new(), |o| format!(" ({o})"));
        text += &format!("the first value that was not finite: `{name}`{place}, in step {at}\n");
    }
    text
}

/// Where the format's normal numbers begin and end, above the histograms.
fn ruler(format: Format) -> String {
    let Some(spec) = format.float() else { return String::new() };
    let column = |e: i32| ((e.clamp(FROM, TO - 1) - FROM) / OCTAVES) as usize;
    let (tiny, normal, top) =
        (column(1 - spec.bias - spec.mantissa_bits as i32), column(1 - spec.bias), column(spec.max.log2() as i32));
    (0..((TO - FROM) / OCTAVES) as usize)
        .map(|c| match c {
            c if c == normal || c == top => '|',
            c if c > normal && c < top => '-',
            c if c >= tiny && c < normal => '.',
            _ => ' ',
        })
        .collect()
}

/// One character for some octaves, higher where more elements are.
fn histogram(s: &Spread) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let columns = (TO - FROM) / OCTAVES;
    let count = |c: i32| {
        let from = if c == 0 { -149 } else { FROM + c * OCTAVES };
        let to = if c + 1 == columns { 128 } else { FROM + (c + 1) * OCTAVES };
        (from..to).map(|e| s.at(e)).sum::<u64>()
    };
    let counts: Vec<u64> = (0..columns).map(count).collect();
    let most = counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    // What is there at all shows.
    let bar = |n: u64| if n == 0 { 0 } else { ((n as f64 / most * 8.0).ceil() as usize).clamp(1, 8) };
    counts.iter().map(|&n| BARS[bar(n)]).collect()
}
