//! The CUDA device: generated kernels and cuBLASLt products, the whole step captured as one CUDA graph.
//!
//! Libraries are found at run time, so the same binary works without a GPU. All `unsafe` of the project is in this
//! folder: calls into the driver, NVRTC and cuBLASLt, whose arguments this module owns.

mod alone;
mod blas;
mod dnn;
mod libraries;
mod nvrtc;
mod owned;
mod spreads;

pub use libraries::{Finding, nvrtc_present, survey};
pub use nvrtc::{compile, compile_cached, key};

use super::device::{Backend, Device, Watcher};
use crate::error::{Error, Result};
use crate::format::{Format, narrow, widen};
use crate::lower::cuda::{CudaProgram, Destination, Launch, Word, generate};
use crate::lower::{Address, Arena, BufferId, Contraction, Kernel, Program};
use crate::run::Bytes;
use alone::Alone;
use blas::{Blas, Product};
use cudarc::driver::{CudaContext, result, sys};
use dnn::{Convolution, Dnn};
use owned::Owned;
use spreads::Spreads;
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::Arc;

/// Workspace for products: what cuBLAS recommends for Hopper.
const WORKSPACE: usize = 64 << 20;

/// The first GPU.
#[derive(Default)]
pub struct Cuda {
    /// Compiled kernels by [`key`]; others are compiled when they are needed, and kept in a cache.
    pub kernels: HashMap<String, Vec<u8>>,
}

impl Backend for Cuda {
    fn open(&self, program: Program) -> Result<Box<dyn Device>> {
        Ok(Box::new(CudaRunner::new(program, &self.kernels, None)?))
    }

    fn watch(&self, program: Program, watcher: Watcher) -> Result<Box<dyn Device>> {
        Ok(Box::new(CudaRunner::new(program, &self.kernels, Some(watcher))?))
    }
}

/// A program on a GPU.
struct CudaRunner {
    program: Program,
    arena: Arena,
    name: String,
    // Fields are dropped in this order: the graph before what was captured, memory and stream last.
    graph: Option<Owned<sys::CUgraphExec>>,
    /// What was captured, in order, with the program's launch that each is a part of (or counts the stores of).
    ready: Vec<(usize, Ready)>,
    libraries: Libraries,
    /// Counts what is stored, where somebody watches.
    spreads: Option<Spreads>,
    module: Owned<sys::CUmodule>,
    base: Owned<sys::CUdeviceptr>,
    stream: Owned<sys::CUstream>,
    context: Arc<CudaContext>,
    /// Held while the step is captured, and taken to give the rest back.
    alone: Option<Alone>,
}

/// Handles of the libraries that a step needs.
#[derive(Default)]
struct Libraries {
    blas: Option<Blas>,
    dnn: Option<Dnn>,
}

/// A driver error as ours.
fn driver<T>(what: &str, r: std::result::Result<T, result::DriverError>) -> Result<T> {
    r.map_err(|e| {
        let text = e.error_string().map_or_else(|_| "unknown error".into(), |s| s.to_string_lossy().into_owned());
        Error::Device(format!("CUDA: {what}: {text}"))
    })
}

/// Is there a driver and a GPU?
pub fn available() -> bool {
    libraries::driver_present() && CudaContext::device_count().is_ok_and(|n| n > 0)
}

/// Opens the first GPU, or says what was looked for.
pub(crate) fn context() -> Result<Arc<CudaContext>> {
    if !libraries::driver_present() {
        return Err(Error::Device(format!(
            "no NVIDIA driver: {}; run with --device cpu, or see `mantissa doctor`",
            libraries::DRIVER_HINT
        )));
    }
    driver("opening the first GPU", CudaContext::new(0))
}

