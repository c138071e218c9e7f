//! Resizing: along each axis, every output element is a weighted sum of input elements, with weights known at import.

use super::Handler;
use crate::format::Format;
use crate::ir::NodeId;
use crate::model::onnx::node::{Import, Node};

pub const OPS: &[(&str, Handler)] = &[("Resize", resize), ("Upsample", resize)];

struct Axis {
    extent: usize,
    result: usize,
    scale: f64,
    /// Region of interest, as shares of the axis.
    roi: (f64, f64),
}

fn resize(n: &mut Node) -> Import<Vec<NodeId>> {
    let mut x = n.x(0)?;
    let rank = n.rank(x);
    let axes = match n.list("axes") {
        Some(a) => a.iter().map(|&a| n.axis(a, rank)).collect::<Import<Vec<_>>>()?,
        None => (0..rank).collect(),
    };
    let upsample = n.proto.op_type() == "Upsample";
    // Scales are the second input of old opsets, sizes the fourth of newer ones.
    let scales_at = if upsample || n.im.opset < 11 { 1 } else { 2 };
    let given = |n: &Node, i: usize| {
        if n.has(i) { n.known(i).map(|k| Some(k.tensor.data.clone()).filter(|d| !d.is_empty())) } else { Ok(None) }
    };
    let scales = match n.attr("scales") {
        Some(a) => Some(a.floats.iter().map(|&v| f64::from(v)).collect()),
        None => given(n, scales_at)?,
    };
    let sizes = if scales_at == 2 { given(n, 3)? } else { None };
    let roi = if scales_at == 2 { given(n, 1)? } else { None };
    let short = |list: &Option<Vec<f64>>, each: usize| list.as_ref().is_some_and(|l| l.len() < each * axes.len());
    if short(&scales, 1) || short(&sizes, 1) || short(&roi, 2) {
        return Err(format!("its scales, sizes or roi are too few for {} axes", axes.len()));
    }
    let policy = n.word("keep_aspect_ratio_policy", "stretch");
    let dims = n.dims(x);
    let mut plan = Vec::new();
    for (i, &axis) in axes.iter().enumerate() {
        let extent = dims[axis];
        let (result, scale) = match (&scales, &sizes) {
            (Some(s), _) => ((extent as f64 * s[i]).floor() as usize, s[i]),
            (None, Some(s)) => (s[i] as usize, s[i] / extent as f64),
            (None, None) => return Err("lacks scales and sizes".into()),
        };
        let roi = roi.as_ref().map_or((0.0, 1.0), |r| (r[i], r[axes.len() + i]));
        plan.push(Axis { extent, result, scale, roi });
    }
    if sizes.is_some() && policy != "stretch" {
        let all = plan.iter().map(|a| a.scale);
        let scale = if policy == "not_larger" { all.fold(f64::INFINITY, f64::min) } else { all.fold(0.0, f64::max) };
        for a in &mut plan {
            (a.scale, a.result) = (scale, (scale * a.extent as f64).round() as usize);
        }
    }
    for (a, &axis) in plan.iter().zip(&axes) {
        if a.result != a.extent || a.scale != 1.0 || a.roi != (0.0, 1.0) {
            x = along(n, x, axis, a)?;
        }
    }
    Ok(vec![x])
}

/// The coordinate in the input of output element `i`.
fn coordinate(n: &Node, a: &Axis, i: usize) -> f64 {
    // The ideal size, before it was rounded.
    let (i, extent, result, ideal) = (i as f64, a.extent as f64, a.result as f64, a.scale * a.extent as f64);
    match n.word("coordinate_transformation_mode", if n.im.opset < 11 { "asymmetric" } else { "half_pixel" }).as_str() {
        "align_corners" if a.result == 1 => 0.0,
        "align_corners" => i * (extent - 1.0) / (ideal - 1.0),
        "asymmetric" => i / a.scale,
        "pytorch_half_pixel" if a.result == 1 => 0.0,
        "tf_crop_and_resize" if a.result > 1 => {
            a.roi.0 * (extent - 1.0) + i * (a.roi.1 - a.roi.0) * (extent - 1.0) / (result - 1.0)
        }
        "tf_crop_and_resize" => 0.5 * (a.roi.0 + a.roi.1) * (extent - 1.0),
        "half_pixel_symmetric" => {
            // The output's middle falls on the input's middle, also where its size was rounded.
            extent / 2.0 * (1.0 - result / ideal) + (i + 0.5) / a.scale - 0.5
        }
        _ => (i + 0.5) / a.scale - 0.5,
    }
}

