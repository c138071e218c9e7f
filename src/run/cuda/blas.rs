//! Products through cuBLASLt: a wrapper over its C interface, with descriptors and algorithm chosen once.
//!
//! cuBLASLt is column-major, our tensors are row-major: C = A·B is computed as Cᵀ = Bᵀ·Aᵀ, with the operands swapped.

use super::libraries;
use super::owned::Owned;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::lower::Gemm;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::sys as driver;
use std::ffi::c_void;

/// A cuBLASLt handle and its workspace.
pub struct Blas {
    handle: Owned<sys::cublasLtHandle_t>,
    workspace: u64,
    workspace_bytes: usize,
}

/// A product ready to be enqueued.
pub struct Product {
    operation: Owned<sys::cublasLtMatmulDesc_t>,
    a: Owned<sys::cublasLtMatrixLayout_t>,
    b: Owned<sys::cublasLtMatrixLayout_t>,
    d: Owned<sys::cublasLtMatrixLayout_t>,
    algorithm: sys::cublasLtMatmulAlgo_t,
    /// Device addresses of the left operand, the right operand (as cuBLASLt sees them) and the result.
    at: [u64; 3],
}

fn check<T>(what: &str, r: std::result::Result<T, CublasError>) -> Result<T> {
    r.map_err(|e| Error::Device(format!("cuBLASLt: {what}: {e:?}")))
}

fn data_type(f: Format) -> Result<sys::cudaDataType> {
    match f {
        Format::F32 | Format::Tf32 => Ok(sys::cudaDataType::CUDA_R_32F),
        Format::F16 => Ok(sys::cudaDataType::CUDA_R_16F),
        Format::Bf16 => Ok(sys::cudaDataType::CUDA_R_16BF),
        f => Err(Error::Device(format!(
            "products of {f} are not lowered to cuBLASLt yet; run this plan with --device cpu"
        ))),
    }
}

impl Blas {
    /// `workspace` is device memory that products may use, one at a time.
    pub fn new(workspace: u64, workspace_bytes: usize) -> Result<Blas> {
        if !libraries::blas_present() {
            let looked = libraries::survey()
                .into_iter()
                .find(|f| f.library == "libcublasLt")
                .map_or(String::new(), |f| f.looked);
            return Err(Error::Device(format!(
                "cuBLASLt, which multiplies matrices, was not found: looked for {looked}; name its folder in MANTISSA_CUDA_LIB"
            )));
        }
        let handle = check("creating a handle", result::create_handle())?;
        // SAFETY: made above, given back once.
        let handle = Owned::new(handle, |h| unsafe { _ = result::destroy_handle(h) });
        Ok(Blas { handle, workspace, workspace_bytes })
    }

    /// Chooses an algorithm for a product whose row-major operands lie at `a` and `b`, to be written at `d`.
    pub fn prepare(&self, g: &Gemm, a: u64, b: u64, d: u64, to: Format) -> Result<Product> {
        let from = data_type(g.format)?;
        let compute = match g.format {
            Format::Tf32 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let (m, n, k) = (g.m as u64, g.n as u64, g.k as u64);
        // Row-major [r, c] memory is a column-major c × r matrix.
        let left = if g.tb { (k, n) } else { (n, k) };
        let right = if g.ta { (m, k) } else { (k, m) };
        let operation =
            check("describing a product", result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F))?;
        // SAFETY: made above, given back once.
        let operation = Owned::new(operation, |o| unsafe { _ = result::destroy_matmul_desc(o) });
        let transpose = |attr, yes: bool| {
            let op: i32 = i32::from(yes);
            // SAFETY: the attribute is a 32-bit enum, which `op` holds; the descriptor is live.
            unsafe {
                check(
                    "setting a transposition",
                    result::set_matmul_desc_attribute(*operation, attr, (&raw const op).cast(), 4),
                )
            }
        };
        transpose(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, g.tb)?;
        transpose(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB, g.ta)?;
        let layout = |ty, (rows, cols): (u64, u64), stride: usize| {
            let l = check("describing a matrix", result::create_matrix_layout(ty, rows, cols, rows as i64))?;
            // SAFETY: made above, given back once.
            let l = Owned::new(l, |l| unsafe { _ = result::destroy_matrix_layout(l) });
            if g.batch > 1 {
                let (count, stride) = (g.batch as i32, stride as i64);
                // SAFETY: the attributes are a 32-bit and a 64-bit integer; the layout is live.
                unsafe {
                    use sys::cublasLtMatrixLayoutAttribute_t as A;
                    check(
                        "batching",
                        result::set_matrix_layout_attribute(
                            *l,
                            A::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                            (&raw const count).cast(),
                            4,
                        ),
                    )?;
                    check(
                        "batching",
                        result::set_matrix_layout_attribute(
                            *l,
                            A::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                            (&raw const stride).cast(),
                            8,
                        ),
                    )?;
                }
            }
            Ok::<_, Error>(l)
        };
        let (la, lb) = (layout(from, left, g.stride_b)?, layout(from, right, g.stride_a)?);
        let ld = layout(data_type(to)?, (n, m), g.m * g.n)?;
        let at = [b, a, d];
        let algorithm = self.choose(*operation, *la, *lb, *ld, at)?;
        Ok(Product { operation, a: la, b: lb, d: ld, algorithm, at })
    }

