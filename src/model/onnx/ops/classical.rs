//! What scikit-learn's pipelines are made of, of the domain `ai.onnx.ml`: scaling, and linear models.

use super::reduce::arg_extreme;
use super::{Handler, Import, Node};
use crate::format::Format;
use crate::ir::{Binary, NodeId, Op, ReduceKind, Unary};

pub const OPS: &[(&str, Handler)] = &[
    ("Scaler", scaler),
    ("Normalizer", normalizer),
    ("LinearRegressor", |n| Ok(vec![linear(n, n.int("targets", 1))?])),
    ("LinearClassifier", classifier),
];

/// Numbers of an attribute, as a constant of this shape.
fn constants(n: &mut Node, name: &str, dims: &[usize]) -> Import<Option<NodeId>> {
    let Some(a) = n.attr(name).filter(|a| !a.floats.is_empty()) else { return Ok(None) };
    let values: Vec<f64> = a.floats.iter().map(|&v| f64::from(v)).collect();
    let (found, wanted) = (values.len(), dims.iter().product::<usize>());
    match found {
        1 => n.num(values[0]).map(Some),
        _ if found == wanted => n.table(dims, values, Format::F32).map(Some),
        _ => Err(format!("{name} has {found} numbers, where {wanted} are read")),
    }
}

/// Features, the last axis, in f32.
fn features(n: &mut Node) -> Import<(NodeId, usize)> {
    let x = n.x(0)?;
    let x = n.convert(x, Format::F32)?;
    let count = n.dims(x).last().copied().ok_or("reads a scalar")?;
    Ok((x, count))
}

/// (x − offset) · scale
fn scaler(n: &mut Node) -> Import<Vec<NodeId>> {
    let (mut y, count) = features(n)?;
    for (name, op) in [("offset", Binary::Sub), ("scale", Binary::Mul)] {
        if let Some(by) = constants(n, name, &[count])? {
            y = n.bin(op, y, by)?;
        }
    }
    Ok(vec![y])
}

/// Rows divided by their norm; rows whose norm is 0 stay.
fn normalizer(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, _) = features(n)?;
    let axis = n.rank(x) - 1;
    let norm = match n.word("norm", "MAX").as_str() {
        "MAX" => n.reduce(ReduceKind::Max, x, &[axis], true)?,
        "L1" => {
            let size = n.un(Unary::Abs, x)?;
            n.reduce(ReduceKind::Sum, size, &[axis], true)?
        }
        "L2" => {
            let square = n.un(Unary::Square, x)?;
            let sum = n.reduce(ReduceKind::Sum, square, &[axis], true)?;
            n.root(sum)?
        }
        other => return Err(format!("the norm {other} is not one of MAX, L1 and L2")),
    };
    let none = n.with(Binary::Eq, norm, 0.0)?;
    let one = n.num_like(norm, 1.0)?;
    let norm = n.select(none, one, norm)?;
    Ok(vec![n.bin(Binary::Div, x, norm)?])
}

/// x @ coefficientsᵀ + intercepts, and what is done to the scores.
fn linear(n: &mut Node, targets: i64) -> Import<NodeId> {
    let (x, count) = features(n)?;
    n.demand_rank(x, 2, "features")?;
    let targets = usize::try_from(targets).map_err(|_| format!("has {targets} targets"))?;
    let wanted = n.room(&[targets, count])?;
    let values = n.attr("coefficients").map_or(Vec::new(), |a| a.floats.iter().map(|&v| f64::from(v)).collect());
    if values.len() != wanted {
        return Err(format!("has {} coefficients for {targets} targets of {count} features", values.len()));
    }
    let w = n.table(&[targets, count], values, Format::F32)?;
    let mut y = n.matmul(x, w, false, true)?;
    if let Some(b) = constants(n, "intercepts", &[targets])? {
        y = n.bin(Binary::Add, y, b)?;
    }
    match n.word("post_transform", "NONE").as_str() {
        "NONE" => Ok(y),
        "LOGISTIC" => n.un(Unary::Sigmoid, y),
        "SOFTMAX" => n.add(Op::Softmax { axis: 1 }, &[y]),
        other => Err(format!("the transform {other} is not one of NONE, LOGISTIC and SOFTMAX")),
    }
}

/// The class with the highest score, by its number, and the scores.
fn classifier(n: &mut Node) -> Import<Vec<NodeId>> {
    let Some(classes) = n.list("classlabels_ints").filter(|c| c.len() > 1) else {
        return Err("classes that are no whole numbers are not supported: encode the labels as 0, 1, …".into());
    };
    let scores = linear(n, classes.len() as i64)?;
    let best = arg_extreme(n, scores, 1, ReduceKind::Max, false)?;
    let rows = n.dims(scores)[0];
    let best = n.reshape(best, &[rows])?;
    let names = n.table(&[classes.len()], classes.iter().map(|&c| c as f64).collect(), Format::I64)?;
    let label = n.add(Op::Gather { axis: 0 }, &[names, best])?;
    Ok(vec![label, scores])
}
