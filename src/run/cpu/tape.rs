//! Executing a tape: registers are blocks of f32 lanes.
//!
//! Lanes run over the outer axes where a kernel is pointwise or reduces columns, and over the inner axes where it
//! reduces rows. The work is split over threads by outer index, in blocks of fixed size, so that results do not depend
//! on how many threads there are.

use super::lanes::{Block, Run, load, store, unflatten};
use super::real::Real;
use crate::format::Format;
use crate::ir::ReduceKind;
use crate::ir::ops::random::{philox, uniform};
use crate::ir::ops::resolve;
use crate::lower::{BufferId, Guard, Inst, Load, Loop, LoopKind, Pass, View};
use crate::run::Bytes;
use rayon::prelude::*;

/// Lanes a register holds.
const LANES: usize = 512;
/// Elements below which a kernel is not worth a second thread.
const SPLIT: usize = 1 << 16;
/// Rows of fewer elements leave most of a register idle: lanes run over rows instead.
const SHORT_ROW: usize = 32;
/// Partial sums kept side by side: they vectorise, and err less than one running sum.
const PARTIALS: usize = 16;

/// What a kernel reads.
pub struct Inputs<'a, T> {
    pub memory: &'a [Bytes],
    /// A product's result, row-major.
    pub accumulator: Option<&'a [T]>,
}

/// A kernel made ready to run.
pub struct Execution {
    passes: Vec<Pass>,
    /// Lanes run over the outer axes.
    outer_lanes: bool,
    /// Every store is one contiguous range per outer index, each of a buffer of its own, so threads can own their parts.
    splittable: bool,
}

impl Execution {
    pub fn new(k: &Loop, passes: Vec<Pass>) -> Execution {
        let whole = |v: &View| *v == View { offset: v.offset, ..View::contiguous(&v.dims) };
        let alone = |s: usize| (0..s).all(|t| k.stores[t].buffer != k.stores[s].buffer);
        let along = matches!(k.kind(), LoopKind::Pointwise | LoopKind::Column);
        let outer_lanes = along || k.inner_size() < SHORT_ROW;
        let inner_store = k.stores.iter().any(|s| s.view.dims.len() > k.outer.len());
        let splittable =
            (0..k.stores.len()).all(|s| whole(&k.stores[s].view) && alone(s)) && !(outer_lanes && inner_store);
        Execution { passes, outer_lanes, splittable }
    }

    /// Runs the kernel. `outputs` are the buffers it stores to.
    pub fn run<T: Real>(&self, k: &Loop, inputs: &Inputs<T>, outputs: &mut [(BufferId, Bytes)]) {
        let (outer, inner) = (k.outer_size(), k.inner_size());
        let total = outer * inner;
        if outer == 0 || (total == 0 && k.stores.iter().all(|s| s.view.dims.len() > k.outer.len())) {
            return;
        }
        let rows_per_task = (SPLIT / inner.max(1)).max(1).next_multiple_of(if self.outer_lanes { LANES } else { 1 });
        if !self.splittable || total < 2 * SPLIT || outer <= rows_per_task {
            let mut whole: Vec<(BufferId, usize, &mut [u8])> =
                outputs.iter_mut().map(|(b, m)| (*b, 0, m.as_mut())).collect();
            return self.rows(k, inputs, 0, outer, &mut whole);
        }
        // Each task owns the bytes of its outer indices in every output. A kernel in a loop, or of one part of a `concat`,
        // stores to a part of its buffer.
        let mut rest: Vec<(BufferId, usize, usize, &mut [u8])> = Vec::with_capacity(outputs.len());
        for (b, m) in outputs {
            let Some(s) = k.stores.iter().find(|s| s.buffer == *b) else { continue };
            let size = s.format.bytes();
            let (from, len) = (s.view.offset * size, s.view.dims.iter().product::<usize>() * size);
            rest.push((*b, from, len / outer, &mut m.as_mut()[from..from + len]));
        }
        let mut tasks = Vec::new();
        let mut start = 0;
        while start < outer {
            let rows = rows_per_task.min(outer - start);
            let mut own = Vec::with_capacity(rest.len());
            for (b, from, per_row, bytes) in &mut rest {
                let (head, tail) = std::mem::take(bytes).split_at_mut(*per_row * rows);
                own.push((*b, *from + start * *per_row, head));
                *bytes = tail;
            }
            tasks.push((start, rows, own));
            start += rows;
        }
        tasks.into_par_iter().for_each(|(start, rows, mut own)| self.rows(k, inputs, start, rows, &mut own));
    }

