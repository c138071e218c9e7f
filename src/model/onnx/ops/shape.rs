//! Moving elements, and tensors made of positions.

use super::Handler;
use crate::format::Format;
use crate::ir::{Binary, NodeId, Num, Op, ReduceKind, Shape};
use crate::model::onnx::node::{Import, Node};
use crate::model::onnx::tensor::format_of;

pub const OPS: &[(&str, Handler)] = &[
    ("Reshape", reshape),
    ("Flatten", flatten),
    ("Transpose", transpose),
    ("Squeeze", squeeze),
    ("Unsqueeze", unsqueeze),
    ("Expand", expand),
    ("Concat", concat),
    ("Slice", slice),
    ("Split", split),
    ("Pad", pad),
    ("Tile", tile),
    ("ConstantOfShape", constant_of_shape),
    ("Range", range),
    ("EyeLike", eye_like),
    ("Trilu", trilu),
    ("DepthToSpace", depth_to_space),
    ("SpaceToDepth", space_to_depth),
    ("CenterCropPad", center_crop_pad),
    ("Col2Im", col2im),
    ("HannWindow", |n| cosine_window(n, &[0.5, -0.5])),
    ("HammingWindow", |n| cosine_window(n, &[25.0 / 46.0, -21.0 / 46.0])),
    ("BlackmanWindow", |n| cosine_window(n, &[0.42, -0.5, 0.08])),
];

/// 0 keeps an extent (unless `allowzero`), one −1 takes what is left.
fn reshape(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let target = n.ints_or_attr("shape", 1)?.ok_or("lacks its shape")?;
    let from = n.dims(x);
    let mut dims = Vec::new();
    let mut open = None;
    for (i, &d) in target.iter().enumerate() {
        dims.push(match d {
            0 if !n.flag("allowzero", false) => *from.get(i).ok_or("keeps an extent that is not there")?,
            -1 => {
                open = Some(i);
                1
            }
            d => usize::try_from(d).map_err(|_| format!("extent {d} is negative"))?,
        });
    }
    let rest =
        dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or("its extents multiply to too many elements")?;
    if let Some(i) = open {
        dims[i] = from.iter().product::<usize>().checked_div(rest).unwrap_or(0);
    }
    Ok(vec![n.reshape(x, &dims)?])
}

fn flatten(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let (axis, rank, dims) = (n.int("axis", 1), n.rank(x), n.dims(x));
    let axis = if axis == rank as i64 { rank } else { n.axis(axis, rank)? };
    Ok(vec![n.reshape(x, &[dims[..axis].iter().product(), dims[axis..].iter().product()])?])
}

fn transpose(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let rank = n.rank(x);
    let perm = match n.list("perm") {
        Some(p) => p.iter().map(|&p| n.axis(p, rank)).collect::<Import<Vec<_>>>()?,
        None => (0..rank).rev().collect(),
    };
    Ok(vec![n.transpose(x, &perm)?])
}

fn squeeze(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let mut dims = n.dims(x);
    let axes = match n.ints_or_attr("axes", 1)? {
        Some(a) => n.axes(&a, dims.len())?,
        None => (0..dims.len()).filter(|&i| dims[i] == 1).collect(),
    };
    for &a in axes.iter().rev() {
        if dims.remove(a) != 1 {
            return Err(format!("cannot squeeze axis {a} of {}", n.im.graph.shape(x)));
        }
    }
    Ok(vec![n.reshape(x, &dims)?])
}

fn unsqueeze(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let mut dims = n.dims(x);
    let axes = n.ints_or_attr("axes", 1)?.ok_or("lacks axes")?;
    for a in n.axes(&axes, dims.len() + axes.len())? {
        dims.insert(a, 1);
    }
    Ok(vec![n.reshape(x, &dims)?])
}

fn expand(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let target = Shape(n.extents(1)?.into_iter().map(Into::into).collect());
    let from = n.im.graph.shape(x).clone();
    let dims = from.broadcast(&target).and_then(|s| s.fixed());
    let dims = dims.ok_or_else(|| format!("{from} does not expand to {target}"))?;
    Ok(vec![n.broadcast(x, &dims)?])
}

fn concat(n: &mut Node) -> Import<Vec<NodeId>> {
    let parts = n.all()?;
    let axis = n.axis_of(*parts.first().ok_or("has no inputs")?, 0)?;
    Ok(vec![n.concat(&parts, axis)?])
}

