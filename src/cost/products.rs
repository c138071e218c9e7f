//! What a contraction takes in the matrix units: whole tiles, dealt out to multiprocessors.

use super::attention::{attended, attention_rate};
use super::{Target, Work};
use crate::format::Format;
use crate::ir::ConvKind;
use crate::lower::{BufferId, Contraction, Conv, Gemm};

/// Rows and columns of the result that a block computes, at most: in matrix units, and without.
const TILE: [usize; 2] = [128, 64];
/// A product is cut along its sum only into parts at least this long.
const SPLIT: usize = 512;
/// How much slower products are whose rows do not begin at multiples of 16 bytes. Measured: 256 x 768 x 50257 in f16 on
/// an H200 takes 153 to 161 us, 26 us of arithmetic.
const MISALIGNED: f64 = 5.0;

/// What a contraction is to its library.
pub(super) fn work(c: &Contraction, format_of: impl Fn(BufferId) -> Format) -> Work {
    match c {
        Contraction::Gemm(g) => Work {
            kind: ["nn", "nt", "tn", "tt"][2 * usize::from(g.ta) + usize::from(g.tb)],
            format: g.format,
            extents: [g.batch, g.m, g.n, g.k],
            misaligned: is_misaligned(g, format_of),
        },
        Contraction::Conv(c) => Work {
            kind: conv_kind(&c.kind, c.w[2..].iter().product()),
            format: c.format,
            extents: as_product(c),
            misaligned: false,
        },
        Contraction::Attention(a) => {
            Work { kind: a.part.name(), format: a.format, extents: attended(a), misaligned: false }
        }
        Contraction::Scatter(_) => Work { kind: "scatter", format: Format::F32, extents: [0; 4], misaligned: false },
    }
}

/// What a convolution is timed as. With kernels of one element it is a matrix product, and faster than others.
pub(crate) fn conv_kind(kind: &ConvKind, taps: usize) -> &'static str {
    match (kind, taps) {
        (ConvKind::Forward, 1) => "conv1",
        (ConvKind::Input(_), 1) => "conv1_input",
        (ConvKind::Weight(_), 1) => "conv1_weight",
        _ => kind.name(),
    }
}

/// Seconds of a contraction's arithmetic.
pub(super) fn seconds(target: &Target, w: &Work) -> f64 {
    if w.is_attention() {
        return w.operations() / attention_rate(target, w);
    }
    let rate = target.product_tflops.get(&w.format).copied().unwrap_or(f64::MIN_POSITIVE) * 1e12;
    let slow = if w.misaligned && target.library_products { MISALIGNED } else { 1.0 };
    if w.is_nothing() { 0.0 } else { slow * tiled(target, w.extents, w.format, !w.is_conv()) / rate }
}

/// Seconds of the arithmetic alone, with every multiprocessor busy.
pub(super) fn least(target: &Target, w: &Work) -> f64 {
    let rate = target.product_tflops.get(&w.format).copied().unwrap_or(f64::INFINITY) * 1e12;
    w.operations() / rate
}

/// Do rows of an operand that tensor cores read begin where a wide load cannot?
fn is_misaligned(g: &Gemm, format_of: impl Fn(BufferId) -> Format) -> bool {
    let odd =
        |extent: usize, f: Format| (f.is_low() || g.format == Format::Tf32) && !(extent * f.bytes()).is_multiple_of(16);
    let a = if g.ta { g.m } else { g.k };
    let b = if g.tb { g.k } else { g.n };
    odd(a, format_of(g.a.buffer)) || odd(b, format_of(g.b.buffer)) || odd(g.n, g.format)
}

/// A convolution as the product its library computes: groups, rows, columns and the extent summed over.
fn as_product(c: &Conv) -> [usize; 4] {
    let groups = c.spec.groups;
    let area = |d: &[usize]| d[2..].iter().product::<usize>();
    let (outputs, channels, kernel) = (c.w[0] / groups, c.w[1], area(&c.w));
    match c.kind {
        ConvKind::Forward => [groups, outputs, c.y[0] * area(&c.y), channels * kernel],
        ConvKind::Input(_) => [groups, channels, c.x[0] * area(&c.x), outputs * kernel],
        ConvKind::Weight(_) => [groups, outputs, channels * kernel, c.y[0] * area(&c.y)],
    }
}

/// Operations that the time of a product is worth at the full rate: tiles are whole, and the last ones leave
/// multiprocessors idle.
fn tiled(target: &Target, [batch, m, n, k]: [usize; 4], format: Format, splits: bool) -> f64 {
    if target.multiprocessors == 1 {
        return 2.0 * (batch * m * n) as f64 * k as f64;
    }
    let most = TILE[usize::from(format == Format::F32)];
    let tile = |extent: usize| extent.next_power_of_two().clamp(16, most);
    let (rows, columns) = (tile(m), tile(n));
    let blocks = batch * m.div_ceil(rows) * n.div_ceil(columns);
    let sms = target.multiprocessors;
    let parts = if splits && blocks < sms { (k / SPLIT).clamp(1, sms / blocks.max(1)) } else { 1 };
    let waves = (blocks * parts).div_ceil(sms);
    // One multiprocessor's share of the rate, for as many tiles as it computes one after the other.
    2.0 * (rows * columns) as f64 * (k as f64 / parts as f64) * (waves * sms) as f64
}
