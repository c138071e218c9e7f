//! Matrix products and Einstein sums.

use super::Handler;
use crate::format::Format;
use crate::ir::{Binary, NodeId, ReduceKind};
use crate::model::onnx::node::{Import, Node};
use std::collections::BTreeMap;

pub const OPS: &[(&str, Handler)] = &[
    ("MatMul", |n| {
        let (a, b) = (n.x(0)?, n.x(1)?);
        Ok(vec![matmul(n, a, b)?])
    }),
    ("MatMulInteger", matmul_integer),
    ("Gemm", gemm),
    ("Einsum", einsum),
    ("Det", det),
];

/// NumPy's `matmul`: vectors become matrices, leading axes broadcast.
pub(super) fn matmul(n: &mut Node, a: NodeId, b: NodeId) -> Import<NodeId> {
    let (mut da, mut db) = (n.dims(a), n.dims(b));
    if da.is_empty() || db.is_empty() {
        return Err("takes no scalars".into());
    }
    let (row, column) = (da.len() == 1, db.len() == 1);
    if row {
        da.insert(0, 1);
    }
    if column {
        db.push(1);
    }
    let (mut x, mut y) = (n.reshape(a, &da)?, n.reshape(b, &db)?);
    let whole = !n.format(x).is_float();
    // Whole numbers have no matrix units: their products are sums of products.
    let lead = broadcast(&da[..da.len() - 2], &db[..db.len() - 2])
        .ok_or_else(|| format!("{da:?} and {db:?} do not broadcast"))?;
    let shared = db.len() == 2 && !whole;
    if !shared && (da[..da.len() - 2] != lead[..] || db[..db.len() - 2] != lead[..]) {
        da = [&lead[..], &da[da.len() - 2..]].concat();
        db = [&lead[..], &db[db.len() - 2..]].concat();
        (x, y) = (n.broadcast(x, &da)?, n.broadcast(y, &db)?);
    }
    let mut out = if whole {
        let (m, k, c) = (da[da.len() - 2], da[da.len() - 1], db[db.len() - 1]);
        let (x, y) =
            (n.reshape(x, &[&lead[..], &[m, k, 1]].concat())?, n.reshape(y, &[&lead[..], &[1, k, c]].concat())?);
        let p = n.bin(Binary::Mul, x, y)?;
        n.reduce(ReduceKind::Sum, p, &[lead.len() + 1], false)?
    } else {
        n.matmul(x, y, false, false)?
    };
    let mut dims = n.dims(out);
    if column {
        dims.pop();
    }
    if row {
        dims.remove(dims.len() - if column { 1 } else { 2 });
    }
    out = n.reshape(out, &dims)?;
    Ok(out)
}

fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    crate::ir::Shape::of(a).broadcast(&crate::ir::Shape::of(b)).and_then(|s| s.fixed())
}

/// Differences from zero points, multiplied as 32-bit whole numbers.
fn matmul_integer(n: &mut Node) -> Import<Vec<NodeId>> {
    let mut sides = Vec::new();
    for i in 0..2 {
        let x = n.x(i)?;
        let x = n.convert(x, Format::I32)?;
        sides.push(match n.maybe(i + 2)? {
            None => x,
            Some(zero) => {
                let mut zero = n.convert(zero, Format::I32)?;
                // A zero point for each row of the left side stands as a column.
                if i == 0 && n.rank(zero) == 1 && n.dims(zero) != [1] {
                    let rows = n.dims(zero)[0];
                    zero = n.reshape(zero, &[rows, 1])?;
                }
                n.bin(Binary::Sub, x, zero)?
            }
        });
    }
    Ok(vec![matmul(n, sides[0], sides[1])?])
}

/// α·op(A)·op(B) + β·C
fn gemm(n: &mut Node) -> Import<Vec<NodeId>> {
    let (a, b) = (n.x(0)?, n.x(1)?);
    let mut y = n.matmul(a, b, n.flag("transA", false), n.flag("transB", false))?;
    let (alpha, beta) = (n.float("alpha", 1.0), n.float("beta", 1.0));
    if alpha != 1.0 {
        y = n.with(Binary::Mul, y, alpha)?;
    }
    if let Some(mut c) = n.maybe(2)? {
        if beta != 1.0 {
            c = n.with(Binary::Mul, c, beta)?;
        }
        y = n.bin(Binary::Add, y, c)?;
    }
    Ok(vec![y])
}