fn slice(n: &mut Node) -> Import<Vec<NodeId>> {
    let mut x = n.x(0)?;
    let rank = n.rank(x);
    let lacks = |what: &str| format!("lacks its {what}");
    let starts = n.ints_or_attr("starts", 1)?.ok_or_else(|| lacks("starts"))?;
    let ends = n.ints_or_attr("ends", 2)?.ok_or_else(|| lacks("ends"))?;
    let axes = n.ints_or_attr("axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = if n.has(4) { n.ints(4)? } else { vec![1; starts.len()] };
    for (((&start, &end), &axis), &step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        let axis = n.axis(axis, rank)?;
        let extent = n.dims(x)[axis] as i64;
        let from_end = |i: i64| if i < 0 { i.saturating_add(extent) } else { i };
        x = match step {
            0 => return Err("slices with step 0".into()),
            1.. => {
                let (start, stop) = (from_end(start).clamp(0, extent), from_end(end).clamp(0, extent));
                let step = usize::try_from(step).map_err(|_| "the step is out of range".to_owned())?;
                let op = Op::Slice { axis, start: start.min(stop) as usize, stop: stop as usize, step };
                if (start, stop, step) == (0, extent, 1) { x } else { n.add(op, &[x])? }
            }
            // Backwards: the rows one by one.
            _ => {
                let (start, stop) = (from_end(start).clamp(-1, extent - 1), from_end(end).clamp(-1, extent - 1));
                n.room(&[(start - stop).max(0) as usize])?;
                let rows: Vec<usize> = std::iter::successors(Some(start), |p| p.checked_add(step))
                    .take_while(|&p| p > stop)
                    .map(|p| p as usize)
                    .collect();
                n.pick(x, axis, &rows)?
            }
        };
    }
    Ok(vec![x])
}

fn split(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let axis = n.axis_of(x, 0)?;
    let extent = n.dims(x)[axis];
    let parts = n.outputs();
    let sizes: Vec<usize> = match n.ints_or_attr("split", 1)? {
        Some(s) => s.iter().map(|&v| v.max(0) as usize).collect(),
        None => {
            let each = extent.div_ceil(parts.max(1));
            (0..parts).map(|i| each.min(extent - (i * each).min(extent))).collect()
        }
    };
    if sizes.iter().sum::<usize>() != extent {
        return Err(format!("parts {sizes:?} do not add up to {extent}"));
    }
    let mut start = 0;
    let mut out = Vec::new();
    for size in sizes {
        out.push(n.add(Op::Slice { axis, start, stop: start + size, step: 1 }, &[x])?);
        start += size;
    }
    Ok(out)
}

fn pad(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let rank = n.rank(x);
    let pads = n.ints_or_attr("pads", 1)?.ok_or("lacks its pads")?;
    let axes = if n.has(3) {
        n.ints(3)?.iter().map(|&a| n.axis(a, rank)).collect::<Import<Vec<_>>>()?
    } else {
        (0..rank).collect()
    };
    if pads.len() != 2 * axes.len() {
        return Err(format!("{} pads for {} axes", pads.len(), axes.len()));
    }
    let mode = n.word("mode", "constant");
    let fill = match n.attr("value") {
        Some(a) => f64::from(a.f()),
        None if n.has(2) => n.known(2)?.tensor.data.first().copied().unwrap_or(0.0),
        None => 0.0,
    };
    let mut y = x;
    for (i, &axis) in axes.iter().enumerate() {
        y = pad_axis(n, y, axis, pads[i], pads[axes.len() + i], &mode, fill)?;
    }
    Ok(vec![y])
}

/// Pads one axis; negative amounts crop.
pub(super) fn pad_axis(
    n: &mut Node,
    x: NodeId,
    axis: usize,
    lo: i64,
    hi: i64,
    mode: &str,
    fill: f64,
) -> Import<NodeId> {
    let extent = n.dims(x)[axis] as i64;
    if lo == 0 && hi == 0 {
        return Ok(x);
    }
    if extent + lo + hi < 0 {
        return Err(format!("crops more of axis {axis} than it has"));
    }
    if mode != "constant" {
        let row = |p: i64| match mode {
            "edge" => Ok(p.clamp(0, extent - 1)),
            "wrap" => Ok(p.rem_euclid(extent)),
            "reflect" if extent == 1 => Ok(0),
            // … 2 1 0 1 2 … n−1 n−2 …
            "reflect" => {
                let p = p.rem_euclid(2 * extent - 2);
                Ok(p.min(2 * extent - 2 - p))
            }
            other => Err(format!("padding mode `{other}` is not supported")),
        };
        let rows = (-lo..extent + hi).map(|p| row(p).map(|r| r as usize)).collect::<Import<Vec<_>>>()?;
        return n.pick(x, axis, &rows);
    }
    let x = n.slice(x, axis, (-lo).max(0) as usize, (extent + hi.min(0)) as usize)?;
    let (lo, hi) = (lo.max(0) as usize, hi.max(0) as usize);
    let kept = n.dims(x)[axis];
    if lo + hi == 0 {
        return Ok(x);
    }
    if fill == 0.0 && n.format(x) != Format::Bool {
        return n.add(Op::Pad { axis, lo, hi, inner: 0 }, &[x]);
    }
    let fill = n.num_like(x, fill)?;
    let block = |n: &mut Node, size: usize| {
        let mut dims = n.dims(x);
        dims[axis] = size;
        n.broadcast(fill, &dims)
    };
    let mut parts = Vec::new();
    if lo > 0 {
        parts.push(block(n, lo)?);
    }
    if kept > 0 {
        parts.push(x);
    }
    if hi > 0 {
        parts.push(block(n, hi)?);
    }
    n.concat(&parts, axis)
}

/// Each extent, times how often it repeats: `[d] → [1, d] → [r, d] → [r·d]`.
fn tile(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let dims = n.dims(x);
    let repeats = n.extents(1)?;
    if repeats.len() != dims.len() {
        return Err(format!("{} repeats for rank {}", repeats.len(), dims.len()));
    }
    let spread: Vec<usize> = dims.iter().flat_map(|&d| [1, d]).collect();
    let wide: Vec<usize> = dims.iter().zip(&repeats).flat_map(|(&d, &r)| [r, d]).collect();
    let flat: Vec<usize> = dims.iter().zip(&repeats).map(|(&d, &r)| d.saturating_mul(r)).collect();
    let y = n.reshape(x, &spread)?;
    let y = n.broadcast(y, &wide)?;
    Ok(vec![n.reshape(y, &flat)?])
}

fn constant_of_shape(n: &mut Node) -> Import<Vec<NodeId>> {
    let dims = n.extents(0)?;
    let (value, format) = match n.attr("value").and_then(|a| a.t.as_ref()) {
        Some(t) => {
            let w = crate::model::onnx::tensor::Files::beside(std::path::Path::new("")).decode(t)?;
            (w.values::<f64>().first().copied().unwrap_or(0.0), w.format)
        }
        None => (0.0, Format::F32),
    };
    let c = n.num(value)?;
    let c = n.convert(c, format)?;
    Ok(vec![n.broadcast(c, &dims)?])
}

fn range(n: &mut Node) -> Import<Vec<NodeId>> {
    let (start, limit, delta) = (n.known(0)?, n.known(1)?, n.known(2)?);
    let first = |k: &crate::model::onnx::importer::Known| k.tensor.data.first().copied().unwrap_or(0.0);
    let (a, b, d) = (first(&start), first(&limit), first(&delta));
    if d == 0.0 {
        return Err("a range with step 0".into());
    }
    let count = n.room(&[((b - a) / d).ceil().max(0.0) as usize])?;
    let values = (0..count).map(|i| a + i as f64 * d).collect();
    Ok(vec![n.table(&[count], values, start.format)?])
}

fn eye_like(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let dims = n.dims(x);
    let [rows, columns] = dims[..] else { return Err("takes a matrix".into()) };
    let format = if n.attr("dtype").is_some() { format_of(n.int("dtype", 1) as i32)? } else { n.format(x) };
    let (r, c) = (n.positions(2, 0, rows)?, n.positions(2, 1, columns)?);
    let shifted = n.with(Binary::Add, r, n.int("k", 0) as f64)?;
    let hit = n.bin(Binary::Eq, c, shifted)?;
    Ok(vec![n.convert(hit, format)?])
}

/// Keeps one side of diagonal k of the last two axes.
fn trilu(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let (rank, dims) = (n.rank(x), n.dims(x));
    if rank < 2 {
        return Err("takes matrices".into());
    }
    let k = if n.has(1) { n.ints(1)?.first().copied().unwrap_or(0) } else { 0 };
    let (r, c) = (n.positions(rank, rank - 2, dims[rank - 2])?, n.positions(rank, rank - 1, dims[rank - 1])?);
    let diagonal = n.with(Binary::Add, r, k as f64)?;
    let kept = n.bin(if n.flag("upper", true) { Binary::Ge } else { Binary::Le }, c, diagonal)?;
    let zero = n.num_like(x, 0.0)?;
    Ok(vec![n.select(kept, x, zero)?])
}

fn depth_to_space(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, b) = (n.x(0)?, n.int("blocksize", 1).max(1) as usize);
    let [s, c, h, w] = n.dims(x)[..] else { return Err("takes a tensor of rank 4".into()) };
    let depth = c / (b * b);
    let (split, perm) = if n.word("mode", "DCR") == "DCR" {
        ([s, b, b, depth, h, w], [0, 3, 4, 1, 5, 2])
    } else {
        ([s, depth, b, b, h, w], [0, 1, 4, 2, 5, 3])
    };
    let y = n.reshape(x, &split)?;
    let y = n.transpose(y, &perm)?;
    Ok(vec![n.reshape(y, &[s, depth, h * b, w * b])?])
}

