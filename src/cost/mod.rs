//! What a kernel is predicted to take on a target: the roofline model plus a launch.
//!
//! `time = max(bytes / bandwidth, operations / rate) + launch`, with a small share of the bytes added so that ties
//! break towards moving less (a plain maximum leaves plateaus a search cannot see across).

mod attention;
mod products;
mod table;

pub use attention::Attended;
pub(crate) use products::conv_kind;
pub use table::{Timed, Work};

use crate::error::{Error, Result};
use crate::format::Format;
use crate::hint::is_meant;
use crate::ir::{Graph, verify};
use crate::lower::{BufferId, Call, Exit, Inst, Kernel, Loop, LoopKind, Pass, Program, View};
use crate::lower::{launches_of, outline, passes, rows_at_once, waits};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use table::Table;

/// A device's rates, from one of the files in `src/cost/targets/`, or from one that `mantissa doctor --measure` wrote.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// As `--target` names it.
    pub name: String,
    /// The device, in words.
    pub device: String,
    /// Device memory, in 10^9 bytes per second.
    pub bandwidth_gb_s: f64,
    /// What a launch takes that does nothing.
    pub launch_us: f64,
    /// Scalar instructions of generated kernels per second, in 10^9.
    pub scalar_gflops: f64,
    /// Bytes that memory moves at once, however few of them are used.
    pub sector_bytes: usize,
    /// The last cache, in 10^6 bytes: neighbours find each other's sectors in it.
    pub cache_mb: f64,
    /// Multiprocessors; 0 where there are none.
    pub multiprocessors: usize,
    /// What a product takes besides its launch, its arithmetic and its bytes.
    pub product_us: f64,
    /// The same for a sum over everything.
    pub total_us: f64,
    /// What a thread waits for memory, where the next thing it does depends on it.
    #[serde(default)]
    pub latency_us: f64,
    /// Products go to a library that can only round and store, so other epilogues are kernels of their own.
    pub library_products: bool,
    /// Attention has kernels on its matrix units, which store no scores.
    #[serde(default)]
    pub attention: bool,
    /// The formats that its kernels store with a scale.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scaled: Vec<Format>,
    /// Products that were timed, if any were: what is like them takes as long as they do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timed: Vec<Timed>,
    /// Dense product rates by operand format, in 10^12 per second; formats not listed are not multiplied.
    pub product_tflops: BTreeMap<Format, f64>,
    #[serde(skip)]
    table: Table,
}

const FILES: [&str; 8] = [
    include_str!("targets/cpu.toml"),
    include_str!("targets/sm_70.toml"),
    include_str!("targets/sm_75.toml"),
    include_str!("targets/sm_80.toml"),
    include_str!("targets/sm_89.toml"),
    include_str!("targets/sm_90.toml"),
    include_str!("targets/h100.toml"),
    include_str!("targets/sm_100.toml"),
];

/// Share of a strided access's extra sectors that are paid for where the buffer fits the cache.
const CACHED: f64 = 0.25;

/// A product takes at least this share of what is modelled, whatever was timed.
const LEAST: f64 = 0.1;

/// How much slower our own convolution is than cuDNN's. Measured on an H200: 14 to 87 times.
const OWN_CONV: f64 = 40.0;

/// Share of the time to move the bytes that is added to break ties.
const TIE: f64 = 0.02;

impl Target {
    /// All built-in targets.
    pub fn all() -> Vec<Target> {
        FILES.iter().map(|f| toml::from_str::<Target>(f).expect("built-in profiles parse").tabled()).collect()
    }