/// The architecture kernels are compiled for: `sm_90a` where the chip has its own instructions.
pub(crate) fn architecture(context: &CudaContext) -> Result<String> {
    let (major, minor) = driver("reading the compute capability", context.compute_capability())?;
    Ok(format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" }))
}

/// A GPU's name, how many multiprocessors it has, and the bytes of its last cache.
pub(crate) fn hardware(context: &CudaContext) -> Result<(String, usize, usize)> {
    use sys::CUdevice_attribute as A;
    let attribute = |a| Ok::<_, Error>(usize::try_from(driver("asking the GPU", context.attribute(a))?).unwrap_or(0));
    let name = driver("reading the GPU's name", context.name())?;
    let sms = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    Ok((name, sms, attribute(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?))
}

impl CudaRunner {
    /// Compiles, allocates and captures.
    fn new(program: Program, kernels: &HashMap<String, Vec<u8>>, watcher: Option<Watcher>) -> Result<CudaRunner> {
        let context = context()?;
        let generated = generate(&program)?;
        let arch = architecture(&context)?;
        let key = nvrtc::key(&generated.source, &arch);
        let cubin = match kernels.get(&key) {
            Some(c) => c.clone(),
            None => compile_cached(&generated.source, &arch)?,
        };
        let arena = Arena::assign(&program);
        let scratch = arena.bytes.next_multiple_of(256);
        let partials = (scratch + generated.scratch_bytes).next_multiple_of(256);
        let workspace = (partials + generated.partials_bytes).next_multiple_of(256);
        let needs_blas = generated.launches.iter().any(|l| matches!(l, Launch::Product { .. }));
        let needs_dnn = generated.launches.iter().any(|l| matches!(l, Launch::Convolution { .. }));
        let total = workspace + if needs_blas { WORKSPACE } else { 256 };
        let name = driver("reading the GPU's name", context.name())?;
        let alone = Alone::take();
        // SAFETY: a new stream and a new allocation, each given back once; the context is current.
        let (stream, base) = unsafe {
            let stream = driver("creating a stream", result::stream::create(result::stream::StreamKind::NonBlocking))?;
            let stream = Owned::new(stream, |s| _ = result::stream::destroy(s));
            let (free, _) = driver("asking for free memory", result::mem_get_info())?;
            if total > free {
                return Err(Error::Device(format!(
                    "the step needs {:.1} GB of GPU memory and {:.1} GB are free; train with a smaller --batch",
                    total as f64 / 1e9,
                    free as f64 / 1e9
                )));
            }
            let base = driver("allocating memory", result::malloc_sync(total))?;
            let base = Owned::new(base, |b| _ = result::free_sync(b));
            driver("clearing memory", result::memset_d8_async(*base, 0, total, *stream))?;
            (stream, base)
        };
        // SAFETY: `cubin` is a whole CUBIN, from NVRTC or checked by its key; the driver copies it.
        let module = unsafe { driver("loading kernels", result::module::load_data(cubin.as_ptr().cast()))? };
        // SAFETY: loaded above, unloaded once.
        let module = Owned::new(module, |m| unsafe { _ = result::module::unload(m) });
        let at = *base + workspace as u64;
        let mut libraries = Libraries {
            blas: if needs_blas { Some(Blas::new(at, WORKSPACE)?) } else { None },
            dnn: if needs_dnn { Dnn::new(*stream)? } else { None },
        };
        let spreads = watcher.map(|w| Spreads::new(&program, &arch, w)).transpose()?;
        let areas = Areas { scratch: *base + scratch as u64, partials: *base + partials as u64 };
        let mut runner = CudaRunner {
            program,
            arena,
            name,
            graph: None,
            ready: Vec::new(),
            libraries: Libraries::default(),
            spreads,
            module,
            base,
            stream,
            context,
            alone: Some(alone),
        };
        let captured = runner.capture(&generated, areas, &mut libraries);
        // Libraries go before the stream that they use.
        runner.libraries = libraries;
        captured?;
        runner.alone = None;
        Ok(runner)
    }

    fn address(&self, at: Address) -> u64 {
        let skipped = at.offset * self.program.buffers[at.buffer].ty.format.bytes();
        *self.base + (self.arena.slots[at.buffer].offset + skipped) as u64
    }

    /// Records every launch into one graph.
    fn capture(&mut self, generated: &CudaProgram, areas: Areas, libraries: &mut Libraries) -> Result<()> {
        let mut ready = Vec::new();
        for launch in &generated.launches {
            ready.push(self.prepare(launch, areas, libraries)?);
        }
        // Libraries load their kernels when they are first used, which a capture does not always allow.
        for r in &mut ready {
            if !matches!(r, Ready::Kernel { .. }) {
                // SAFETY: everything the launch touches is this runner's; what it writes is not in use yet.
                unsafe { r.record(*self.stream, libraries)? };
            }
        }
        self.synchronize()?;
        let mut ready = self.watched(generated.of.iter().copied().zip(ready))?;
        self.graph = Some(self.captured(libraries, ready.iter_mut().map(|(_, r)| r), 1)?);
        self.ready = ready;
        Ok(())
    }

    /// Launches with the program's launch that each is a part of; where somebody watches, what counts its stores follows.
    fn watched(&mut self, ready: impl Iterator<Item = (usize, Ready)>) -> Result<Vec<(usize, Ready)>> {
        let Some(mut spreads) = self.spreads.take() else { return Ok(ready.collect()) };
        let address = |at| self.address(at);
        let sources = spreads.of_sources(&self.program, address)?;
        let mut out: Vec<_> = sources.into_iter().map(|r| (0, r)).collect();
        let mut ready = ready.peekable();
        while let Some((of, r)) = ready.next() {
            out.push((of, r));
            if ready.peek().is_none_or(|next| next.0 != of) {
                let stores = spreads.of_launch(&self.program, of, address)?;
                out.extend(stores.into_iter().map(|r| (of, r)));
            }
        }
        self.spreads = Some(spreads);
        Ok(out)
    }

    /// Launches, each so many times, as one graph.
    fn captured<'r>(
        &self,
        libraries: &Libraries,
        launches: impl Iterator<Item = &'r mut Ready>,
        copies: usize,
    ) -> Result<Owned<sys::CUgraphExec>> {
        // SAFETY: everything recorded (functions, descriptors, addresses) is owned by this runner and outlives the graph.
        unsafe {
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            driver("starting capture", result::stream::begin_capture(*self.stream, mode))?;
            for r in launches {
                for _ in 0..copies {
                    r.record(*self.stream, libraries)?;
                }
            }
            let graph = driver("ending capture", result::stream::end_capture(*self.stream))?;
            let graph = Owned::new(graph, |g| _ = result::graph::destroy(g));
            let flags = sys::CUgraphInstantiate_flags(0);
            let exec = driver("instantiating the step's graph", result::graph::instantiate(*graph, flags))?;
            Ok(Owned::new(exec, |e| _ = result::graph::exec_destroy(e)))
        }
    }

    fn prepare(&self, launch: &Launch, areas: Areas, libraries: &mut Libraries) -> Result<Ready> {
        match launch {
            Launch::Kernel { name, blocks, threads, words } => {
                let c_name = CString::new(name.as_str()).expect("generated names have no NUL");
                // SAFETY: the module is loaded and stays so until `drop`.
                let function = unsafe { driver(name, result::module::get_function(*self.module, c_name))? };
                let words = words.iter().map(|w| match *w {
                    Word::Buffer(b) => self.address(b),
                    Word::Scratch => areas.scratch,
                    Word::Partials(at) => areas.partials + at as u64,
                    Word::Number(n) => n,
                });
                Ok(Ready::Kernel { function, blocks: *blocks, threads: *threads, words: words.collect() })
            }
            Launch::Product { kernel, to } => {
                let Kernel::Product(p) = &self.program.calls[*kernel].kernel else {
                    unreachable!("products are products")
                };
                let Contraction::Gemm(g) = &p.contraction else { unreachable!("cuBLASLt multiplies matrices") };
                let (d, format) = self.destination(*to, areas);
                let blas = libraries.blas.as_ref().expect("opened for products");
                Ok(Ready::Product(blas.prepare(g, self.address(g.a), self.address(g.b), d, format)?))
            }
            Launch::Convolution { kernel, to, own } => {
                let Kernel::Product(p) = &self.program.calls[*kernel].kernel else {
                    unreachable!("products are products")
                };
                let Contraction::Conv(c) = &p.contraction else { unreachable!("cuDNN convolves") };
                let (d, format) = self.destination(*to, areas);
                let found = match &mut libraries.dnn {
                    // SAFETY: addresses are the runner's, and what lies there is not in use yet.
                    Some(dnn) => unsafe { dnn.prepare(c, self.address(c.a), self.address(c.b), d, format)? },
                    None => None,
                };
                match found {
                    Some(c) => Ok(Ready::Convolution(c)),
                    None => self.prepare(own, areas, libraries),
                }
            }
        }
    }

    fn destination(&self, to: Destination, areas: Areas) -> (u64, Format) {
        match to {
            Destination::Buffer(b, f) => (self.address(b), f),
            Destination::Scratch(f) => (areas.scratch, f),
        }
    }

    fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is this runner's.
        unsafe { driver("waiting for the GPU", result::stream::synchronize(*self.stream)) }
    }

    fn buffer(&self, name: &str) -> Result<BufferId> {
        self.program.find(name).ok_or_else(|| Error::Request(format!("the program has no buffer `{name}`")))
    }

    fn upload(&self, b: BufferId, bytes: &[u8]) -> Result<()> {
        // SAFETY: the slot holds at least the buffer's bytes, and `bytes` has exactly those; pageable memory is staged
        // before the call returns.
        unsafe {
            driver("copying to the GPU", result::memcpy_htod_async(self.address(Address::of(b)), bytes, *self.stream))
        }
    }

    fn download(&self, b: BufferId) -> Result<Bytes> {
        let mut out = Bytes::zeroed(self.program.buffers[b].ty.bytes());
        self.synchronize()?;
        // SAFETY: as in `upload`; the stream has finished.
        unsafe {
            driver("copying from the GPU", result::memcpy_dtoh_sync(out.as_mut(), self.address(Address::of(b))))?
        };
        Ok(out)
    }
}

