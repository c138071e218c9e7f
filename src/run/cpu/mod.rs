//! The CPU executor: kernels in cache-sized blocks over f32 registers, rounding exactly where the plan rounds.
//!
//! It is the default device, and the reference that generated CUDA is compared with.

mod attention;
mod conv;
mod gemm;
mod lanes;
mod real;
mod scatter;
mod tape;
mod watch;

use super::device::{Backend, Device, Watcher};
use crate::error::{Error, Result};
use crate::format::{narrow, widen};
use crate::lower::{Address, BufferId, Contraction, Kernel, Program, passes};
use crate::memory::Bytes;
use bytesize::ByteSize;
use ndarray::LinalgScalar;
use real::Real;
use std::time::Instant;
use tape::{Execution, Inputs};
use watch::Watched;

/// Bytes up to which any free memory will do for a temporary.
const SMALLEST: usize = 64;

/// This machine's processor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

impl Backend for Cpu {
    fn open(&self, program: Program) -> Result<Box<dyn Device>> {
        Ok(Box::new(CpuRunner::open(program)?))
    }

    fn watch(&self, program: Program, watcher: Watcher) -> Result<Box<dyn Device>> {
        Ok(Box::new(Watched::new(program, watcher)?))
    }
}

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
    /// A runner for a program that the machine has memory for.
    ///
    /// # Errors
    /// Where it has not, before any of it is allocated: sizes come from model files and command lines.
    pub fn open(program: Program) -> Result<CpuRunner> {
        let bytes = program.memory().total();
        let room = Vec::<u8>::new().try_reserve_exact(bytes);
        room.map_err(|_| {
            let bytes = ByteSize::b(bytes as u64).display().si();
            Error::Device(format!(
                "this takes {bytes} of memory, more than the machine gives; make the batch, another extent or the model smaller, or set --memory-limit"
            ))
        })?;
        Ok(CpuRunner::new(program))
    }

    /// A runner for a program whose size is known to be small.
    pub fn new(program: Program) -> CpuRunner {
        let mut last = vec![None; program.buffers.len()];
        for (time, kernel) in program.kernels().enumerate() {
            kernel.reads().into_iter().chain(kernel.writes()).for_each(|b| last[b] = Some(time));
        }
        program.results.iter().for_each(|r| last[r.2] = None);
        let mut last_use = vec![Vec::new(); program.calls.len()];
        for (b, info) in program.buffers.iter().enumerate() {
            if let (None, Some(time)) = (&info.source, last[b]) {
                last_use[time].push(b);
            }
        }
        let memory = program
            .buffers
            .iter()
            .map(|b| if b.source.is_some() { Bytes::zeroed(b.ty.bytes()) } else { Bytes::default() })
            .collect();
        let executions = program.kernels().map(|k| Execution::new(k.body(), passes(k.body()))).collect();
        CpuRunner { program, memory, executions, last_use, pool: Vec::new() }
    }

    fn kernel<T: Real + LinalgScalar>(&mut self, i: usize) {
        let kernel = &self.program.calls[i].kernel;
        let body = kernel.body();
        let accumulator: Option<Vec<T>> = match kernel {
            Kernel::Loop(_) => None,
            Kernel::Product(p) => Some(match &p.contraction {
                Contraction::Gemm(g) => gemm::product(g, &self.program, &self.memory),
                Contraction::Conv(c) => conv::product(c, &self.program, &self.memory),
                Contraction::Attention(a) => attention::product(a, &self.program, &self.memory),
                Contraction::Scatter(s) => scatter::product(s, &self.program, &self.memory),
            }),
        };
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
                // A vector's smallest allocation holds four words: scalars must find those again.
                let most = (2 * bytes).max(SMALLEST);
                let reuse = self.pool.iter().position(|p| p.capacity() >= bytes && p.capacity() <= most);
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

    /// Runs every kernel once, and shows the sources and then what each kernel stored, in the order it is computed.
    pub fn run_watched(&mut self, watch: &mut dyn FnMut(&str, &[f32])) {
        let floats = |b: &BufferId, p: &Program| p.buffers[*b].ty.format.is_float();
        for b in (0..self.program.buffers.len()).filter(|b| floats(b, &self.program)) {
            if self.program.buffers[b].source.is_some() {
                self.show(Address::of(b), self.program.buffers[b].ty.elements(), watch);
            }
        }
        for i in 0..self.program.calls.len() {
            self.compute(i);
            for s in &self.program.calls[i].kernel.body().stores {
                if floats(&s.buffer, &self.program) && self.program.buffers[s.buffer].source.is_none() {
                    let at = Address { buffer: s.buffer, offset: s.view.offset };
                    self.show(at, s.view.distinct(), watch);
                }
            }
            self.free(i);
        }
    }

    fn show(&self, at: Address, count: usize, watch: &mut dyn FnMut(&str, &[f32])) {
        let values = gemm::elements::<f32>(at, count, &self.program, &self.memory);
        watch(&self.program.buffers[at.buffer].name, &values);
    }

    fn one(&mut self, i: usize) {
        self.compute(i);
        self.free(i);
    }

    fn compute(&mut self, i: usize) {
        if self.program.calls[i].kernel.body().wide { self.kernel::<f64>(i) } else { self.kernel::<f32>(i) }
    }

    /// Frees what a kernel was the last to read.
    fn free(&mut self, i: usize) {
        for &b in &self.last_use[i] {
            self.pool.push(std::mem::take(&mut self.memory[b]));
        }
    }

    /// A source's or result's values in f64, which holds all formats' but the largest 64-bit whole numbers.
    ///
    /// # Errors
    /// A name of no buffer of the program.
    ///
    /// # Panics
    /// If the value has not been computed.
    pub fn read_wide(&self, name: &str) -> Result<Vec<f64>> {
        let b = self.program.result(name).map_or_else(|| self.buffer(name), Ok)?;
        let count = self.program.buffers[b].ty.elements();
        Ok(gemm::elements::<f64>(Address::of(b), count, &self.program, &self.memory).into_owned())
    }

    fn buffer(&self, name: &str) -> Result<BufferId> {
        self.program.find(name).ok_or_else(|| Error::Request(format!("the program has no buffer `{name}`")))
    }
}