    /// Runs outer indices `start .. start + rows`. Outputs come with the byte their slice starts at.
    fn rows<T: Real>(
        &self,
        k: &Loop,
        inputs: &Inputs<T>,
        start: usize,
        rows: usize,
        outputs: &mut [(BufferId, usize, &mut [u8])],
    ) {
        let dims: Vec<usize> = k.outer.iter().chain(&k.inner).copied().collect();
        let mut m = Machine {
            k,
            x: self,
            inputs,
            dims,
            regs: vec![T::default(); k.tape.len() * LANES],
            fixed: vec![0; k.outer.len() + k.inner.len()],
        };
        if self.outer_lanes {
            let mut at = start;
            while at < start + rows {
                let len = LANES.min(start + rows - at);
                m.columns(at, len, outputs);
                at += len;
            }
        } else {
            (start..start + rows).for_each(|row| m.row(row, outputs));
        }
    }
}

struct Machine<'a, T> {
    k: &'a Loop,
    x: &'a Execution,
    inputs: &'a Inputs<'a, T>,
    dims: Vec<usize>,
    regs: Vec<T>,
    fixed: Vec<usize>,
}

impl<T: Real> Machine<'_, T> {
    /// Lanes over outer indices `start .. start + len`; inner indices one after the other.
    fn columns(&mut self, start: usize, len: usize, outputs: &mut [(BufferId, usize, &mut [u8])]) {
        let (k, o) = (self.k, self.k.outer.len());
        let inner = k.inner_size();
        for pass in &self.x.passes {
            for &r in &pass.scalars {
                self.step(r, 0..o, start, len);
            }
            for &r in &pass.reductions {
                let Inst::Reduce(kind, _) = k.tape[r] else { continue };
                self.lane_mut(r, len).fill(T::of(kind.identity()));
            }
            if !pass.is_live() {
                continue;
            }
            for i in 0..inner {
                unflatten(i, &k.inner, &mut self.fixed[o..]);
                for &r in &pass.elements {
                    self.step(r, 0..o, start, len);
                }
                for &r in &pass.reductions {
                    let Inst::Reduce(kind, x) = k.tape[r] else { continue };
                    let (acc, value) = two(&mut self.regs, r, x, len);
                    acc.iter_mut().zip(value).for_each(|(a, &v)| *a = T::combine(kind, *a, v));
                }
                for &s in &pass.stores {
                    self.store(s, 0..o, start, len, outputs);
                }
            }
            for &r in &pass.reductions {
                if let Inst::Reduce(ReduceKind::Mean, _) = k.tape[r] {
                    self.lane_mut(r, len).iter_mut().for_each(|a| *a = a.divide(inner));
                }
            }
        }
        self.fixed.fill(0);
        for s in 0..k.stores.len() {
            if !k.stores_elements(s) {
                self.store(s, 0..o, start, len, outputs);
            }
        }
    }

    /// Lanes over the inner indices of one outer index.
    fn row(&mut self, row: usize, outputs: &mut [(BufferId, usize, &mut [u8])]) {
        let (k, o, rank) = (self.k, self.k.outer.len(), self.dims.len());
        let inner = k.inner_size();
        unflatten(row, &k.outer, &mut self.fixed[..o]);
        let width = inner.clamp(1, LANES);
        for pass in &self.x.passes {
            for &r in &pass.scalars {
                // One value, spread over the lanes that will read it.
                self.step(r, 0..0, 0, 1);
                let v = self.regs[r * LANES];
                self.lane_mut(r, width).fill(v);
            }
            let mut sums: Vec<(ReduceKind, usize, usize, [T; PARTIALS])> = Vec::with_capacity(pass.reductions.len());
            for &r in &pass.reductions {
                if let Inst::Reduce(kind, x) = k.tape[r] {
                    sums.push((kind, r, x, [T::of(kind.identity()); PARTIALS]));
                }
            }
            if pass.is_live() {
                let mut at = 0;
                while at < inner {
                    let len = LANES.min(inner - at);
                    for &r in &pass.elements {
                        self.step(r, o..rank, at, len);
                    }
                    for (kind, _, x, partial) in &mut sums {
                        let value = &self.regs[*x * LANES..*x * LANES + len];
                        for chunk in value.chunks(PARTIALS) {
                            partial.iter_mut().zip(chunk).for_each(|(p, &v)| *p = T::combine(*kind, *p, v));
                        }
                    }
                    for &s in &pass.stores {
                        self.store(s, o..rank, at, len, outputs);
                    }
                    at += len;
                }
            }
            for (kind, r, _, partial) in sums {
                let mut total = partial.into_iter().fold(T::of(kind.identity()), |a, v| T::combine(kind, a, v));
                if kind == ReduceKind::Mean {
                    total = total.divide(inner);
                }
                self.lane_mut(r, width).fill(total);
            }
        }
        for s in 0..k.stores.len() {
            if !k.stores_elements(s) {
                self.store(s, 0..0, 0, 1, outputs);
            }
        }
    }

    fn lane_mut(&mut self, r: usize, len: usize) -> &mut [T] {
        &mut self.regs[r * LANES..r * LANES + len]
    }

    fn store(
        &mut self,
        s: usize,
        axes: std::ops::Range<usize>,
        start: usize,
        len: usize,
        outputs: &mut [(BufferId, usize, &mut [u8])],
    ) {
        let spec = &self.k.stores[s];
        let Some((_, offset, bytes)) = outputs.iter_mut().find(|o| o.0 == spec.buffer) else { return };
        let skipped = *offset / spec.format.bytes();
        let values = &self.regs[spec.reg * LANES..spec.reg * LANES + len];
        let block = Block { dims: &self.dims, axes, fixed: &self.fixed, start, len };
        block.runs(&spec.view, |r: Run| {
            store(spec.format, bytes, r.at - skipped, r.stride, &values[r.lane..r.lane + r.len])
        });
    }

    /// Computes one register for a block of lanes.
    fn step(&mut self, r: usize, axes: std::ops::Range<usize>, start: usize, len: usize) {
        let inst = &self.k.tape[r];
        let (before, rest) = self.regs.split_at_mut(r * LANES);
        let out = &mut rest[..len];
        let lane = |x: usize| &before[x * LANES..x * LANES + len];
        let block = Block { dims: &self.dims, axes: axes.clone(), fixed: &self.fixed, start, len };
        match *inst {
            Inst::Reduce(..) => {}
            Inst::Load(i) => {
                let spec = &self.k.loads[i];
                read(spec, self.inputs.memory[spec.buffer].as_ref(), &block, out);
            }
            Inst::Accumulator => {
                let all = self.inputs.accumulator.expect("only products have an accumulator");
                out.copy_from_slice(&all[start..start + len]);
            }
            Inst::Const(c) => out.fill(T::of(c.get())),
            Inst::Position(axis) => {
                let moving = axes.contains(&axis);
                let fixed = self.fixed[axis];
                let below: usize = if moving { self.dims[axis + 1..axes.end].iter().product() } else { 1 };
                let extent = self.dims[axis];
                for (i, v) in out.iter_mut().enumerate() {
                    *v = T::of(if moving { (start + i) / below % extent } else { fixed } as f64);
                }
            }
            Inst::Random { ref at, seed, step, salt } => {
                let (seed, step) = (lane(seed)[0].get() as u32, lane(step)[0].get() as u32);
                block.runs(at, |run: Run| {
                    for j in 0..run.len {
                        let word = philox((run.at + j * run.stride) as u64, step, seed, salt);
                        out[run.lane + j] = T::of(f64::from(uniform(word)));
                    }
                });
            }
            Inst::Unary(u, a) => T::unary(u, lane(a), out),
            Inst::Binary(b, x, y) => T::binary(b, lane(x), lane(y), out),
            Inst::Select(c, x, y) => {
                let (c, x, y) = (lane(c), lane(x), lane(y));
                for i in 0..len {
                    out[i] = if c[i].is_true() { x[i] } else { y[i] };
                }
            }
            Inst::Round(format, x) => round(format, lane(x), out),
            Inst::Gather { load: i, index, extent, stride } => {
                let spec = &self.k.loads[i];
                let (bytes, index) = (self.inputs.memory[spec.buffer].as_ref(), lane(index));
                block.runs(&spec.view, |run: Run| {
                    for j in 0..run.len {
                        let row = resolve(index[run.lane + j].get(), extent);
                        load(
                            spec.format,
                            bytes,
                            run.at + j * run.stride + row * stride,
                            0,
                            &mut out[run.lane + j..run.lane + j + 1],
                        );
                    }
                });
            }
        }
    }
}

