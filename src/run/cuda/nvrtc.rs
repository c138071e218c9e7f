//! Compiling generated source to a CUBIN, with a cache on disk.

use super::libraries;
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::lower::cuda::{HEADERS, OPTIONS};
use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};
use std::ffi::CString;
use std::path::PathBuf;

/// Identifies a compilation: source, headers, options, architecture.
pub fn key(source: &str, arch: &str) -> String {
    let mut h = Sha256::new();
    h.update(arch);
    OPTIONS.iter().for_each(|o| h.update(o));
    HEADERS.iter().for_each(|(_, text)| h.update(text));
    h.update(source);
    h.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect()
}

/// `$XDG_CACHE_HOME/mantissa`, or `~/.cache/mantissa`.
fn cache_dir() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(base.join("mantissa"))
}

/// A CUBIN from the cache, or compiled and cached. A cache that cannot be written is no error.
///
/// # Errors
/// Those of [`compile`].
pub fn compile_cached(source: &str, arch: &str) -> Result<Vec<u8>> {
    let path = cache_dir().map(|d| d.join(format!("{}.cubin", key(source, arch))));
    if let Some(cubin) = path.as_ref().and_then(|p| std::fs::read(p).ok()) {
        return Ok(cubin);
    }
    let (cubin, _) = compile(source, arch)?;
    if let Some(p) = path {
        let _ = p.parent().map(std::fs::create_dir_all);
        let _ = write_atomically(&p, &cubin);
    }
    Ok(cubin)
}

/// Compiles for `arch` (such as `sm_90a`). Returns the CUBIN and the compiler's log, which holds ptxas' resource report.
///
/// # Errors
/// NVRTC is not there: with where it was looked for. Source that it does not compile: with its log.
pub fn compile(source: &str, arch: &str) -> Result<(Vec<u8>, String)> {
    if !libraries::nvrtc_present() {
        let looked =
            libraries::survey().into_iter().find(|f| f.library == "libnvrtc").map_or(String::new(), |f| f.looked);
        return Err(Error::Device(format!(
            "NVRTC, which compiles kernels, was not found: looked for {looked}; install the CUDA toolkit or `pip install nvidia-cuda-nvrtc`, and name its folder in MANTISSA_CUDA_LIB"
        )));
    }
    let c = |s: &str| CString::new(s).expect("generated source has no NUL");
    let text = c(source);
    let names: Vec<CString> = HEADERS.iter().map(|(n, _)| c(n)).collect();
    let headers: Vec<CString> = HEADERS.iter().map(|(_, t)| c(t)).collect();
    let (name_ptrs, header_ptrs): (Vec<_>, Vec<_>) =
        names.iter().zip(&headers).map(|(n, h)| (n.as_ptr(), h.as_ptr())).unzip();
    let mut program: sys::nvrtcProgram = std::ptr::null_mut();
    let failed = |what: &str, log: String| Error::Device(format!("NVRTC: {what}\n{log}"));
    // SAFETY: every pointer is to a live C string or array of them; the program is destroyed on every path out.
    unsafe {
        sys::nvrtcCreateProgram(
            &mut program,
            text.as_ptr(),
            c"step.cu".as_ptr(),
            HEADERS.len() as i32,
            header_ptrs.as_ptr(),
            name_ptrs.as_ptr(),
        )
        .result()
        .map_err(|e| failed("the program cannot be created", format!("{e:?}")))?;
        let mut options: Vec<String> = OPTIONS.iter().map(|o| (*o).to_owned()).collect();
        options.push(format!("--gpu-architecture={arch}"));
        options.push("--ptxas-options=-v".into());
        let compiled = result::compile_program(program, &options);
        let log = result::get_program_log(program).map_or(String::new(), |l| {
            let bytes: Vec<u8> = l.into_iter().map(|c| c as u8).take_while(|&b| b != 0).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let out = match compiled {
            Err(e) => Err(failed(
                &format!("generated kernels do not compile for {arch} ({e:?}); this is a bug of mantissa"),
                log,
            )),
            Ok(()) => cubin(program).map(|b| (b, log)),
        };
        let _ = result::destroy_program(program);
        out
    }
}

/// # Safety
/// The program must have been compiled for a real architecture.
unsafe fn cubin(program: sys::nvrtcProgram) -> Result<Vec<u8>> {
    let mut size = 0;
    let bad = |e| Error::Device(format!("NVRTC: no CUBIN: {e:?}"));
    // SAFETY: the size is asked for first, and the buffer has it.
    unsafe {
        sys::nvrtcGetCUBINSize(program, &mut size).result().map_err(bad)?;
        let mut out = vec![0u8; size];
        sys::nvrtcGetCUBIN(program, out.as_mut_ptr().cast()).result().map_err(bad)?;
        Ok(out)
    }
}