    /// The heuristic's first choice: the same on every run, so that a seed gives the same bits.
    fn choose(
        &self,
        op: sys::cublasLtMatmulDesc_t,
        a: sys::cublasLtMatrixLayout_t,
        b: sys::cublasLtMatrixLayout_t,
        d: sys::cublasLtMatrixLayout_t,
        at: [u64; 3],
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        use sys::cublasLtMatmulPreferenceAttributes_t as P;
        let preference = check("creating a preference", result::create_matmul_pref())?;
        // SAFETY: made above, given back once.
        let preference = Owned::new(preference, |p| unsafe { _ = result::destroy_matmul_pref(p) });
        let bytes = self.workspace_bytes;
        // Split products may add up only in f32, in an order that does not depend on timing.
        let schemes: u32 = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        // Parts of buffers may begin anywhere; algorithms are chosen for 256 bytes unless told.
        let alignment = |address: u64| 1u32 << address.trailing_zeros().min(8);
        let alignments = [
            (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, at[0]),
            (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, at[1]),
            (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, at[2]),
            (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, at[2]),
        ];
        // SAFETY: the attributes are a size, a 32-bit mask and 32-bit numbers; all descriptors are live.
        unsafe {
            for (attribute, address) in alignments {
                let bytes = alignment(address);
                check(
                    "stating an alignment",
                    result::set_matmul_pref_attribute(*preference, attribute, (&raw const bytes).cast(), 4),
                )?;
            }
            check(
                "limiting the workspace",
                result::set_matmul_pref_attribute(
                    *preference,
                    P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                    (&raw const bytes).cast(),
                    size_of::<usize>(),
                ),
            )?;
            check(
                "limiting reductions",
                result::set_matmul_pref_attribute(
                    *preference,
                    P::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                    (&raw const schemes).cast(),
                    4,
                ),
            )?;
            let found = result::get_matmul_algo_heuristic(*self.handle, op, a, b, d, d, *preference);
            Ok(check("choosing an algorithm", found)?.algo)
        }
    }

    /// Enqueues a product.
    ///
    /// # Safety
    /// The addresses the product was prepared with and the stream must be live.
    pub unsafe fn run(&self, p: &Product, stream: driver::CUstream) -> Result<()> {
        let (alpha, beta) = (1.0f32, 0.0f32);
        let [a, b, d] = p.at.map(|x| x as *mut c_void);
        // SAFETY: promised by the caller; scalars are read before the call returns.
        let done = unsafe {
            result::matmul(
                *self.handle,
                *p.operation,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                a,
                *p.a,
                b,
                *p.b,
                d,
                *p.d,
                d,
                *p.d,
                &p.algorithm,
                self.workspace as *mut c_void,
                self.workspace_bytes,
                stream.cast(),
            )
        };
        check("multiplying", done)
    }
}