fn space_to_depth(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, b) = (n.x(0)?, n.int("blocksize", 1).max(1) as usize);
    let [s, c, h, w] = n.dims(x)[..] else { return Err("takes a tensor of rank 4".into()) };
    let y = n.reshape(x, &[s, c, h / b, b, w / b, b])?;
    let y = n.transpose(y, &[0, 3, 5, 1, 2, 4])?;
    Ok(vec![n.reshape(y, &[s, c * b * b, h / b, w / b])?])
}

fn center_crop_pad(n: &mut Node) -> Import<Vec<NodeId>> {
    let mut x = n.x(0)?;
    let rank = n.rank(x);
    let target = n.ints(1)?;
    let axes = match n.list("axes") {
        Some(a) => a.iter().map(|&a| n.axis(a, rank)).collect::<Import<Vec<_>>>()?,
        None => (0..rank).collect(),
    };
    for (&axis, &to) in axes.iter().zip(&target) {
        let room = to - n.dims(x)[axis] as i64;
        let before = if room >= 0 { room / 2 } else { -((-room) / 2) };
        x = pad_axis(n, x, axis, before, room - before, "constant", 0.0)?;
    }
    Ok(vec![x])
}

/// Columns back to where their windows were, added up.
fn col2im(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let size = |l: Vec<i64>| l.into_iter().map(|v| v.max(0) as usize).collect::<Vec<usize>>();
    let (image, block) = (size(n.ints(1)?), size(n.ints(2)?));
    let k = image.len();
    let (dilations, strides) = (n.sizes_of("dilations", k, 1)?, n.sizes_of("strides", k, 1)?);
    let pads = n.sizes_of("pads", 2 * k, 0)?;
    if block.len() != k || block.contains(&0) || strides.contains(&0) {
        return Err(format!("blocks {block:?} at strides {strides:?} do not fit {k} axes"));
    }
    let dims = n.dims(x);
    let elements: usize = block.iter().product();
    let [samples, rows, _] = dims[..] else { return Err("takes a tensor of rank 3".into()) };
    let channels = rows / elements.max(1);
    let places: Vec<usize> = (0..k)
        .map(|i| {
            let reach = dilations[i] * (block[i] - 1) + 1;
            let room =
                (image[i] + pads[i] + pads[k + i]).checked_sub(reach).ok_or("a block is larger than the image")?;
            Ok(room / strides[i] + 1)
        })
        .collect::<Import<_>>()?;
    // [N, C, k…, o…] to [N, C, o₀, k₀, o₁, k₁, …], each pair back to its axis.
    let split: Vec<usize> = [&[samples, channels], &block[..], &places].concat();
    let mut y = n.reshape(x, &split)?;
    let perm: Vec<usize> = [0, 1].into_iter().chain((0..k).flat_map(|i| [2 + k + i, 2 + i])).collect();
    y = n.transpose(y, &perm)?;
    for i in 0..k {
        let axis = 2 + i;
        let back = Op::Unwindow { axis, extent: image[i], stride: strides[i], dilation: dilations[i], lo: pads[i] };
        y = n.add(back, &[y])?;
        y = n.reduce(ReduceKind::Sum, y, &[axis + 1], false)?;
    }
    Ok(vec![y])
}

/// Σ cₖ cos(2πki/N)
fn cosine_window(n: &mut Node, coefficients: &[f64]) -> Import<Vec<NodeId>> {
    let size = n.room(&[n.ints(0)?.first().copied().unwrap_or(0).max(0) as usize])?;
    let format = format_of(n.int("output_datatype", 1) as i32)?;
    let period = if n.flag("periodic", true) { size } else { size.saturating_sub(1) } as f64;
    let at = |i: usize| {
        let angle = 2.0 * std::f64::consts::PI * i as f64 / period;
        coefficients.iter().enumerate().map(|(k, c)| c * (k as f64 * angle).cos()).sum()
    };
    Ok(vec![n.table(&[size], (0..size).map(at).collect(), format)?])
}

/// The fill that never wins a maximum.
pub(super) fn least(format: Format) -> Num {
    Num::new(format.range().map_or(f64::NEG_INFINITY, |(least, _)| least))
}
