//! What is asked of a device.

use crate::error::Result;
use crate::format::{Format, Spread, widen};
use crate::lower::Program;
use crate::memory::Bytes;
use std::time::Instant;

/// Something that programs run on: a processor, with what compiles for it and its libraries.
pub trait Backend {
    /// Puts a program on it, with memory of its own.
    ///
    /// # Errors
    /// That there is none on this machine, that it lacks memory, or what of the program it cannot run.
    fn open(&self, program: Program) -> Result<Box<dyn Device>>;

    /// Puts a program on it that tells, whenever it runs, what the elements of every source and stored value in floating
    /// point are like.
    ///
    /// # Errors
    /// Those of [`Backend::open`].
    fn watch(&self, program: Program, watcher: Watcher) -> Result<Box<dyn Device>>;
}

/// Told a buffer's name and what its elements are like: sources first, then each kernel's stores, in the order they run.
pub type Watcher = Box<dyn FnMut(&str, &Spread)>;

/// A program with its memory on some device.
pub trait Device {
    /// What it runs.
    fn program(&self) -> &Program;

    /// Overwrites a source with f32 values rounded to its format.
    ///
    /// # Errors
    /// A name of no buffer of the program, or another number of values than it holds; what the device refuses.
    fn write(&mut self, name: &str, values: &[f32]) -> Result<()>;

    /// Overwrites a source with raw elements of its format.
    ///
    /// # Errors
    /// A name of no buffer of the program, or another number of bytes than it takes; what the device refuses.
    fn write_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()>;

    /// Overwrites a source with raw elements of some format, converted to its own where that is another.
    ///
    /// # Errors
    /// Those of [`Device::write`].
    fn write_as(&mut self, name: &str, format: Format, bytes: &[u8]) -> Result<()> {
        let program = self.program();
        if program.find(name).is_some_and(|b| program.buffers[b].ty.format == format) {
            return self.write_bytes(name, bytes);
        }
        let mut values = vec![0.0; bytes.len() / format.bytes()];
        // A file's bytes may lie at any address, so they are copied to aligned memory.
        widen(format, Bytes::from_slice(bytes).as_ref(), &mut values);
        self.write(name, &values)
    }

    /// A source's or result's values, widened to f32. Waits for the device.
    ///
    /// # Errors
    /// A name of no buffer of the program, or of one that was not computed; what failed on the device since it was last
    /// waited for.
    fn read(&mut self, name: &str) -> Result<Vec<f32>>;

    /// Raw elements of a source. Waits for the device.
    ///
    /// # Errors
    /// A name of no buffer of the program; what failed on the device since it was last waited for.
    fn read_bytes(&mut self, name: &str) -> Result<Vec<u8>>;

    /// Runs every kernel once. May return before they have finished.
    ///
    /// # Errors
    /// What the device refuses. What fails later shows when it is waited for.
    fn run(&mut self) -> Result<()>;

    /// Waits until everything that was started has finished.
    ///
    /// # Errors
    /// What failed on the device since it was last waited for.
    fn wait(&mut self) -> Result<()> {
        Ok(())
    }

    /// Milliseconds per run, over `n` runs after `warm` others.
    ///
    /// # Errors
    /// Those of [`Device::run`] and [`Device::wait`].
    fn time(&mut self, warm: usize, n: usize) -> Result<f64> {
        for _ in 0..warm {
            self.run()?;
        }
        self.wait()?;
        let start = Instant::now();
        for _ in 0..n {
            self.run()?;
        }
        self.wait()?;
        Ok(start.elapsed().as_secs_f64() * 1e3 / n as f64)
    }

    /// Seconds of each of the program's launches, by running it over and over. What the step keeps is spoilt by it.
    ///
    /// # Errors
    /// What the device refuses, or what fails on it.
    fn profile(&mut self) -> Result<Vec<f64>>;

    /// What it is, for the log.
    fn describe(&self) -> String;
}