    /// A profile from a file.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no profile.
    pub fn read(path: &Path) -> Result<Target> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let target: Target = toml::from_str(&text).map_err(|e| {
            Error::Request(format!(
                "{}: not a target's profile, as `mantissa doctor --measure` writes them: {e}",
                path.display()
            ))
        })?;
        Ok(target.tabled())
    }

    /// With its timed products ready to be looked up.
    pub fn tabled(mut self) -> Target {
        self.table = Table::default();
        self.table = Table::new(&self);
        self
    }

    /// How far the model is from the products that were timed, in the median, as a factor: alone, and corrected for each by
    /// all the others. None if none were.
    pub fn errors_of_timed(&self) -> Option<[f64; 2]> {
        self.table.errors()
    }

    /// A built-in target, or the profile in a `.toml` file.
    ///
    /// # Errors
    /// A name that no built-in target has, with the names there are; those of [`Target::read`].
    pub fn named(name: &str) -> Result<Target> {
        if Path::new(name).extension().is_some_and(|e| e == "toml") {
            return Target::read(Path::new(name));
        }
        let all = Target::all();
        if let Some(t) = all.iter().find(|t| t.name == name) {
            return Ok(t.clone());
        }
        let names: Vec<&str> = all.iter().map(|t| t.name.as_str()).collect();
        let hint = is_meant(name, names.iter().copied());
        Err(Error::Request(format!(
            "unknown target `{name}`; targets are {}, or a profile's file (.toml){hint}",
            names.join(", ")
        )))
    }

    /// Do its matrix units multiply this format?
    pub fn multiplies(&self, format: Format) -> bool {
        self.product_tflops.contains_key(&format)
    }

    /// Refuses a format the target has no matrix units for, naming those that do.
    ///
    /// # Errors
    /// The format is not multiplied: with the targets that multiply it.
    pub fn require(&self, format: Format) -> Result<()> {
        if self.multiplies(format) {
            return Ok(());
        }
        let able: Vec<String> = Target::all().into_iter().filter(|t| t.multiplies(format)).map(|t| t.name).collect();
        let who = if able.is_empty() {
            "no target has it".to_owned()
        } else {
            format!("these targets have it: {}", able.join(", "))
        };
        Err(Error::Request(format!("{} ({}) does not multiply {format}; {who}", self.name, self.device)))
    }

    /// Predicted time of a planned graph.
    ///
    /// # Errors
    /// A graph that breaks the IR's rules ([`verify`]), or that cannot be lowered.
    pub fn estimate_graph(&self, graph: &Graph) -> Result<Estimate> {
        Ok(self.estimate_program(&outline(verify(graph)?)?))
    }

    /// Predicted time of a program: its kernels, and a launch for each group, as often as they run.
    pub fn estimate_program(&self, program: &Program) -> Estimate {
        summed(program.launches.iter().flat_map(|launch| self.pieces(program, launch)))
    }

    /// Predicted time of a launch, as often as it runs: its kernels, and what launching them takes.
    pub fn estimate_launch(&self, program: &Program, launch: &Range<usize>) -> Estimate {
        summed(self.pieces(program, launch))
    }

    /// What launching takes, and each of the kernels, as often as they run.
    fn pieces<'a>(&'a self, program: &'a Program, launch: &Range<usize>) -> impl Iterator<Item = Estimate> + use<'a> {
        let calls = &program.calls[launch.clone()];
        let start = Estimate { seconds: self.launch_seconds(&calls[0].kernel, calls.len()), bytes: 0 };
        // What an attention knows of its rows it only has to store.
        let is_known = |at: usize| at > 0 && matches!(calls[at].kernel, Kernel::Product(_));
        let one = move |(at, call): (usize, &Call)| {
            let bytes = call.kernel.body().bytes();
            let seconds = bytes as f64 / (self.bandwidth_gb_s * 1e9);
            match is_known(at) {
                true => Estimate { seconds, bytes },
                false => self.estimate(&call.kernel, |b| program.buffers[b].ty.format),
            }
            .times(call.times())
        };
        let kernels = calls.iter().enumerate().map(one);
        std::iter::once(start.times(calls[0].times())).chain(kernels)
    }

    /// What launching so many kernels like this one takes, whatever they do.
    fn launch_seconds(&self, kernel: &Kernel, kernels: usize) -> f64 {
        let launches = if self.library_products { launches_of(kernel.body(), kernels) } else { 1 };
        let more = if matches!(kernel, Kernel::Loop(k) if k.kind() == LoopKind::Total) { self.total_us } else { 0.0 };
        launches as f64 * (self.launch_us + more) * 1e-6
    }

    /// Predicted time of one kernel, without its launch.
    pub fn estimate(&self, kernel: &Kernel, format_of: impl Fn(BufferId) -> Format) -> Estimate {
        let bytes = kernel.bytes(&format_of);
        let body = kernel.body();
        let memory = |bytes: f64| bytes / (self.bandwidth_gb_s * 1e9);
        let scalar = kernel.scalar_operations() / (self.scalar_gflops * 1e9);
        let own = self.traffic(body);
        let Kernel::Product(p) = kernel else {
            let waiting = waits(body) as f64 * self.latency_us * 1e-6;
            return Estimate { seconds: memory(own).max(scalar).max(waiting) + TIE * memory(own), bytes };
        };
        let operands = (bytes - body.bytes()) as f64;
        let work = products::work(&p.contraction, &format_of);
        // What the product itself takes, with what else its kernel computes.
        let product = |bytes: f64, scalar: f64, to: Format| {
            let modelled = memory(bytes).max(scalar + products::seconds(self, &work) + self.product_us * 1e-6);
            let launch = self.launch_us * 1e-6;
            let corrected = (self.table.correction(&work) * (launch + modelled) - launch).max(LEAST * modelled);
            // cuDNN takes one format for all: else a kernel of ours computes in f32 registers.
            if self.library_products && work.is_conv() && to != work.format.in_memory() {
                OWN_CONV * corrected
            } else {
                corrected
            }
        };
        match p.exit() {
            // A product whose epilogue the library cannot run goes through scratch: two kernels, one after the other.
            Exit::Scratch(format) if self.library_products => {
                let scratch = p.scratch_bytes() as f64;
                let first = product(operands + scratch, 0.0, format);
                let second = memory(own + scratch).max(scalar) + self.launch_us * 1e-6;
                let total = operands + own + 2.0 * scratch;
                Estimate { seconds: first + second + TIE * memory(total), bytes: bytes + 2 * scratch as usize }
            }
            Exit::Scratch(to) | Exit::Direct(_, to) => {
                Estimate { seconds: product(operands + own, scalar, to) + TIE * memory(operands + own), bytes }
            }
        }
    }

    /// Seconds that no kernel for the same work can beat: its bytes at the full bandwidth, or its products at the full rate.
    pub fn floor(&self, kernel: &Kernel, format_of: impl Fn(BufferId) -> Format) -> f64 {
        let moved = kernel.bytes(&format_of) as f64 / (self.bandwidth_gb_s * 1e9);
        match kernel {
            Kernel::Product(p) => moved.max(products::least(self, &products::work(&p.contraction, &format_of))),
            Kernel::Loop(_) => moved,
        }
    }

    /// Bytes that a kernel's accesses move. Neighbouring lanes that are not neighbours in memory each move a sector of
    /// their own; where the buffer fits the cache, most of these are found there.
    fn traffic(&self, k: &Loop) -> f64 {
        let lane = k.lane_axis();
        let moved = |view: &View, format: Format| {
            let bytes = view.distinct() * format.bytes();
            let stride = lane.and_then(|a| view.strides.get(a)).map_or(0, |s| s * format.bytes());
            let wasted = match stride {
                0 => 0.0,
                s => s.min(self.sector_bytes) as f64 / format.bytes() as f64 - 1.0,
            };
            let cached = if (bytes as f64) < self.cache_mb * 0.5e6 { CACHED } else { 1.0 };
            bytes as f64 * (1.0 + wasted * cached)
        };
        let mut seen: Vec<(BufferId, &View)> = Vec::new();
        let mut total: f64 = k.stores.iter().map(|s| moved(&s.view, s.format)).sum();
        let passes = if self.reads_again(k) { passes(k) } else { Vec::new() };
        for (i, l) in k.loads.iter().enumerate() {
            if !seen.contains(&(l.buffer, &l.view)) {
                seen.push((l.buffer, &l.view));
                let reads = |pass: &&Pass| pass.elements.iter().any(|&r| k.tape[r] == Inst::Load(i));
                total += passes.iter().filter(reads).count().max(1) as f64 * moved(&l.view, l.format);
            }
        }
        total
    }

    /// Does every pass over a kernel's rows read them from memory? So it does, unless the cache holds the rows at work.
    fn reads_again(&self, k: &Loop) -> bool {
        let (cache, bytes) = (self.cache_mb * 0.5e6, k.bytes() as f64);
        let at_work = || rows_at_once(k, self.multiprocessors) as f64 / k.outer_size() as f64;
        k.has_reduction() && bytes >= cache && k.kind() == LoopKind::Row && bytes * at_work() > cache
    }
}

/// Predicted seconds and bytes moved.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Predicted time, without the launch.
    pub seconds: f64,
    /// Bytes moved, at least.
    pub bytes: usize,
}

impl Estimate {
    /// So much for every run.
    pub fn times(self, runs: usize) -> Estimate {
        Estimate { seconds: self.seconds * runs as f64, bytes: self.bytes * runs }
    }
}

/// All of them, one after another.
fn summed(pieces: impl Iterator<Item = Estimate>) -> Estimate {
    pieces.fold(Estimate::default(), |mut total, piece| {
        total += piece;
        total
    })
}

impl std::ops::AddAssign for Estimate {
    fn add_assign(&mut self, other: Estimate) {
        self.seconds += other.seconds;
        self.bytes += other.bytes;
    }
}
