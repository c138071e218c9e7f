//! Launches: which kernel, how many blocks, and what its arguments stand for.

use super::functor::{Functor, Shape, memory_type};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::ir::ConvKind;
use crate::lower::kernel::{Address, BufferId, Contraction, Exit, Inst, Kernel, Load, Loop, Product, SHORT};
use crate::lower::program::Program;
use crate::lower::stages::passes;
use crate::lower::view::View;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;

/// One 8-byte argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    Buffer(Address),
    /// The product scratch.
    Scratch,
    /// Bytes into the area of partial sums; it starts out zero.
    Partials(usize),
    Number(u64),
}

/// Where a product's result goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    Buffer(Address, Format),
    /// To be read by the epilogue's kernel, the next launch.
    Scratch(Format),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Launch {
    Kernel {
        name: String,
        blocks: u32,
        threads: u32,
        words: Vec<Word>,
    },
    /// The kernel of the program with this index, its epilogue left to the next launch if it goes to scratch.
    Product {
        kernel: usize,
        to: Destination,
    },
    /// A convolution, by a library if it takes it, else by this kernel of ours.
    Convolution {
        kernel: usize,
        to: Destination,
        own: Box<Launch>,
    },
}

/// Source text and launches of a program.
#[derive(Clone, Debug, Default)]
pub struct CudaProgram {
    pub source: String,
    pub launches: Vec<Launch>,
    /// The program's launch that each is a part of.
    pub of: Vec<usize>,
    pub scratch_bytes: usize,
    pub partials_bytes: usize,
}

/// Stands for the product scratch among buffers.
const SCRATCH: BufferId = BufferId::MAX;
/// Bytes of a launch's arguments, at most: older drivers take 4 KiB.
const MOST_BYTES: usize = 4096;
const THREADS: u32 = 256;
/// Side of the square of results that a block of a convolution computes.
const CONV_TILE: usize = 64;
/// Columns a block reduces, and the threads it does so with.
const COLUMNS: usize = 32;
const COLUMN_THREADS: u32 = 512;
/// Blocks of columns that are enough, and rows that a thread of one should have at least.
const ENOUGH_BLOCKS: usize = 264;
const ROWS_OF_THREAD: usize = 8;
/// Rows that a warp each would not fill a GPU.
const FEW_ROWS: usize = 4096;
/// Threads that are enough for a GPU to have something to do while some of them wait.
const ENOUGH: usize = 1 << 17;
/// Rounds of a row's loop whose loads are made at once, as `reduce.cuh` says.
const UNROLLED: usize = 4;
/// What combining the sums of several blocks takes, in such waits: writing them, telling so, reading them.
const PARTS_WAIT: usize = 3;
/// Elements that a thread of a row's team should have at least.
const OF_THREAD: usize = 4;

