//! Finding NVIDIA's libraries at run time, and saying where they were looked for.

use cudarc::{cublaslt, cudnn, driver, nvrtc};
use libloading::Library;
use std::path::PathBuf;
use std::sync::OnceLock;

pub const DRIVER_HINT: &str = "libcuda.so.1 is not on the loader's path (it comes with the GPU driver)";

/// One library: is it there, and what was looked for.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The library's name.
    pub library: &'static str,
    /// What it is needed for.
    pub purpose: &'static str,
    /// Is it there?
    pub found: bool,
    /// The names that were looked for.
    pub looked: String,
}

/// Directories searched besides the loader's own: `MANTISSA_CUDA_LIB` (colon-separated), then where toolkits and
/// Python wheels put their libraries.
pub fn directories() -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> =
        std::env::var_os("MANTISSA_CUDA_LIB").map(|v| std::env::split_paths(&v).collect()).unwrap_or_default();
    for root in ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(std::env::var_os)
        .map(PathBuf::from)
        .chain([PathBuf::from("/usr/local/cuda")])
    {
        out.push(root.join("lib64"));
        out.push(root.join("targets/x86_64-linux/lib"));
    }
    out
}

/// Loads what the search finds by full path, so that the loader knows it by name from then on. Kept for the process's life.
fn preload() -> &'static [Library] {
    static LOADED: OnceLock<Vec<Library>> = OnceLock::new();
    LOADED.get_or_init(|| {
        let mut out = Vec::new();
        // NVRTC looks for its builtins by name, so they come first.
        for prefix in ["libnvrtc-builtins.so.", "libnvrtc.so.", "libcublasLt.so.", "libcudnn.so."] {
            let mut files: Vec<PathBuf> = directories()
                .iter()
                .filter_map(|d| std::fs::read_dir(d).ok())
                .flat_map(|d| d.filter_map(Result::ok).map(|e| e.path()))
                .filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(prefix)))
                .collect();
            files.sort_by_key(|p| std::cmp::Reverse(p.as_os_str().len()));
            for file in files {
                // SAFETY: these are NVIDIA's own libraries; their initialisers are what loading them by name would run.
                if let Ok(library) = unsafe { Library::new(&file) } {
                    out.push(library);
                }
            }
        }
        out
    })
}

pub fn driver_present() -> bool {
    // SAFETY: tries to load the driver's library, which has no side effect beyond its own initialisation.
    unsafe { driver::sys::is_culib_present() }
}

/// Is NVRTC there, which compiles kernels?
pub fn nvrtc_present() -> bool {
    preload();
    // SAFETY: as above.
    unsafe { nvrtc::sys::is_culib_present() }
}

pub fn blas_present() -> bool {
    preload();
    // SAFETY: as above.
    unsafe { cublaslt::sys::is_culib_present() }
}

pub fn dnn_present() -> bool {
    preload();
    // SAFETY: as above.
    unsafe { cudnn::sys::is_culib_present() }
}

/// What `mantissa doctor` shows.
pub fn survey() -> Vec<Finding> {
    let dirs: Vec<String> = directories().iter().map(|d| d.display().to_string()).collect();
    let searched = |name: &str| format!("{name} on the loader's path and in {}", dirs.join(", "));
    vec![
        Finding {
            library: "libcuda",
            purpose: "the GPU driver",
            found: driver_present(),
            looked: "libcuda.so.1 on the loader's path".into(),
        },
        Finding {
            library: "libnvrtc",
            purpose: "compiles kernels",
            found: nvrtc_present(),
            looked: searched("libnvrtc.so.13 or .12"),
        },
        Finding {
            library: "libcublasLt",
            purpose: "matrix products",
            found: blas_present(),
            looked: searched("libcublasLt.so.13 or .12"),
        },
        Finding {
            library: "libcudnn",
            purpose: "convolutions (without it, a kernel of ours)",
            found: dnn_present(),
            looked: searched("libcudnn.so.9"),
        },
    ]
}
