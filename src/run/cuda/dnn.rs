//! Convolutions through cuDNN: descriptors and a deterministic algorithm, chosen once.
//!
//! What cuDNN does not take (padding that differs on both sides, results in another format than the operands) is left to
//! our own kernel.

use super::libraries;
use super::owned::Owned;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::ir::{ConvKind, ConvSpec};
use crate::lower::Conv;
use cudarc::cudnn::result::{self, CudnnError};
use cudarc::cudnn::sys;
use cudarc::driver::{result as device, sys as driver};
use std::ffi::{c_int, c_void};

/// Bytes of workspace that an algorithm takes, at most, while another one takes less.
const MODEST: usize = 1 << 30;

/// A cuDNN handle, and a workspace as large as the convolutions so far need, one at a time.
pub struct Dnn {
    handle: Owned<sys::cudnnHandle_t>,
    /// What convolutions run on.
    stream: driver::CUstream,
    workspace: Option<Owned<driver::CUdeviceptr>>,
    workspace_bytes: usize,
}

/// A convolution ready to be enqueued.
pub struct Convolution {
    x: Owned<sys::cudnnTensorDescriptor_t>,
    w: Owned<sys::cudnnFilterDescriptor_t>,
    y: Owned<sys::cudnnTensorDescriptor_t>,
    how: Owned<sys::cudnnConvolutionDescriptor_t>,
    algorithm: Algorithm,
    /// Device addresses of the operands and the result.
    at: [u64; 3],
}

#[derive(Clone, Copy)]
enum Algorithm {
    Forward(sys::cudnnConvolutionFwdAlgo_t),
    Input(sys::cudnnConvolutionBwdDataAlgo_t),
    Weight(sys::cudnnConvolutionBwdFilterAlgo_t),
}

/// A way to compute a convolution, as cuDNN's heuristic ranks them.
struct Candidate {
    algorithm: Algorithm,
    math: sys::cudnnMathType_t,
}

fn check<T>(what: &str, r: std::result::Result<T, CudnnError>) -> Result<T> {
    r.map_err(|e| Error::Device(format!("cuDNN: {what}: {e:?}")))
}

/// Algorithms that sum the products themselves. Winograd's and Fourier's overflow f16 and round elsewhere than the CPU.
const PLAIN_FORWARD: [sys::cudnnConvolutionFwdAlgo_t; 4] = [
    sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM,
    sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM,
    sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_GEMM,
    sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_DIRECT,
];

fn data_type(f: Format) -> Option<sys::cudnnDataType_t> {
    match f {
        Format::F32 | Format::Tf32 => Some(sys::cudnnDataType_t::CUDNN_DATA_FLOAT),
        Format::F16 => Some(sys::cudnnDataType_t::CUDNN_DATA_HALF),
        Format::Bf16 => Some(sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16),
        _ => None,
    }
}

/// Does the padding before the elements, on both sides, yield the extents of `y`?
fn is_symmetric(c: &Conv) -> bool {
    let s = ConvSpec { hi: c.spec.lo.clone(), ..c.spec.clone() };
    (0..s.stride.len()).all(|i| s.places(i, c.x[2 + i], c.w[2 + i]) == c.y[2 + i])
}

/// A list as cuDNN wants it: with entries for at least two spatial axes, the missing one `rest`.
fn at_least(entries: usize, list: &[usize], rest: c_int) -> Vec<c_int> {
    let mut out: Vec<c_int> = list.iter().map(|&d| d as c_int).collect();
    out.resize(out.len().max(entries), rest);
    out
}

impl Convolution {
    /// A convolution of operands in `ty`, with no algorithm chosen yet.
    fn described(c: &Conv, ty: sys::cudnnDataType_t, math: sys::cudnnMathType_t, at: [u64; 3]) -> Result<Convolution> {
        let tensor = || {
            let tensor = check("describing a tensor", result::create_tensor_descriptor())?;
            // SAFETY: made above, given back once.
            Ok::<_, Error>(Owned::new(tensor, |t| unsafe { _ = result::destroy_tensor_descriptor(t) }))
        };
        let w = check("describing a filter", result::create_filter_descriptor())?;
        // SAFETY: made above, given back once.
        let w = Owned::new(w, |w| unsafe { _ = result::destroy_filter_descriptor(w) });
        let how = check("describing a convolution", result::create_convolution_descriptor())?;
        // SAFETY: made above, given back once.
        let how = Owned::new(how, |h| unsafe { _ = result::destroy_convolution_descriptor(h) });
        let algorithm = Algorithm::Forward(PLAIN_FORWARD[0]);
        let conv = Convolution { x: tensor()?, w, y: tensor()?, how, algorithm, at };
        let [x, w, y] = [&c.x, &c.w, &c.y].map(|dims| at_least(4, dims, 1));
        let strides =
            |dims: &[c_int]| -> Vec<c_int> { (0..dims.len()).map(|i| dims[i + 1..].iter().product()).collect() };
        let (pads, stride) = (at_least(2, &c.spec.lo, 0), at_least(2, &c.spec.stride, 1));
        let dilation = at_least(2, &c.spec.dilation, 1);
        // SAFETY: descriptors are live; every list has as many entries as its count says.
        unsafe {
            for (desc, dims) in [(*conv.x, &x), (*conv.y, &y)] {
                let strides = strides(dims);
                let set =
                    result::set_tensornd_descriptor(desc, ty, dims.len() as c_int, dims.as_ptr(), strides.as_ptr());
                check("describing a tensor", set)?;
            }
            let layout = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW;
            check(
                "describing a filter",
                result::set_filternd_descriptor(*conv.w, ty, layout, w.len() as c_int, w.as_ptr()),
            )?;
            check(
                "describing a convolution",
                result::set_convolutionnd_descriptor(
                    *conv.how,
                    pads.len() as c_int,
                    pads.as_ptr(),
                    stride.as_ptr(),
                    dilation.as_ptr(),
                    sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
                    sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
                ),
            )?;
            check("grouping", result::set_convolution_group_count(*conv.how, c.spec.groups as i32))?;
            check("choosing arithmetic", result::set_convolution_math_type(*conv.how, math))?;
        }
        Ok(conv)
    }
}