/// One axis: rows picked, or mixed by a matrix `[result, extent]`.
fn along(n: &mut Node, x: NodeId, axis: usize, a: &Axis) -> Import<NodeId> {
    let mode = n.word("mode", "nearest");
    let crop = n.word("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize";
    let outside = |c: f64| crop && (c < 0.0 || c > a.extent as f64 - 1.0);
    n.room(&[a.result])?;
    if mode == "nearest" && !(0..a.result).any(|i| outside(coordinate(n, a, i))) {
        let rounding = n.word("nearest_mode", if n.im.opset < 11 { "floor" } else { "round_prefer_floor" });
        let rows: Vec<usize> = (0..a.result)
            .map(|i| {
                let c = coordinate(n, a, i);
                let r = match rounding.as_str() {
                    "floor" => c.floor(),
                    "ceil" => c.ceil(),
                    "round_prefer_ceil" => (c + 0.5).floor(),
                    _ => (c - 0.5).ceil(),
                };
                r.clamp(0.0, a.extent as f64 - 1.0) as usize
            })
            .collect();
        return n.pick(x, axis, &rows);
    }
    let (taps, antialias) = (if mode == "cubic" { 4 } else { 2 }, n.flag("antialias", false) && a.scale < 1.0);
    let stretch = if antialias { a.scale } else { 1.0 };
    let cubic = n.float("cubic_coeff_a", -0.75);
    let exclude = n.flag("exclude_outside", false);
    let reach = (f64::from(taps) / 2.0 / stretch).ceil() as i64;
    let mut matrix = vec![0.0; n.room(&[a.result, a.extent])?];
    let mut shift = vec![0.0; a.result];
    for i in 0..a.result {
        let c = coordinate(n, a, i);
        if outside(c) {
            shift[i] = n.float("extrapolation_value", 0.0);
            continue;
        }
        let base = c.floor() as i64;
        let weights: Vec<(i64, f64)> = (base - reach + 1..=base + reach)
            .map(|p| (p, kernel(&mode, (c - p as f64).abs() * stretch, cubic)))
            .filter(|&(p, _)| !exclude || (0..a.extent as i64).contains(&p))
            .collect();
        let total: f64 = weights.iter().map(|w| w.1).sum();
        for (p, w) in weights {
            matrix[i * a.extent + p.clamp(0, a.extent as i64 - 1) as usize] += w / total;
        }
    }
    // x with the axis last, times the matrix's transpose.
    let rank = n.rank(x);
    let mut perm: Vec<usize> = (0..rank).filter(|&p| p != axis).collect();
    perm.push(axis);
    let moved = n.transpose(x, &perm)?;
    let lead: Vec<usize> = n.dims(moved)[..rank - 1].to_vec();
    let rows = n.reshape(moved, &[lead.iter().product(), a.extent])?;
    let matrix = n.table(&[a.result, a.extent], matrix, Format::F32)?;
    let matrix = n.broadcast(matrix, &[a.result, a.extent])?;
    let mut y = n.matmul(rows, matrix, false, true)?;
    if shift.iter().any(|&s| s != 0.0) {
        let shift = n.table(&[a.result], shift, Format::F32)?;
        y = n.bin(crate::ir::Binary::Add, y, shift)?;
    }
    let y = n.reshape(y, &[&lead[..], &[a.result]].concat())?;
    let mut back: Vec<usize> = (0..rank - 1).collect();
    back.insert(axis, rank - 1);
    n.transpose(y, &back)
}

/// The weight of an element at this distance (Keys 1981 for cubic).
fn kernel(mode: &str, d: f64, a: f64) -> f64 {
    match mode {
        "cubic" if d < 1.0 => (a + 2.0) * d.powi(3) - (a + 3.0) * d.powi(2) + 1.0,
        "cubic" if d < 2.0 => a * d.powi(3) - 5.0 * a * d.powi(2) + 8.0 * a * d - 4.0 * a,
        "linear" if d < 1.0 => 1.0 - d,
        _ => 0.0,
    }
}
