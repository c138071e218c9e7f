//! The CPU executor: kernels in cache-sized blocks over f32 registers, rounding exactly where the plan rounds.
//!
//! It is the default device, and the reference that generated CUDA is compared with.

mod gemm;
mod lanes;
mod tape;

use super::memory::Bytes;
use crate::error::{Error, Result};
use crate::format::{Format, narrow, widen};
use crate::lower::{BufferId, Kernel, Program, passes};
use tape::{Execution, Inputs};

/// A program with its memory.
pub struct CpuRunner {
    program: Program,
    memory: Vec<Bytes>,
    executions: Vec<Execution>,
    /// Buffers whose last use is each kernel: their memory is free for the next temporaries.
    last_use: Vec<Vec<BufferId>>,
    pool: Vec<Bytes>,
}

impl CpuRunner {
    pub fn new(program: Program) -> CpuRunner {
        let mut last = vec![None; program.buffers.len()];
        for (time, kernel) in program.kernels.iter().enumerate() {
            kernel.reads().into_iter().chain(kernel.writes()).for_each(|b| last[b] = Some(time));
        }
        program.results.iter().for_each(|r| last[r.2] = None);
        let mut last_use = vec![Vec::new(); program.kernels.len()];
        for (b, info) in program.buffers.iter().enumerate() {
            if let (None, Some(time)) = (&info.source, last[b]) {
                last_use[time].push(b);
            }
        }
        let memory = program.buffers.iter().map(|b| if b.source.is_some() { Bytes::zeroed(b.ty.bytes()) } else { Bytes::default() }).collect();
        let executions = program.kernels.iter().map(|k| Execution::new(k.body(), passes(k.body()))).collect();
        CpuRunner { program, memory, executions, last_use, pool: Vec::new() }
    }

    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Runs every kernel once.
    pub fn run(&mut self) {
        for i in 0..self.program.kernels.len() {
            self.kernel(i);
            for &b in &self.last_use[i] {
                self.pool.push(std::mem::take(&mut self.memory[b]));
            }
        }
    }

    fn kernel(&mut self, i: usize) {
        let kernel = &self.program.kernels[i];
        let body = kernel.body();
        let accumulator = if let Kernel::Gemm(g) = kernel { Some(gemm::product(g, &self.program, &self.memory)) } else { None };
        // Written buffers leave the table while the kernel runs; what is read and written in place is read from a copy.
        let mut outputs: Vec<(BufferId, Bytes)> = Vec::new();
        for store in &body.stores {
            if outputs.iter().any(|(b, _)| *b == store.buffer) {
                continue;
            }
            let bytes = self.program.buffers[store.buffer].ty.bytes();
            let reads_it = body.loads.iter().any(|l| l.buffer == store.buffer);
            let mut fresh = if reads_it {
                Bytes::from_slice(self.memory[store.buffer].as_ref())
            } else {
                std::mem::take(&mut self.memory[store.buffer])
            };
            if fresh.as_ref().len() != bytes {
                let reuse = self.pool.iter().position(|p| p.capacity() >= bytes && p.capacity() <= 2 * bytes.next_multiple_of(8));
                fresh = reuse.map_or_else(Bytes::default, |p| self.pool.swap_remove(p));
                fresh.resize(bytes);
            }
            outputs.push((store.buffer, fresh));
        }
        let inputs = Inputs { memory: &self.memory, accumulator: accumulator.as_deref() };
        self.executions[i].run(body, &inputs, &mut outputs);
        for (b, bytes) in outputs {
            self.memory[b] = bytes;
        }
    }

    fn buffer(&self, name: &str) -> Result<BufferId> {
        self.program.find(name).ok_or_else(|| Error::Request(format!("the program has no buffer `{name}`")))
    }

    /// Overwrites a source with raw elements of its format.
    pub fn write_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let b = self.buffer(name)?;
        let want = self.program.buffers[b].ty.bytes();
        if want != bytes.len() {
            return Err(Error::Request(format!("`{name}` takes {want} bytes, not {}", bytes.len())));
        }
        self.memory[b] = Bytes::from_slice(bytes);
        Ok(())
    }

    /// Overwrites a source with f32 values rounded to its format.
    pub fn write(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let format = self.program.buffers[self.buffer(name)?].ty.format;
        let mut bytes = Bytes::zeroed(values.len() * format.bytes());
        narrow(format, values, bytes.as_mut());
        self.write_bytes(name, bytes.as_ref())
    }

    /// Raw elements of a source.
    pub fn read_bytes(&self, name: &str) -> Result<&[u8]> {
        Ok(self.memory[self.buffer(name)?].as_ref())
    }

    /// A source's or a result's values, widened to f32.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let b = self.program.result(name).map_or_else(|| self.buffer(name), Ok)?;
        let info = &self.program.buffers[b];
        let mut out = vec![0.0; info.ty.elements()];
        if info.ty.elements() * info.ty.format.bytes() != self.memory[b].as_ref().len() {
            return Err(Error::Request(format!("`{name}` has not been computed")));
        }
        widen(info.ty.format, self.memory[b].as_ref(), &mut out);
        Ok(out)
    }

    /// The format a source or buffer has in memory.
    pub fn format(&self, name: &str) -> Result<Format> {
        Ok(self.program.buffers[self.buffer(name)?].ty.format)
    }
}
