//! What `--version` says the binary was built from: the commit, where it is built in a checkout.

use std::path::Path;
use std::process::Command;

fn git(args: &[&str]) -> Option<String> {
    let out = Command::new("git").args(args).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    // A packaged crate may lie inside of somebody else's repository.
    let is_checkout = Path::new(".git").exists();
    if is_checkout {
        for file in ["HEAD", "logs/HEAD"] {
            // What is not there would be changed at every build.
            if let Some(path) = git(&["rev-parse", "--git-path", file]).filter(|p| Path::new(p).exists()) {
                println!("cargo::rerun-if-changed={path}");
            }
        }
    }
    let commit = git(&["show", "--no-patch", "--format=%h %cs", "HEAD"]).filter(|_| is_checkout);
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let target = std::env::var("TARGET").unwrap_or_default();
    let built = commit.map_or(target.clone(), |c| format!("{c}, {target}"));
    println!("cargo::rustc-env=MANTISSA_VERSION={version} ({built})");
}
