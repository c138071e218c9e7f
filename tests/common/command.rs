//! Running the program as a user does.
#![allow(dead_code, reason = "each test crate uses some of these")]

use std::path::Path;
use std::process::{Command, Output};

/// Runs the program in a directory.
pub fn mantissa(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mantissa")).args(args).current_dir(dir).output().expect("the binary runs")
}

pub fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a command that must succeed prints.
pub fn succeed(dir: &Path, args: &[&str]) -> String {
    let out = mantissa(dir, args);
    assert!(out.status.success(), "{args:?}: {}", text_of(&out.stderr));
    text_of(&out.stdout)
}

/// What a command says that must refuse its request.
pub fn refuse(dir: &Path, args: &[&str]) -> String {
    let out = mantissa(dir, args);
    assert_eq!(out.status.code(), Some(2), "{args:?}: {}", text_of(&out.stdout));
    text_of(&out.stderr)
}

/// A file of the digits example.
pub fn digits(file: &str) -> String {
    format!("{}/examples/digits/{file}", env!("CARGO_MANIFEST_DIR"))
}
