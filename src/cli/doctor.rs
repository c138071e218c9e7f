//! `mantissa doctor`.

use super::show::bar;
use super::{new_file, out};
use crate::cost::Target;
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::measure::{measure, steps, to_toml};
use crate::run::{DeviceKind, cuda};
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct DoctorArgs {
    /// Time products, memory and launches here, and write a profile to plan for: --target PROFILE.toml
    #[arg(long)]
    measure: bool,
    /// What to measure: cpu, cuda, or auto
    #[arg(long, default_value = "auto", requires = "measure")]
    device: String,
    /// Where to write the profile [default: measured.toml]
    #[arg(short, long, value_name = "PROFILE.toml", requires = "measure")]
    output: Option<PathBuf>,
    /// Overwrite the profile
    #[arg(long, requires = "measure")]
    force: bool,
}

pub fn run(args: &DoctorArgs) -> Result<()> {
    if args.measure { measured(args) } else { survey() }
}

/// Writes what this machine was measured to do.
fn measured(args: &DoctorArgs) -> Result<()> {
    let path = args.output.clone().unwrap_or_else(|| "measured.toml".into());
    if path.extension().is_none_or(|e| e != "toml") {
        return Err(Error::Request(format!("{}: --target knows profiles by the ending .toml", path.display())));
    }
    new_file(&path, args.force)?;
    let kind = args.device.parse::<DeviceKind>()?.resolved();
    let base = if kind == DeviceKind::Cuda { gpu()? } else { Target::named("cpu")? };
    let bar = bar(steps(&base), "timing {pos} of {len}");
    let target = measure(&base, &*kind.backend(), &|| bar.inc(1))?;
    bar.finish_and_clear();
    write_atomically(&path, to_toml(&target).as_bytes())?;
    out(&format!("{}\n", target.device));
    let line = |what: &str, unit: &str, expected: f64, measured: f64| {
        out(&format!("{what:<26} {measured:>9.4} {unit:<9} {expected:>9.4} in the profile it began with\n"));
    };
    line("memory", "GB/s", base.bandwidth_gb_s, target.bandwidth_gb_s);
    line("a launch", "µs", base.launch_us, target.launch_us);
    line("a product, besides", "µs", base.product_us, target.product_us);
    line("a sum to one, besides", "µs", base.total_us, target.total_us);
    line("arithmetic in kernels", "GFLOP/s", base.scalar_gflops, target.scalar_gflops);
    for (format, rate) in &target.product_tflops {
        line(&format!("products of {format}"), "TFLOP/s", base.product_tflops[format], *rate);
    }
    if let Some([alone, corrected]) = target.errors_of_timed() {
        out(&format!(
            "{} products timed: the model is off by {:.0} % in the median, {:.0} % where the others correct it\n",
            target.timed.len(),
            100.0 * (alone - 1.0),
            100.0 * (corrected - 1.0)
        ));
    }
    say!("written to {0}; plan for it with --target {0}", path.display());
    Ok(())
}

/// What the present GPU should be like.
fn gpu() -> Result<Target> {
    let context = cuda::context()?;
    let (name, multiprocessors, cache) = cuda::hardware(&context)?;
    let architecture = cuda::architecture(&context)?;
    let known = Target::named(architecture.trim_end_matches('a'));
    // Of an architecture that is not known, one that is older.
    let mut base = known.or_else(|_| Target::named("sm_80"))?;
    (base.name, base.device) = ("measured".into(), name);
    (base.multiprocessors, base.cache_mb) = (multiprocessors, cache as f64 / 1e6);
    Ok(base)
}

/// Says what this machine can run on, and where libraries were looked for.
fn survey() -> Result<()> {
    out(&format!("mantissa {}\n", super::VERSION));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    out(&format!("cpu      {threads} threads: always available\n"));
    for f in cuda::survey() {
        out(&format!(
            "{:<12} {} ({}){}\n",
            f.library,
            if f.found { "found" } else { "not found" },
            f.purpose,
            if f.found { String::new() } else { format!("; looked for {}", f.looked) }
        ));
    }
    match cuda::context() {
        Ok(context) => {
            let name = context.name().unwrap_or_else(|_| "?".into());
            out(&format!("gpu      {name}, {}\n", cuda::architecture(&context)?));
        }
        Err(e) => out(&format!("gpu      none: {e}\n")),
    }
    let targets: Vec<String> = Target::all().into_iter().map(|t| format!("{} ({})", t.name, t.device)).collect();
    out(&format!("targets  {}\n", targets.join(", ")));
    Ok(())
}