/// Generates source and launches.
pub fn generate(program: &Program) -> Result<CudaProgram> {
    let mut g = Generator { program, out: CudaProgram::default(), kernels: 0, known: HashMap::new() };
    g.out.source = "#include \"pointwise.cuh\"\n#include \"reduce.cuh\"\n#include \"conv.cuh\"\n#include \"scatter.cuh\"\nusing namespace mantissa;\n\
         #define INFINITY_F __int_as_float(0x7f800000)\n#define NAN_F __int_as_float(0x7fc00000)\n"
        .to_owned();
    for (at, launch) in program.launches.iter().enumerate() {
        if let Kernel::Product(product) = &program.calls[launch.start].kernel {
            g.product(launch.start, product)?;
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
    fn product(&mut self, kernel: usize, p: &Product) -> Result<()> {
        let format = match p.exit() {
            Exit::Direct(at, format) => return self.contract(kernel, p, Destination::Buffer(at, format)),
            Exit::Scratch(format) => format,
        };
        self.out.scratch_bytes = self.out.scratch_bytes.max(p.scratch_bytes());
        self.contract(kernel, p, Destination::Scratch(format))?;
        let mut body = p.epilogue.clone();
        let view = View::contiguous(&body.outer);
        body.loads.push(Load { buffer: SCRATCH, view, format });
        let load = Inst::Load(body.loads.len() - 1);
        body.tape.iter_mut().filter(|i| **i == Inst::Accumulator).for_each(|i| *i = load.clone());
        let body = crate::lower::emit::collapse(body);
        self.group(&[&body])
    }

    /// Launches a contraction: matrix products go to the library, the rest to templates of ours.
    fn contract(&mut self, kernel: usize, p: &Product, to: Destination) -> Result<()> {
        if p.epilogue.wide {
            return Err(Error::Device("products in f64 are not generated for CUDA; use --device cpu".into()));
        }
        let (out, out_format) = match to {
            Destination::Buffer(b, f) => (Word::Buffer(b), f),
            Destination::Scratch(f) => (Word::Scratch, f),
        };
        let memory = |a: Address| memory_type(self.program.buffers[a.buffer].ty.format);
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
                let ty = format!("Conv<{}, {}, {}, {kind}, {rank}>", memory(c.a), memory(c.b), memory_type(out_format));
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
                let own = self.template(&ty, "conv", blocks, words)?.map(Box::new);
                self.out.launches.extend(own.map(|own| Launch::Convolution { kernel, to, own }));
            }
            Contraction::Scatter(s) => {
                let base = s.base.map_or("float", memory);
                let kind = s.kind.name().to_uppercase();
                let ty = format!("Scatter<{base}, {}, {}, {kind}>", memory(s.index), memory(s.updates));
                let base = s.base.map_or(Word::Number(0), Word::Buffer);
                let mut words = vec![base, Word::Buffer(s.index), Word::Buffer(s.updates), out];
                words.extend([s.lead, s.rows, s.positions, s.tail].map(|n| Word::Number(n as u64)));
                let elements = p.contraction.elements();
                let base = self.template(&ty, "scatter_base", elements.div_ceil(THREADS as usize), words.clone())?;
                self.out.launches.extend(base);
                if s.lead * s.positions * s.tail > 0 {
                    let rows = self.template(&ty, "scatter_rows", s.lead * s.positions, words)?;
                    self.out.launches.extend(rows);
                }
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
    fn template(&mut self, ty: &str, call: &str, blocks: usize, words: Vec<Word>) -> Result<Option<Launch>> {
        let name = self.name(call, ty.to_owned(), |source, name, _| {
            let _ = writeln!(
                source,
                "\nextern \"C\" __global__ void __launch_bounds__({THREADS}) {name}(const __grid_constant__ {ty} k) {{ {call}(k); }}"
            );
        });
        let blocks = u32::try_from(blocks).map_err(|_| Error::Device("a kernel needs more than 2^32 blocks".into()))?;
        Ok((blocks > 0).then_some(Launch::Kernel { name, blocks, threads: THREADS, words }))
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
        let shape = shape_of(k);
        let functor = Functor::new(k, shape);
        let buffer = |b: BufferId| if b == SCRATCH { "the product" } else { &self.program.buffers[b].name };
        let writes: Vec<&str> = parts.iter().flat_map(|p| p.stores.iter().map(|s| buffer(s.buffer))).collect();
        let team = team_size(k);
        // A short row is one thread's work.
        let short = k.inner_size() <= SHORT;
        let (columns, column_threads) = match short {
            true => (THREADS as usize * functor.width, THREADS),
            // A block's sums must fit its memory.
            false => (COLUMNS, if k.wide { COLUMN_THREADS / 2 } else { COLUMN_THREADS }),
        };
        let (call, threads) = match shape {
            Shape::Pointwise => ("pointwise(g)".to_owned(), THREADS),
            Shape::Row => (format!("row<{team}>(g)"), if team <= 32 { 128 } else { team as u32 }),
            Shape::Column => {
                let across = columns / functor.width;
                (format!("column<{across}, {}>(g)", column_threads as usize / across), column_threads)
            }
            Shape::Total => (format!("total<{THREADS}>(g)"), THREADS),
        };
        let n = parts.len();
        let text = functor.text("@");
        let name = self.name(word(shape), format!("{call} {threads} {n} {text}"), |source, name, at| {
            let _ = writeln!(source, "\n// {} over {:?} × {:?}: {}", word(shape), k.outer, k.inner, writes.join(", "));
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
            let (o, i) = (part.outer_size() as u64, part.inner_size() as u64);
            let blocks = match shape {
                Shape::Pointwise => {
                    words.push(Word::Number(o));
                    o.div_ceil(u64::from(THREADS) * functor.width as u64)
                }
                Shape::Row => {
                    words.extend([Word::Number(i), Word::Number(o)]);
                    o.div_ceil(u64::from(threads) / team as u64)
                }
                Shape::Column => {
                    let (groups, parts) = (part.outer_size().div_ceil(columns), column_parts(part, functor.width));
                    words.extend([Word::Number(i), Word::Number(o), Word::Number(parts as u64)]);
                    let shared = if parts > 1 { groups * parts * columns * sums(part) } else { 0 };
                    words.extend(self.partials(part, shared, if parts > 1 { groups } else { 0 }));
                    (groups * parts) as u64
                }
                Shape::Total => {
                    let blocks = i.div_ceil(u64::from(THREADS) * 16 * functor.width as u64).clamp(1, 1024);
                    words.extend([Word::Number(i), Word::Number(blocks)]);
                    words.extend(self.partials(part, blocks as usize * sums(part), 1));
                    blocks
                }
            };
            words.push(Word::Number(first));
            first += blocks.max(1);
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

fn sums(k: &Loop) -> usize {
    k.tape.iter().filter(|i| matches!(i, Inst::Reduce(..))).count()
}

/// Blocks that share the rows of a column kernel's columns: as many as keep a GPU busy, as long as each of their threads
/// has something to do.
fn column_parts(k: &Loop, width: usize) -> usize {
    if k.inner_size() <= SHORT {
        return 1;
    }
    let groups = k.outer_size().div_ceil(COLUMNS).max(1);
    (ENOUGH_BLOCKS / groups).min(k.inner_size() / (rows_together(width) * ROWS_OF_THREAD)).max(1)
}

/// Rows that a block of columns takes at once, if its threads take so many columns each.
fn rows_together(width: usize) -> usize {
    COLUMN_THREADS as usize * width / COLUMNS
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

fn shape_of(k: &Loop) -> Shape {
    if !k.has_reduction() {
        return Shape::Pointwise;
    }
    let live = passes(k).iter().filter(|p| p.is_live()).count();
    if k.outer.is_empty() && live == 1 {
        return Shape::Total;
    }
    if live == 1 && k.is_column() { Shape::Column } else { Shape::Row }
}

fn word(shape: Shape) -> &'static str {
    match shape {
        Shape::Pointwise => "pointwise",
        Shape::Row => "row",
        Shape::Column => "column",
        Shape::Total => "total",
    }
}

/// Kernels of this code that one launch takes.
fn most_parts(k: &Loop) -> usize {
    // Pointers, sizes, the places of partial results and of their counters, and the first block.
    let words = k.loads.len() + k.stores.len() + 6;
    (MOST_BYTES / (8 * words)).max(1)
}

/// Launches that a GPU makes of so many kernels like this one.
pub fn launches_of(k: &Loop, kernels: usize) -> usize {
    kernels.div_ceil(most_parts(k))
}

/// Threads that share a row: as many as keep a GPU busy, as long as each has something to do.
fn team_size(k: &Loop) -> usize {
    let (rows, elements) = (k.outer_size(), k.inner_size());
    if elements <= SHORT {
        return 1;
    }
    let by_length = match elements {
        256..=1024 if rows <= FEW_ROWS => 128,
        0..=1024 => 32,
        1025..=8192 => 256,
        _ => 1024,
    };
    let wanted = (ENOUGH / rows.max(1)).next_power_of_two();
    let most = (elements / OF_THREAD).next_power_of_two();
    by_length.max(wanted.min(most).min(1024))
}

/// How often a thread of a row's or a column's kernel waits for memory, one time after the other; 0 for others.
pub fn waits(k: &Loop) -> usize {
    match shape_of(k) {
        Shape::Row => {
            let live = passes(k).iter().filter(|p| p.is_live()).count();
            live * k.inner_size().div_ceil(team_size(k) * OF_THREAD * UNROLLED)
        }
        Shape::Column if k.inner_size() > SHORT => {
            // Most take four columns a thread.
            let parts = column_parts(k, 4);
            k.inner_size().div_ceil(parts * rows_together(4) * UNROLLED) + if parts > 1 { PARTS_WAIT } else { 0 }
        }
        _ => 0,
    }
}
