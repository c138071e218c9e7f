//! Elements as they lie in memory, as the registers that computing goes on in.

use super::Format::{self, *};

/// What registers hold: f32, or f64 where a kernel computes in 64 bits.
pub trait Register: Copy + Send + Sync + 'static {
    /// Widens raw memory in `format` to registers, exactly where they hold it. `src` holds as many elements as `dst`.
    /// Integers above 2^24 (2^53 in f64) lose their low bits.
    fn widen(format: Format, src: &[u8], dst: &mut [Self]);

    /// Rounds registers to `format` and writes them to raw memory; the inverse of [`Register::widen`].
    ///
    /// Numbers above the largest become what [`Format::overflow`] says; integers wrap around.
    fn narrow(format: Format, src: &[Self], dst: &mut [u8]);

    /// Memory as registers, if its format is theirs.
    fn borrow(format: Format, bytes: &[u8]) -> Option<&[Self]>;
}

macro_rules! widen_common {
    ($t:ty, $format:expr, $src:expr, $dst:expr) => {
        match $format {
            F64 => convert(bytemuck::cast_slice::<u8, f64>($src), $dst, |x| x as $t),
            F32 | Tf32 => convert(bytemuck::cast_slice::<u8, f32>($src), $dst, |x| x as $t),
            F16 => convert(bytemuck::cast_slice::<u8, half::f16>($src), $dst, |x| x.to_f64() as $t),
            Bf16 => convert(bytemuck::cast_slice::<u8, half::bf16>($src), $dst, |x| x.to_f64() as $t),
            F8E4M3 | F8E5M2 => convert($src, $dst, |b| $format.decode(b.into()) as $t),
            I8 => convert(bytemuck::cast_slice::<u8, i8>($src), $dst, |x| x as $t),
            I16 => convert(bytemuck::cast_slice::<u8, i16>($src), $dst, |x| x as $t),
            I32 => convert(bytemuck::cast_slice::<u8, i32>($src), $dst, |x| x as $t),
            I64 => convert(bytemuck::cast_slice::<u8, i64>($src), $dst, |x| x as $t),
            U8 => convert($src, $dst, |x| x as $t),
            U16 => convert(bytemuck::cast_slice::<u8, u16>($src), $dst, |x| x as $t),
            U32 => convert(bytemuck::cast_slice::<u8, u32>($src), $dst, |x| x as $t),
            U64 => convert(bytemuck::cast_slice::<u8, u64>($src), $dst, |x| x as $t),
            Bool => convert($src, $dst, |x| <$t>::from((x != 0) as u8)),
        }
    };
}

macro_rules! narrow_common {
    ($t:ty, $format:expr, $src:expr, $dst:expr) => {
        match $format {
            F64 => convert($src, bytemuck::cast_slice_mut::<u8, f64>($dst), |x| x as f64),
            F32 | Tf32 => convert($src, bytemuck::cast_slice_mut::<u8, f32>($dst), |x| x as f32),
            F16 => convert($src, bytemuck::cast_slice_mut::<u8, half::f16>($dst), |x| half::f16::from_f64(x as f64)),
            Bf16 => convert($src, bytemuck::cast_slice_mut::<u8, half::bf16>($dst), |x| half::bf16::from_f64(x as f64)),
            F8E4M3 | F8E5M2 => convert($src, $dst, |x| $format.encode(x.into(), $format.overflow()) as u8),
            I8 => convert($src, bytemuck::cast_slice_mut::<u8, i8>($dst), |x| x as i64 as i8),
            I16 => convert($src, bytemuck::cast_slice_mut::<u8, i16>($dst), |x| x as i64 as i16),
            I32 => convert($src, bytemuck::cast_slice_mut::<u8, i32>($dst), |x| x as i64 as i32),
            I64 => convert($src, bytemuck::cast_slice_mut::<u8, i64>($dst), |x| x as i64),
            U8 => convert($src, $dst, |x| x as i64 as u8),
            U16 => convert($src, bytemuck::cast_slice_mut::<u8, u16>($dst), |x| x as i64 as u16),
            U32 => convert($src, bytemuck::cast_slice_mut::<u8, u32>($dst), |x| x as i64 as u32),
            U64 => convert($src, bytemuck::cast_slice_mut::<u8, u64>($dst), |x| x as i128 as u64),
            Bool => convert($src, $dst, |x| (x != 0.0) as u8),
        }
    };
}

impl Register for f32 {
    fn widen(format: Format, src: &[u8], dst: &mut [f32]) {
        use half::slice::HalfFloatSliceExt;
        match format {
            F32 | Tf32 => dst.copy_from_slice(bytemuck::cast_slice(src)),
            F16 => bytemuck::cast_slice::<u8, half::f16>(src).convert_to_f32_slice(dst),
            Bf16 => bytemuck::cast_slice::<u8, half::bf16>(src).convert_to_f32_slice(dst),
            _ => widen_common!(f32, format, src, dst),
        }
    }

    fn narrow(format: Format, src: &[f32], dst: &mut [u8]) {
        use half::slice::HalfFloatSliceExt;
        match format {
            F32 | Tf32 => dst.copy_from_slice(bytemuck::cast_slice(src)),
            F16 => bytemuck::cast_slice_mut::<u8, half::f16>(dst).convert_from_f32_slice(src),
            Bf16 => bytemuck::cast_slice_mut::<u8, half::bf16>(dst).convert_from_f32_slice(src),
            _ => narrow_common!(f32, format, src, dst),
        }
    }

    fn borrow(format: Format, bytes: &[u8]) -> Option<&[f32]> {
        (format == F32).then(|| bytemuck::cast_slice(bytes))
    }
}

impl Register for f64 {
    fn widen(format: Format, src: &[u8], dst: &mut [f64]) {
        widen_common!(f64, format, src, dst)
    }

    fn narrow(format: Format, src: &[f64], dst: &mut [u8]) {
        narrow_common!(f64, format, src, dst)
    }

    fn borrow(format: Format, bytes: &[u8]) -> Option<&[f64]> {
        (format == F64).then(|| bytemuck::cast_slice(bytes))
    }
}

/// [`Register::widen`] to f32.
pub fn widen(format: Format, src: &[u8], dst: &mut [f32]) {
    f32::widen(format, src, dst)
}

/// [`Register::narrow`] from f32.
pub fn narrow(format: Format, src: &[f32], dst: &mut [u8]) {
    f32::narrow(format, src, dst)
}

fn convert<A: Copy, B>(src: &[A], dst: &mut [B], f: impl Fn(A) -> B) {
    for (d, &s) in dst.iter_mut().zip(src) {
        *d = f(s);
    }
}
