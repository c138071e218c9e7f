//! `mantissa doctor`.

use crate::cost::Target;
use crate::error::Result;
use crate::run::cuda;

/// Says what this machine can run on, and where libraries were looked for.
pub fn run() -> Result<()> {
    println!("mantissa {}", env!("CARGO_PKG_VERSION"));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    println!("cpu      {threads} threads: always available");
    for f in cuda::survey() {
        println!("{:<12} {} ({}){}", f.library, if f.found { "found" } else { "not found" }, f.purpose, if f.found { String::new() } else { format!("; looked for {}", f.looked) });
    }
    match cuda::context() {
        Ok(context) => {
            let name = context.name().unwrap_or_else(|_| "?".into());
            println!("gpu      {name}, {}", cuda::architecture(&context)?);
        }
        Err(e) => println!("gpu      none: {e}"),
    }
    let targets: Vec<String> = Target::all().into_iter().map(|t| format!("{} ({})", t.name, t.device)).collect();
    println!("targets  {}", targets.join(", "));
    Ok(())
}