impl Dnn {
    /// None where cuDNN is absent, or turned off by `MANTISSA_CUDNN=off`.
    pub fn new(stream: driver::CUstream) -> Result<Option<Dnn>> {
        if !libraries::dnn_present() || std::env::var("MANTISSA_CUDNN").is_ok_and(|v| v == "off") {
            return Ok(None);
        }
        let handle = check("creating a handle", result::create_handle())?;
        // SAFETY: made above, given back once.
        let handle = Owned::new(handle, |h| unsafe { _ = result::destroy_handle(h) });
        // SAFETY: the handle is live, and the stream is the runner's, which outlives this.
        unsafe { check("setting the stream", result::set_stream(*handle, stream.cast()))? };
        Ok(Some(Dnn { handle, stream, workspace: None, workspace_bytes: 0 }))
    }

    /// Chooses an algorithm for a convolution whose operands lie at `a` and `b`, to be written at `d`, and runs it once: what
    /// cuDNN promises it may still refuse. None if it takes no algorithm.
    ///
    /// # Safety
    /// The addresses must be live, and what lies at `d` not in use.
    pub unsafe fn prepare(&mut self, c: &Conv, a: u64, b: u64, d: u64, to: Format) -> Result<Option<Convolution>> {
        let Some(ty) = data_type(c.format).filter(|_| is_symmetric(c)) else { return Ok(None) };
        if to != c.format.in_memory() || c.spec.stride.len() > 3 || [&c.x, &c.w, &c.y].iter().any(|d| d.contains(&0)) {
            return Ok(None);
        }
        // Tensor cores for narrow operands and where tf32 is planned; f32 stays f32.
        let math = match c.format {
            Format::F32 => sys::cudnnMathType_t::CUDNN_FMA_MATH,
            _ => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        };
        let mut conv = Convolution::described(c, ty, math, [a, b, d])?;
        // What is to stay f32 is never rounded to tf32, whatever the heuristic has in mind.
        let exact = |k: Candidate| if c.format == Format::F32 { Candidate { math, ..k } } else { k };
        let candidates: Vec<Candidate> = self.candidates(&c.kind, &conv)?.into_iter().map(exact).collect();
        let sized = candidates.into_iter().filter_map(|k| Some((self.workspace_of(&conv, &k)?, k)));
        let (modest, large): (Vec<_>, Vec<_>) = sized.partition(|k| k.0 <= MODEST);
        for (bytes, candidate) in modest.into_iter().chain(large) {
            if !self.reserve(bytes)? {
                continue;
            }
            conv.algorithm = candidate.algorithm;
            // SAFETY: the descriptor is live; the rest is promised by the caller.
            let ran = unsafe {
                _ = result::set_convolution_math_type(*conv.how, candidate.math);
                self.run(&conv)
            };
            if ran.is_ok() {
                return Ok(Some(conv));
            }
        }
        Ok(None)
    }

    /// Makes the workspace so large. False where the GPU has no room for it: what others need is kept.
    fn reserve(&mut self, bytes: usize) -> Result<bool> {
        if bytes <= self.workspace_bytes {
            return Ok(true);
        }
        // SAFETY: a new allocation.
        let Ok(at) = (unsafe { device::malloc_sync(bytes) }) else { return Ok(false) };
        // SAFETY: allocated above, given back once.
        let larger = Owned::new(at, |at| unsafe { _ = device::free_sync(at) });
        // The stream alone: waiting for all of the context would break a capture on another thread.
        // SAFETY: the stream is the runner's, which outlives this.
        super::driver("waiting for what uses the workspace", unsafe { device::stream::synchronize(self.stream) })?;
        (self.workspace, self.workspace_bytes) = (Some(larger), bytes);
        Ok(true)
    }