/// Terms are multiplied two by two: as a batched matrix product where each side has axes of its own, else elementwise.
fn einsum(n: &mut Node) -> Import<Vec<NodeId>> {
    let operands = n.all()?;
    let text: String = n.word("equation", "").chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match text.split_once("->") {
        Some((l, r)) => (l.to_owned(), Some(r.to_owned())),
        None => (text, None),
    };
    let terms: Vec<&str> = left.split(',').collect();
    if terms.len() != operands.len() {
        return Err(format!("{} terms for {} operands", terms.len(), operands.len()));
    }
    let mut extents: BTreeMap<char, usize> = BTreeMap::new();
    let mut parts: Vec<(NodeId, Vec<char>)> = Vec::new();
    let mut dots = 0;
    for (&x, term) in operands.iter().zip(&terms) {
        let dims = n.dims(x);
        let named = term.replace("...", "").chars().count();
        let hidden = dims.len().checked_sub(named).ok_or_else(|| format!("`{term}` names more axes than it has"))?;
        dots = dots.max(if term.contains("...") { hidden } else { 0 });
        let labels = labels(term, hidden);
        if labels.len() != dims.len() {
            return Err(format!("`{term}` does not name the {} axes of its operand", dims.len()));
        }
        for (&l, &d) in labels.iter().zip(&dims) {
            let known = extents.entry(l).or_insert(d);
            if *known != d && *known != 1 && d != 1 {
                return Err(format!("axis `{l}` has extents {known} and {d}"));
            }
            *known = (*known).max(d);
        }
        parts.push(diagonal(n, x, labels)?);
    }
    let output: Vec<char> = match &right {
        Some(r) => labels(r, dots),
        // Without an arrow: the broadcast axes, then every label that occurs once, in order.
        None => {
            let count = |c: char| terms.iter().map(|t| t.chars().filter(|&x| x == c).count()).sum::<usize>();
            let single = extents.keys().copied().filter(|&c| c.is_ascii_alphabetic() && count(c) == 1);
            labels("...", dots).into_iter().chain(single).collect()
        }
    };
    let (mut x, mut have) = parts.remove(0);
    while !parts.is_empty() {
        let (y, other) = parts.remove(0);
        let later: Vec<char> = parts.iter().flat_map(|p| p.1.iter().copied()).chain(output.iter().copied()).collect();
        (x, have) = pair(n, (x, have), (y, other), &later, &extents)?;
    }
    let summed: Vec<usize> = (0..have.len()).filter(|&i| !output.contains(&have[i])).collect();
    x = n.reduce(ReduceKind::Sum, x, &summed, false)?;
    have.retain(|l| output.contains(l));
    let perm: Vec<usize> = output.iter().filter_map(|l| have.iter().position(|h| h == l)).collect();
    if perm.len() != output.len() {
        return Err("the result names an axis that no operand has".into());
    }
    Ok(vec![n.transpose(x, &perm)?])
}

/// Labels of a term; the dots stand for digits, counted from the right.
fn labels(term: &str, hidden: usize) -> Vec<char> {
    let dots: String = (0..hidden).map(|i| char::from(b'0' + (hidden - 1 - i) as u8)).collect();
    term.replace("...", &dots).chars().collect()
}

/// A repeated label runs along the diagonal.
fn diagonal(n: &mut Node, x: NodeId, mut labels: Vec<char>) -> Import<(NodeId, Vec<char>)> {
    let mut x = x;
    while let Some((i, j)) =
        (0..labels.len()).find_map(|i| (i + 1..labels.len()).find(|&j| labels[i] == labels[j]).map(|j| (i, j)))
    {
        let dims = n.dims(x);
        let (p, q) = (n.positions(dims.len(), i, dims[i])?, n.positions(dims.len(), j, dims[j])?);
        let on = n.bin(Binary::Eq, p, q)?;
        let zero = n.num_like(x, 0.0)?;
        let kept = n.select(on, x, zero)?;
        x = n.reduce(ReduceKind::Sum, kept, &[j], false)?;
        labels.remove(j);
    }
    Ok((x, labels))
}