/// The accumulator's lanes and the operand's, which stand elsewhere.
fn two<T>(regs: &mut [T], acc: usize, value: usize, len: usize) -> (&mut [T], &[T]) {
    let (before, after) = regs.split_at_mut(acc * LANES);
    (&mut after[..len], &before[value * LANES..value * LANES + len])
}

fn read<T: Real>(spec: &Load, bytes: &[u8], block: &Block, out: &mut [T]) {
    let (format, guards) = (spec.format, &spec.view.guards);
    let last = block.axes.end.wrapping_sub(1);
    block.runs(&spec.view, |r: Run| {
        let lanes = &mut out[r.lane..r.lane + r.len];
        if guards.is_empty() {
            return load(format, bytes, r.at, r.stride, lanes);
        }
        let along = |g: &Guard| g.terms.iter().filter(|t| t.0 == last && !block.axes.is_empty()).map(|t| t.1).sum();
        let moving: Vec<(&Guard, isize)> = guards.iter().map(|g| (g, along(g))).filter(|m| m.1 != 0).collect();
        // Guards that do not move along the run let all of it through, or nothing.
        let mut at = r.at;
        for g in guards.iter().filter(|g| along(g) == 0) {
            match g.reach(|a| r.index[a]) {
                Some(reach) => at += reach,
                None => return lanes.fill(T::of(g.fill.get())),
            }
        }
        match moving[..] {
            [] => load(format, bytes, at, r.stride, lanes),
            [(g, c)] if g.step == 1 && c > 0 => {
                // Inside for a stretch of the run.
                let p = g.terms.iter().fold(g.offset, |p, &(a, c)| p + r.index[a] as isize * c);
                let first = |edge: isize| ((edge - p).max(0) as usize).div_ceil(c as usize).min(lanes.len());
                let (from, to) = (first(0), first(g.extent as isize));
                let fill = T::of(g.fill.get());
                lanes[..from].fill(fill);
                lanes[to..].fill(fill);
                if from < to {
                    let start = at + from * r.stride + (p + from as isize * c) as usize * g.stride;
                    load(format, bytes, start, r.stride + c as usize * g.stride, &mut lanes[from..to]);
                }
            }
            _ => {
                for (j, lane) in lanes.iter_mut().enumerate() {
                    let index = |a: usize| r.index[a] + if a == last { j } else { 0 };
                    let mut at = at + j * r.stride;
                    let outside = moving.iter().find(|(g, _)| match g.reach(index) {
                        Some(reach) => {
                            at += reach;
                            false
                        }
                        None => true,
                    });
                    match outside {
                        Some((g, _)) => *lane = T::of(g.fill.get()),
                        None => load(format, bytes, at, 0, std::slice::from_mut(lane)),
                    }
                }
            }
        }
    });
}

/// Rounds to a format and back. Formats that registers do not hold whole numbers of stay as close as they come.
fn round<T: Real>(format: Format, x: &[T], out: &mut [T]) {
    let mut bytes = [0u64; LANES];
    let bytes = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut bytes)[..x.len() * format.bytes()];
    T::narrow(format, x, bytes);
    T::widen(format, bytes, out);
}