    /// Bytes of workspace that a candidate needs; none if cuDNN does not take it.
    fn workspace_of(&self, c: &Convolution, candidate: &Candidate) -> Option<usize> {
        // SAFETY: descriptors and handle are live.
        let bytes = unsafe {
            result::set_convolution_math_type(*c.how, candidate.math).ok()?;
            match candidate.algorithm {
                Algorithm::Forward(a) => {
                    result::get_convolution_forward_workspace_size(*self.handle, *c.x, *c.w, *c.how, *c.y, a)
                }
                Algorithm::Input(a) => {
                    result::get_convolution_backward_data_workspace_size(*self.handle, *c.w, *c.y, *c.how, *c.x, a)
                }
                Algorithm::Weight(a) => {
                    result::get_convolution_backward_filter_workspace_size(*self.handle, *c.x, *c.y, *c.how, *c.w, a)
                }
            }
        };
        bytes.ok()
    }

    /// The plain and deterministic algorithms that cuDNN's heuristic names, fastest first.
    fn candidates(&self, kind: &ConvKind, c: &Convolution) -> Result<Vec<Candidate>> {
        const MOST: usize = 16;
        macro_rules! pick {
            ($get:path, $ty:ty, $plain:expr, $first:expr, $second:expr, $third:expr, $wrap:expr) => {{
                // SAFETY: plain numbers, for which zeros are a value; cuDNN fills `count` of them.
                let mut found: [$ty; MOST] = unsafe { std::mem::zeroed() };
                let mut count: c_int = 0;
                // SAFETY: descriptors and handle are live, and `found` has room for as many results as are asked for.
                let got = unsafe {
                    $get(
                        *self.handle,
                        $first,
                        $second,
                        *c.how,
                        $third,
                        MOST as c_int,
                        &raw mut count,
                        found.as_mut_ptr(),
                    )
                };
                check("choosing an algorithm", got)?;
                let good = |f: &&$ty| {
                    f.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS
                        && f.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC
                };
                let plain = |f: &&$ty| $plain.contains(&f.algo);
                let candidate = |f: &$ty| Candidate { algorithm: $wrap(f.algo), math: f.mathType };
                found[..count as usize].iter().filter(|f| good(f) && plain(f)).map(candidate).collect()
            }};
        }
        Ok(match kind {
            ConvKind::Forward => pick!(
                result::get_convolution_forward_algorithm,
                sys::cudnnConvolutionFwdAlgoPerf_t,
                PLAIN_FORWARD,
                *c.x,
                *c.w,
                *c.y,
                Algorithm::Forward
            ),
            ConvKind::Input(_) => pick!(
                result::get_convolution_backward_data_algorithm,
                sys::cudnnConvolutionBwdDataAlgoPerf_t,
                [sys::cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1],
                *c.w,
                *c.y,
                *c.x,
                Algorithm::Input
            ),
            ConvKind::Weight(_) => pick!(
                result::get_convolution_backward_filter_algorithm,
                sys::cudnnConvolutionBwdFilterAlgoPerf_t,
                [sys::cudnnConvolutionBwdFilterAlgo_t::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1],
                *c.x,
                *c.y,
                *c.w,
                Algorithm::Weight
            ),
        })
    }

    /// Enqueues a convolution on the stream that the handle was made for.
    ///
    /// # Safety
    /// The addresses the convolution was prepared with and the stream must be live.
    pub unsafe fn run(&self, c: &Convolution) -> Result<()> {
        let (one, zero) = (1.0f32, 0.0f32);
        let (one, zero): (*const c_void, *const c_void) = ((&raw const one).cast(), (&raw const zero).cast());
        let [a, b, d] = c.at.map(|p| p as *mut c_void);
        let (workspace, bytes) = (self.workspace.as_ref().map_or(0, |w| **w) as *mut c_void, self.workspace_bytes);
        // SAFETY: promised by the caller; scalars are read before the call returns.
        let done = unsafe {
            match c.algorithm {
                Algorithm::Forward(algorithm) => result::convolution_forward(
                    *self.handle,
                    one,
                    *c.x,
                    a,
                    *c.w,
                    b,
                    *c.how,
                    algorithm,
                    workspace,
                    bytes,
                    zero,
                    *c.y,
                    d,
                ),
                Algorithm::Input(algorithm) => result::convolution_backward_data(
                    *self.handle,
                    one,
                    *c.w,
                    b,
                    *c.y,
                    a,
                    *c.how,
                    algorithm,
                    workspace,
                    bytes,
                    zero,
                    *c.x,
                    d,
                ),
                // The gradient of the result stands on the left.
                Algorithm::Weight(algorithm) => result::convolution_backward_filter(
                    *self.handle,
                    one,
                    *c.x,
                    a,
                    *c.y,
                    b,
                    *c.how,
                    algorithm,
                    workspace,
                    bytes,
                    zero,
                    *c.w,
                    d,
                ),
            }
        };
        check("convolving", done)
    }
}