impl Device for CpuRunner {
    fn program(&self) -> &Program {
        &self.program
    }

    fn run(&mut self) -> Result<()> {
        (0..self.program.calls.len()).for_each(|i| self.one(i));
        Ok(())
    }

    fn profile(&mut self) -> Result<Vec<f64>> {
        const RUNS: usize = 3;
        let mut best = vec![f64::INFINITY; self.program.launches.len()];
        for _ in 0..RUNS {
            for (at, launch) in self.program.launches.clone().into_iter().enumerate() {
                let start = Instant::now();
                launch.for_each(|i| self.one(i));
                best[at] = best[at].min(start.elapsed().as_secs_f64());
            }
        }
        Ok(best)
    }

    fn write_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let b = self.buffer(name)?;
        let want = self.program.buffers[b].ty.bytes();
        if want != bytes.len() {
            return Err(Error::Request(format!("`{name}` takes {want} bytes, not {}", bytes.len())));
        }
        self.memory[b].as_mut().copy_from_slice(bytes);
        Ok(())
    }

    fn write(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let b = self.buffer(name)?;
        let ty = &self.program.buffers[b].ty;
        if ty.elements() != values.len() {
            return Err(Error::Request(format!("`{name}` takes {} values, not {}", ty.elements(), values.len())));
        }
        narrow(ty.format, values, self.memory[b].as_mut());
        Ok(())
    }

    fn read_bytes(&mut self, name: &str) -> Result<Vec<u8>> {
        Ok(self.memory[self.buffer(name)?].as_ref().to_vec())
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>> {
        let b = self.program.result(name).map_or_else(|| self.buffer(name), Ok)?;
        let ty = &self.program.buffers[b].ty;
        if ty.bytes() != self.memory[b].as_ref().len() {
            return Err(Error::Request(format!("`{name}` has not been computed")));
        }
        let mut out = vec![0.0; ty.elements()];
        widen(ty.format, self.memory[b].as_ref(), &mut out);
        Ok(out)
    }

    fn describe(&self) -> String {
        let threads = rayon::current_num_threads();
        format!("cpu ({threads} thread{})", if threads == 1 { "" } else { "s" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{NodeId, Tensor, evaluate, text, verify};
    use crate::lower::lower;

    /// Temporaries of a step are the temporaries of the next one.
    #[test]
    fn free_memory_does_not_pile_up() {
        let text = "model m { input x: f32[3] a = put(sum(x), format=f32) b = put(x * a, format=f32) c = put(sum(b), format=f32) d = put(x + c, format=f32) output d }";
        let graph = text::parse(text, "m.mir").unwrap();
        let mut cpu = CpuRunner::new(lower(verify(&graph).unwrap()).unwrap());
        cpu.write("x", &[1.0, 2.0, 3.0]).unwrap();
        (0..3).for_each(|_| cpu.run().unwrap());
        let few = cpu.pool.len();
        (0..20).for_each(|_| cpu.run().unwrap());
        assert!(few > 0 && cpu.pool.len() == few, "{few} buffers after 3 runs, {} after 23", cpu.pool.len());
    }

    /// Work is shared by threads where a kernel writes a part of a buffer too: a step of a loop, or one of what is joined.
    #[test]
    fn large_kernels_write_their_own_part() {
        let cell = "body cell { input a: f32[300, 500] state h: f32[300, 500] = data y = put(tanh(a + h), format=f32) output y update h = y }";
        let scan = |reverse| format!("{cell} out = scan(x, w, body=cell, steps=[3], reverse={reverse}, stack=y)");
        let concat = "t = put(tanh(x), format=f32) m = put(mean(x, axes=[0], keep=true), format=f32) out = put(concat(t, m, axis=0), format=f32)";
        for body in [scan(false), scan(true), concat.into()] {
            let text =
                format!("model m {{ input x: f32[3, 300, 500] param w: f32[300, 500] = data {body} output out }}");
            let graph = text::parse(&text, "m.mir").unwrap();
            let mut cpu = CpuRunner::new(lower(verify(&graph).unwrap()).unwrap());
            let values = |id: NodeId| {
                Tensor::from_fn(&graph.ty(id).dims(), |i| {
                    let flat = i.iter().fold(0, |n, &j| 7 * n + 3 * j);
                    f64::from((flat % 101) as f32 / 100.0)
                })
            };
            let wanted = evaluate(&graph, values);
            for id in graph.sources() {
                let data: Vec<f32> = values(id).data.iter().map(|&v| v as f32).collect();
                cpu.write(graph.name_of(id), &data).unwrap();
            }
            cpu.run().unwrap();
            let found = cpu.read("out").unwrap();
            let wanted = &wanted[graph.find("out").unwrap().index()].data;
            let worst = found.iter().zip(wanted).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            assert!(found.len() == wanted.len() && worst < 1e-6, "{body}: {worst}");
        }
    }
}
