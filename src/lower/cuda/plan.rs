//! Launches: which kernel, how many blocks, and what its arguments stand for.

use super::attention;
use super::functor::Functor;
use super::kinds;
use super::launch::{CudaProgram, Destination, Launch, Word};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::ir::ConvKind;
use crate::lower::kernel::{Address, BufferId, Contraction, Exit, Inst, Kernel, Load, Loop, Product};
use crate::lower::layout::{THREADS, UNROLLED, most_parts};
use crate::lower::program::Program;
use crate::lower::view::View;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;
use std::ops::Range;

/// Stands for the product scratch among buffers.
const SCRATCH: BufferId = BufferId::MAX;
/// Side of the square of results that a block of a convolution computes.
const CONV_TILE: usize = 64;

/// Blocks that are enough for a scatter: each reads all positions. And rows that one of them owns, at most.
const SCATTER_BLOCKS: usize = 1024;
const MOST_OWNED: usize = 64;

/// Generates source and launches.
///
/// # Errors
/// [`Error::Device`] for products in f64, kernels that move fp8, and kernels of 2^32 blocks or more.
pub fn generate(program: &Program) -> Result<CudaProgram> {
    let mut g = Generator { program, out: CudaProgram::default(), kernels: 0, known: HashMap::new() };
    g.out.source = format!(
        "#include \"pointwise.cuh\"\n#include \"reduce.cuh\"\n#include \"conv.cuh\"\n#include \"scatter.cuh\"\nusing namespace mantissa;\n\
         static_assert(UNROLLED == {UNROLLED} && CONV_TILE == {CONV_TILE}, \"what launches and estimates count with\");\n\
         #define INFINITY_F __int_as_float(0x7f800000)\n#define NAN_F __int_as_float(0x7fc00000)\n"
    );
    if program.kernels().any(attention::is_attention) {
        g.out.source += attention::INCLUDED;
    }
    for (at, launch) in program.launches.iter().enumerate() {
        if let Kernel::Product(product) = &program.calls[launch.start].kernel {
            g.product(launch.clone(), product)?;
        } else {
            let bodies: Vec<&Loop> = launch.clone().map(|i| program.calls[i].kernel.body()).collect();
            for chunk in bodies.chunks(most_parts(bodies[0])) {
                g.group(chunk)?;
            }
        }
        g.out.of.resize(g.out.launches.len(), at);
    }
    Ok(g.out)
}

struct Generator<'a> {
    program: &'a Program,
    out: CudaProgram,
    kernels: usize,
    /// Kernels written so far, by their text: layers that are alike share theirs.
    known: HashMap<String, String>,
}

