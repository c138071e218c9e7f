//! Convolutions.

use super::Handler;
use crate::format::Format;
use crate::ir::{Binary, ConvKind, ConvSpec, NodeId, Op};
use crate::model::onnx::node::{Import, Node};

pub const OPS: &[(&str, Handler)] = &[("Conv", conv), ("ConvTranspose", conv_transpose), ("ConvInteger", conv_integer)];

/// Strides, dilations and padding of a window over the last `k` of an input's axes.
pub(super) struct Windows {
    pub kernel: Vec<usize>,
    pub stride: Vec<usize>,
    pub dilation: Vec<usize>,
    pub lo: Vec<usize>,
    pub hi: Vec<usize>,
}

impl Windows {
    /// Reads the attributes that convolutions and pools share. `extents` are the input's spatial extents.
    pub fn new(n: &Node, extents: &[usize], kernel: Option<Vec<usize>>) -> Import<Windows> {
        let k = extents.len();
        let kernel = match n.sizes("kernel_shape")?.or(kernel) {
            Some(s) if s.len() == k => s,
            _ => return Err(format!("lacks a kernel_shape of {k} axes")),
        };
        let (stride, dilation) = (n.sizes_of("strides", k, 1)?, n.sizes_of("dilations", k, 1)?);
        let pads = n.sizes_of("pads", 2 * k, 0)?;
        if stride.contains(&0) || kernel.contains(&0) {
            return Err(format!("strides {stride:?} and kernel_shape {kernel:?} must be at least 1"));
        }
        let (mut lo, mut hi) = (pads[..k].to_vec(), pads[k..].to_vec());
        let auto = n.word("auto_pad", "NOTSET");
        if auto.starts_with("SAME") {
            for i in 0..k {
                let places = extents[i].div_ceil(stride[i]);
                let reach = (places.max(1) - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1;
                let room = reach.saturating_sub(extents[i]);
                (lo[i], hi[i]) = (room / 2, room - room / 2);
                if auto == "SAME_LOWER" {
                    std::mem::swap(&mut lo[i], &mut hi[i]);
                }
            }
        }
        Ok(Windows { kernel, stride, dilation, lo, hi })
    }
}

fn add_bias(n: &mut Node, y: NodeId, bias: Option<NodeId>, spatial: usize) -> Import<NodeId> {
    let Some(b) = bias else { return Ok(y) };
    let mut dims = n.dims(b);
    dims.extend(vec![1; spatial]);
    let b = n.reshape(b, &dims)?;
    n.bin(Binary::Add, y, b)
}

fn conv_of(n: &mut Node, x: NodeId, w: NodeId) -> Import<NodeId> {
    let (dx, dw) = (n.dims(x), n.dims(w));
    if dx.len() < 3 || dw.len() != dx.len() {
        return Err(format!("takes an input and weights with spatial axes, not {dx:?} and {dw:?}"));
    }
    let k = Windows::new(n, &dx[2..], Some(dw[2..].to_vec()))?;
    let groups = n.int("group", 1).max(1) as usize;
    let spec = ConvSpec { stride: k.stride, dilation: k.dilation, lo: k.lo, hi: k.hi, groups };
    n.add(Op::Conv { kind: ConvKind::Forward, spec, format: Format::F32 }, &[x, w])
}

fn conv(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, w) = (n.x(0)?, n.x(1)?);
    let spatial = n.rank(x).saturating_sub(2);
    let y = conv_of(n, x, w)?;
    let bias = n.maybe(2)?;
    Ok(vec![add_bias(n, y, bias, spatial)?])
}

/// Whole numbers up to 8 bits multiply and add exactly in f32, up to 2^24.
fn conv_integer(n: &mut Node) -> Import<Vec<NodeId>> {
    let mut sides = Vec::new();
    for i in 0..2 {
        let x = n.x(i)?;
        let x = n.convert(x, Format::F32)?;
        sides.push(match n.maybe(i + 2)? {
            None => x,
            Some(zero) => {
                let mut zero = n.convert(zero, Format::F32)?;
                // Of the weights, each output channel may have its own.
                let mut column = n.dims(zero);
                if column.len() == 1 {
                    column.extend(vec![1; n.rank(x) - 1]);
                    zero = n.reshape(zero, &column)?;
                }
                n.bin(Binary::Sub, x, zero)?
            }
        });
    }
    let y = conv_of(n, sides[0], sides[1])?;
    Ok(vec![n.convert(y, Format::I32)?])
}

/// The gradient of a convolution with respect to its input: weights are `[channels in, channels out / groups, kernel…]`.
fn conv_transpose(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, w) = (n.x(0)?, n.x(1)?);
    let (dx, dw) = (n.dims(x), n.dims(w));
    if dx.len() < 3 || dw.len() != dx.len() {
        return Err(format!("takes an input and weights with spatial axes, not {dx:?} and {dw:?}"));
    }
    let k = dx.len() - 2;
    let kernel = &dw[2..];
    let (stride, dilation) = (n.sizes_of("strides", k, 1)?, n.sizes_of("dilations", k, 1)?);
    let extra = n.sizes_of("output_padding", k, 0)?;
    let pads = n.sizes_of("pads", 2 * k, 0)?;
    let wanted = n.sizes("output_shape")?;
    if stride.contains(&0) || kernel.contains(&0) || wanted.as_ref().is_some_and(|s| s.len() < k) {
        return Err(format!("strides {stride:?}, kernel {kernel:?} or output_shape {wanted:?} do not fit {k} axes"));
    }
    let auto = n.word("auto_pad", "NOTSET");
    let (mut lo, mut hi) = (pads[..k].to_vec(), pads[k..].to_vec());
    let mut extents = Vec::new();
    for i in 0..k {
        let full = stride[i] * (dx[i + 2].max(1) - 1) + extra[i] + (kernel[i] - 1) * dilation[i] + 1;
        let fixed = match &wanted {
            Some(s) => Some(s[s.len() - k + i]),
            None if auto.starts_with("SAME") => Some(dx[i + 2] * stride[i]),
            None => None,
        };
        if let Some(extent) = fixed {
            let room = full.saturating_sub(extent);
            (lo[i], hi[i]) =
                if auto == "SAME_UPPER" { (room / 2, room - room / 2) } else { (room - room / 2, room / 2) };
            extents.push(extent);
        } else {
            extents.push(full.checked_sub(lo[i] + hi[i]).ok_or("pads more than there is")?);
        }
    }
    // Positions that the stride leaves over at the end belong to the last window's reach.
    let reach: Vec<usize> =
        (0..k).map(|i| stride[i] * (dx[i + 2].max(1) - 1) + (kernel[i] - 1) * dilation[i] + 1).collect();
    let hi = (0..k).map(|i| (reach[i]).saturating_sub(extents[i] + lo[i])).collect();
    let spec = ConvSpec { stride, dilation, lo, hi, groups: n.int("group", 1).max(1) as usize };
    let y = n.add(Op::Conv { kind: ConvKind::Input(extents), spec, format: Format::F32 }, &[x, w])?;
    let bias = n.maybe(2)?;
    Ok(vec![add_bias(n, y, bias, k)?])
}
