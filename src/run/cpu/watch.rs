//! A CPU executor that tells what every value it stores is like.

use super::CpuRunner;
use crate::error::Result;
use crate::format::Spread;
use crate::lower::Program;
use crate::run::{Device, Watcher};

/// A program on the CPU, whose stored values are watched.
pub(super) struct Watched {
    runner: CpuRunner,
    watcher: Watcher,
}

impl Watched {
    /// Puts a program on the CPU.
    ///
    /// # Errors
    /// Those of [`CpuRunner::open`].
    pub fn new(program: Program, watcher: Watcher) -> Result<Watched> {
        Ok(Watched { runner: CpuRunner::open(program)?, watcher })
    }
}

impl Device for Watched {
    fn program(&self) -> &Program {
        self.runner.program()
    }
    fn write(&mut self, name: &str, values: &[f32]) -> Result<()> {
        self.runner.write(name, values)
    }
    fn write_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.runner.write_bytes(name, bytes)
    }
    fn read(&mut self, name: &str) -> Result<Vec<f32>> {
        self.runner.read(name)
    }
    fn read_bytes(&mut self, name: &str) -> Result<Vec<u8>> {
        self.runner.read_bytes(name)
    }
    fn run(&mut self) -> Result<()> {
        self.runner.run_watched(&mut |name, values| (self.watcher)(name, &Spread::of(values)));
        Ok(())
    }
    fn profile(&mut self) -> Result<Vec<f64>> {
        self.runner.profile()
    }
    fn describe(&self) -> String {
        self.runner.describe()
    }
}