impl Generator<'_> {
    /// A product: straight to memory if its epilogue only rounds, else to scratch, with the epilogue as a kernel.
    fn product(&mut self, launch: Range<usize>, p: &Product) -> Result<()> {
        let format = match p.exit() {
            Exit::Direct(at, format) => return self.contract(launch, p, Destination::Buffer(at, format)),
            Exit::Scratch(format) => format,
        };
        self.out.scratch_bytes = self.out.scratch_bytes.max(p.scratch_bytes());
        self.contract(launch, p, Destination::Scratch(format))?;
        let mut body = p.epilogue.clone();
        let view = View::contiguous(&body.outer);
        body.loads.push(Load { buffer: SCRATCH, view, format });
        let load = Inst::Load(body.loads.len() - 1);
        body.tape.iter_mut().filter(|i| **i == Inst::Accumulator).for_each(|i| *i = load.clone());
        let body = crate::lower::emit::collapse(body);
        self.group(&[&body])
    }

    /// Launches a contraction: matrix products go to the library, the rest to templates of ours.
    fn contract(&mut self, launch: Range<usize>, p: &Product, to: Destination) -> Result<()> {
        let kernel = launch.start;
        if p.epilogue.wide {
            return Err(Error::Device("products in f64 are not generated for CUDA; use --device cpu".into()));
        }
        let (out, out_format) = match to {
            Destination::Buffer(b, f) => (Word::Buffer(b), f),
            Destination::Scratch(f) => (Word::Scratch, f),
        };
        let memory = |a: Address| self.program.buffers[a.buffer].ty.format.c_type();
        match &p.contraction {
            Contraction::Gemm(_) => self.out.launches.push(Launch::Product { kernel, to }),
            Contraction::Conv(c) => {
                let s = &c.spec;
                let kind = match c.kind {
                    ConvKind::Forward => "FORWARD",
                    ConvKind::Input(_) => "INPUT",
                    ConvKind::Weight(_) => "WEIGHT",
                };
                let rank = s.stride.len();
                // The right operand is gathered; with respect to the weights, that is x.
                let ty = format!("Conv<{}, {}, {}, {kind}, {rank}>", memory(c.a), memory(c.b), out_format.c_type());
                let (channels, outputs) = (c.w[1], c.w[0] / s.groups);
                let lists = [&c.x[2..], &c.w[2..], &c.y[2..], &s.stride, &s.dilation, &s.lo];
                let sizes =
                    [c.x[0], s.groups, channels, outputs].into_iter().chain(lists.into_iter().flatten().copied());
                let mut words = vec![Word::Buffer(c.a), Word::Buffer(c.b), out];
                words.extend(sizes.map(|n| Word::Number(n as u64)));
                let area = |d: &[usize]| d[2..].iter().product::<usize>();
                let (rows, columns) = match c.kind {
                    ConvKind::Forward => (outputs, c.x[0] * area(&c.y)),
                    ConvKind::Input(_) => (channels, c.x[0] * area(&c.x)),
                    ConvKind::Weight(_) => (outputs, channels * area(&c.w)),
                };
                let blocks = s.groups * rows.div_ceil(CONV_TILE) * columns.div_ceil(CONV_TILE);
                let own = self.template(&ty, "conv", blocks, THREADS, words)?.map(Box::new);
                self.out.launches.extend(own.map(|own| Launch::Convolution { kernel, to, own }));
            }
            Contraction::Attention(a) => {
                let view = match to {
                    Destination::Buffer(..) => p.epilogue.stores[0].view.clone(),
                    Destination::Scratch(_) => View::contiguous(&p.epilogue.outer),
                };
                let format_of = |at: Address| self.program.buffers[at.buffer].ty.format;
                // The rows' statistics are the second call of a launch.
                let second = launch.clone().nth(1).map(|call| &self.program.calls[call].kernel.body().stores[0]);
                let statistics = second.map(|s| Address { buffer: s.buffer, offset: s.view.offset });
                let own = attention::instance(a, out, out_format, &view, statistics, format_of);
                let launch = self.template(&own.ty, own.call, own.blocks, own.threads, own.words)?;
                self.out.launches.extend(launch);
            }
            Contraction::Scatter(s) => {
                let base = s.base.map_or("float", memory);
                let kind = s.kind.name().to_uppercase();
                let ty = format!("Scatter<{base}, {}, {}, {kind}>", memory(s.index), memory(s.updates));
                let base = s.base.map_or(Word::Number(0), Word::Buffer);
                let mut words = vec![base, Word::Buffer(s.index), Word::Buffer(s.updates), out];
                let owned = (s.rows / SCATTER_BLOCKS).next_power_of_two().min(MOST_OWNED);
                words.extend([s.lead, s.rows, s.positions, s.tail, owned].map(|n| Word::Number(n as u64)));
                let blocks = s.lead * s.rows.div_ceil(owned);
                let rows = self.template(&ty, "scatter", blocks, THREADS, words)?;
                self.out.launches.extend(rows);
            }
        }
        Ok(())
    }

    /// The name of the kernel with this text, which is written if it is new. `write` is told the source, the name and the
    /// kernel's number.
    fn name(&mut self, kind: &str, text: String, write: impl FnOnce(&mut String, &str, usize)) -> String {
        let (source, kernels) = (&mut self.out.source, &mut self.kernels);
        let make = || {
            let name = format!("{kind}_{kernels}");
            write(source, &name, *kernels);
            *kernels += 1;
            name
        };
        self.known.entry(format!("{kind} {text}")).or_insert_with(make).clone()
    }

    /// The launch of a kernel that is a template's instance for a struct of arguments; none where there is nothing to do.
    fn template(
        &mut self,
        ty: &str,
        call: &str,
        blocks: usize,
        threads: u32,
        words: Vec<Word>,
    ) -> Result<Option<Launch>> {
        let name = self.name(call, ty.to_owned(), |source, name, _| {
            let _ = writeln!(
                source,
                "\nextern \"C\" __global__ void __launch_bounds__({threads}) {name}(const __grid_constant__ {ty} k) {{ {call}(k); }}"
            );
        });
        let blocks = u32::try_from(blocks).map_err(|_| Error::Device("a kernel needs more than 2^32 blocks".into()))?;
        Ok((blocks > 0).then_some(Launch::Kernel { name, blocks, threads, words }))
    }

    /// Kernels of the same code, in one launch.
    fn group(&mut self, parts: &[&Loop]) -> Result<()> {
        let flat: Vec<Cow<Loop>> = parts.iter().map(|&p| without_idle_axes(p)).collect();
        let parts: Vec<&Loop> = flat.iter().map(AsRef::as_ref).collect();
        let k = parts[0];
        for f in k.loads.iter().map(|l| l.format).chain(k.stores.iter().map(|s| s.format)) {
            if matches!(f, Format::F8E4M3 | Format::F8E5M2) {
                return Err(Error::Device(format!(
                    "generated kernels do not move {f} yet; run this plan with --device cpu"
                )));
            }
        }
        let kind = k.kind();
        let functor = Functor::new(k, kind);
        let buffer = |b: BufferId| if b == SCRATCH { "the product" } else { &self.program.buffers[b].name };
        let writes: Vec<&str> = parts.iter().flat_map(|p| p.stores.iter().map(|s| buffer(s.buffer))).collect();
        let launched = kinds::of(kind);
        let (call, threads) = launched.call(k, functor.width);
        let n = parts.len();
        let text = functor.text("@");
        let name = self.name(kind.name(), format!("{call} {threads} {n} {text}"), |source, name, at| {
            let _ = writeln!(source, "\n// {} over {:?} × {:?}: {}", kind.name(), k.outer, k.inner, writes.join(", "));
            *source += &text.replace('@', &format!("Functor{at}"));
            let _ = writeln!(
                source,
                "extern \"C\" __global__ void __launch_bounds__({threads}) {name}(const __grid_constant__ Group<Functor{at}, {n}> g) {{ {call}; }}"
            );
        });
        let mut words = Vec::new();
        let mut first = 0u64;
        for part in parts {
            let pointer = |buffer: BufferId, view: &View| match buffer {
                SCRATCH => Word::Scratch,
                _ => Word::Buffer(Address { buffer, offset: view.offset }),
            };
            words.extend(part.loads.iter().map(|l| pointer(l.buffer, &l.view)));
            words.extend(part.stores.iter().map(|s| pointer(s.buffer, &s.view)));
            let blocks = launched.blocks(part, functor.width);
            words.extend(blocks.numbers.into_iter().map(Word::Number));
            if let Some([results, counters]) = blocks.partials {
                words.extend(self.partials(part, results, counters));
            }
            words.push(Word::Number(first));
            first += blocks.count.max(1);
        }
        let blocks = u32::try_from(first).map_err(|_| Error::Device("a kernel needs more than 2^32 blocks".into()))?;
        self.out.launches.push(Launch::Kernel { name, blocks, threads, words });
        Ok(())
    }
}

impl Generator<'_> {
    /// Room for so many partial results of a kernel, and for counters of the blocks that left theirs.
    fn partials(&mut self, k: &Loop, results: usize, counters: usize) -> [Word; 2] {
        let at = self.out.partials_bytes;
        let counter = at + if k.wide { 8 } else { 4 } * results;
        self.out.partials_bytes = (counter + 4 * counters).next_multiple_of(16);
        [Word::Partials(at), Word::Partials(counter)]
    }
}

/// A kernel without inner axes that nothing is reduced over: a reduction of nothing is a constant, and leaves them behind.
fn without_idle_axes(k: &Loop) -> Cow<'_, Loop> {
    if k.inner.is_empty() || k.has_reduction() {
        return Cow::Borrowed(k);
    }
    let mut k = k.clone();
    let outer = k.outer.len();
    let inner = std::mem::take(&mut k.inner);
    if k.stores.iter().any(|s| s.view.dims.len() > outer) {
        k.outer.extend(inner);
    } else {
        // What is read along them is not used.
        for load in &mut k.loads {
            load.view.dims.truncate(outer);
            load.view.strides.truncate(outer);
        }
    }
    Cow::Owned(k)
}
