//! `mantissa doctor`.

use super::out;
use crate::cost::Target;
use crate::error::Result;
use crate::run::cuda;

/// Says what this machine can run on, and where libraries were looked for.
pub fn run() -> Result<()> {
    out(&format!("mantissa {}\n", env!("CARGO_PKG_VERSION")));
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