/// Addresses of what is not a buffer of the program.
#[derive(Clone, Copy)]
struct Areas {
    scratch: u64,
    partials: u64,
}

/// A launch with its addresses filled in.
enum Ready {
    Kernel { function: sys::CUfunction, blocks: u32, threads: u32, words: Vec<u64> },
    Product(Product),
    Convolution(Convolution),
}

impl Ready {
    /// Enqueues the launch.
    ///
    /// # Safety
    /// The stream and every address must be live.
    unsafe fn record(&mut self, stream: sys::CUstream, libraries: &Libraries) -> Result<()> {
        match self {
            Ready::Kernel { function, blocks, threads, words } => {
                let mut params = [words.as_mut_ptr().cast()];
                let grid = ((*blocks).max(1), 1, 1);
                // SAFETY: the kernel takes one struct of 8-byte words, which `words` holds.
                unsafe {
                    driver(
                        "launching a kernel",
                        result::launch_kernel(*function, grid, (*threads, 1, 1), 0, stream, &mut params),
                    )
                }
            }
            // SAFETY: promised by the caller.
            Ready::Product(p) => unsafe { libraries.blas.as_ref().expect("opened for products").run(p, stream) },
            // SAFETY: promised by the caller; the handle was made for this stream.
            Ready::Convolution(c) => unsafe { libraries.dnn.as_ref().expect("opened for convolutions").run(c) },
        }
    }
}