type Term = (NodeId, Vec<char>);

fn pair(n: &mut Node, a: Term, b: Term, later: &[char], extents: &BTreeMap<char, usize>) -> Import<Term> {
    let both = |l: &char| a.1.contains(l) && b.1.contains(l);
    let batch: Vec<char> = a.1.iter().copied().filter(|l| both(l) && later.contains(l)).collect();
    let inner: Vec<char> = a.1.iter().copied().filter(|l| both(l) && !later.contains(l)).collect();
    let rows: Vec<char> = a.1.iter().copied().filter(|l| !both(l)).collect();
    let columns: Vec<char> = b.1.iter().copied().filter(|l| !both(l)).collect();
    let size = |ls: &[char]| ls.iter().map(|l| extents[l]).product::<usize>();
    let arrange = |n: &mut Node, t: &Term, order: &[char]| -> Import<NodeId> {
        let perm: Vec<usize> = order.iter().filter_map(|l| t.1.iter().position(|h| h == l)).collect();
        let x = n.transpose(t.0, &perm)?;
        n.broadcast(x, &order.iter().map(|l| extents[l]).collect::<Vec<_>>())
    };
    let labels = [&batch[..], &rows, &columns].concat();
    let dims: Vec<usize> = labels.iter().map(|l| extents[l]).collect();
    let float = n.format(a.0).is_float();
    let (x, y) = (
        arrange(n, &a, &[&batch[..], &rows, &inner].concat())?,
        arrange(n, &b, &[&batch[..], &inner, &columns].concat())?,
    );
    let (m, k, c) = (size(&rows), size(&inner), size(&columns));
    if float && !inner.is_empty() {
        let x = n.reshape(x, &[size(&batch), m, k])?;
        let y = n.reshape(y, &[size(&batch), k, c])?;
        let p = n.matmul(x, y, false, false)?;
        return Ok((n.reshape(p, &dims)?, labels));
    }
    let x = n.reshape(x, &[size(&batch), m, k, 1])?;
    let y = n.reshape(y, &[size(&batch), 1, k, c])?;
    let p = n.bin(Binary::Mul, x, y)?;
    let s = n.reduce(ReduceKind::Sum, p, &[2], false)?;
    Ok((n.reshape(s, &dims)?, labels))
}

/// By expansion along the first row: for the small matrices that models take determinants of.
fn det(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let dims = n.dims(x);
    let rank = dims.len();
    if rank < 2 || dims[rank - 1] != dims[rank - 2] || dims[rank - 1] > 4 {
        return Err("takes square matrices of at most 4 rows".into());
    }
    let size = dims[rank - 1];
    let y = minor(n, x, rank, 0, &(0..size).collect::<Vec<_>>())?;
    Ok(vec![n.reshape(y, &dims[..rank - 2])?])
}

fn minor(n: &mut Node, x: NodeId, rank: usize, row: usize, columns: &[usize]) -> Import<NodeId> {
    let at = |n: &mut Node, c: usize| {
        let r = n.slice(x, rank - 2, row, row + 1)?;
        n.slice(r, rank - 1, c, c + 1)
    };
    if let [one] = columns {
        return at(n, *one);
    }
    let mut sum: Option<NodeId> = None;
    for (i, &c) in columns.iter().enumerate() {
        let rest: Vec<usize> = columns.iter().copied().filter(|&o| o != c).collect();
        let below = minor(n, x, rank, row + 1, &rest)?;
        let element = at(n, c)?;
        let p = n.bin(Binary::Mul, element, below)?;
        sum = Some(match sum {
            None => p,
            Some(s) => n.bin(if i % 2 == 0 { Binary::Add } else { Binary::Sub }, s, p)?,
        });
    }
    sum.ok_or_else(|| "takes matrices of at least one row".into())
}