impl Drop for CudaRunner {
    fn drop(&mut self) {
        // What the fields own is given back on this thread, when nothing runs any more, and before the last of them.
        let _ = self.context.bind_to_thread();
        let _ = self.synchronize();
        self.alone.get_or_insert_with(Alone::take);
    }
}

impl Device for CudaRunner {
    fn program(&self) -> &Program {
        &self.program
    }

    fn write(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let b = self.buffer(name)?;
        let ty = &self.program.buffers[b].ty;
        if ty.elements() != values.len() {
            return Err(Error::Request(format!("`{name}` takes {} values, not {}", ty.elements(), values.len())));
        }
        let mut bytes = Bytes::zeroed(ty.bytes());
        narrow(ty.format, values, bytes.as_mut());
        self.upload(b, bytes.as_ref())
    }

    fn write_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let b = self.buffer(name)?;
        let want = self.program.buffers[b].ty.bytes();
        if want != bytes.len() {
            return Err(Error::Request(format!("`{name}` takes {want} bytes, not {}", bytes.len())));
        }
        self.upload(b, bytes)
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>> {
        let b = self.program.result(name).map_or_else(|| self.buffer(name), Ok)?;
        let bytes = self.download(b)?;
        let ty = &self.program.buffers[b].ty;
        let mut out = vec![0.0; ty.elements()];
        widen(ty.format, bytes.as_ref(), &mut out);
        Ok(out)
    }

    fn read_bytes(&mut self, name: &str) -> Result<Vec<u8>> {
        let b = self.buffer(name)?;
        Ok(self.download(b)?.as_ref().to_vec())
    }

    fn run(&mut self) -> Result<()> {
        let graph = self.graph.as_ref().expect("captured when the runner was made");
        if let Some(spreads) = &self.spreads {
            spreads.clear(*self.stream)?;
        }
        // SAFETY: the graph was instantiated from this runner's own launches and everything it touches is alive.
        unsafe { driver("running the step", result::graph::launch(**graph, *self.stream))? };
        if self.spreads.is_some() {
            self.synchronize()?;
        }
        self.spreads.as_mut().map_or(Ok(()), |s| s.tell(&self.program))
    }

    fn wait(&mut self) -> Result<()> {
        self.synchronize()
    }

    fn profile(&mut self) -> Result<Vec<f64>> {
        /// Copies of a launch in a graph: enough for the time of starting the graph not to show.
        const COPIES: usize = 20;
        const RUNS: usize = 5;
        let mut seconds = vec![0.0; self.program.launches.len()];
        let mut ready = std::mem::take(&mut self.ready);
        for (of, one) in &mut ready {
            let alone = Alone::take();
            let graph = self.captured(&self.libraries, std::iter::once(one), COPIES)?;
            drop(alone);
            let mut best = f64::INFINITY;
            for run in 0..=RUNS {
                self.synchronize()?;
                let began = std::time::Instant::now();
                // SAFETY: the graph was just made of launches of this runner.
                unsafe { driver("running a launch", result::graph::launch(*graph, *self.stream))? };
                self.synchronize()?;
                // The first run warms up.
                if run > 0 {
                    best = best.min(began.elapsed().as_secs_f64());
                }
            }
            seconds[*of] += best / COPIES as f64;
        }
        self.ready = ready;
        Ok(seconds)
    }

    fn describe(&self) -> String {
        format!("cuda ({})", self.name)
    }
}
