//! Attention and rotary embeddings, spelled out.

use super::Handler;
use super::product::matmul;
use crate::format::Format;
use crate::ir::{Binary, NodeId, Op, Unary};
use crate::model::onnx::node::{Import, Node};

pub const OPS: &[(&str, Handler)] = &[("Attention", attention), ("RotaryEmbedding", rotary)];

/// `[B, S, H·D]` as `[B, H, S, D]`.
fn heads(n: &mut Node, x: NodeId, heads: usize) -> Import<NodeId> {
    let dims = n.dims(x);
    if dims.len() == 4 {
        return Ok(x);
    }
    let [b, s, width] = dims[..] else { return Err(format!("takes tensors of rank 3 or 4, not {dims:?}")) };
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(format!("{width} features do not divide into {heads} heads"));
    }
    let y = n.reshape(x, &[b, s, heads, width / heads])?;
    n.transpose(y, &[0, 2, 1, 3])
}

/// Scaled dot products, masked, softmaxed, and applied to the values; grouped heads share keys and values.
fn attention(n: &mut Node) -> Import<Vec<NodeId>> {
    let (q, k, v) = (n.x(0)?, n.x(1)?, n.x(2)?);
    let flat = n.rank(q) == 3;
    let own = |n: &Node, name: &str, x: NodeId| {
        n.attr(name).map_or_else(|| n.dims(x).get(1).copied().unwrap_or(1), |a| a.i().max(1) as usize)
    };
    let (qh, kh) = (own(n, "q_num_heads", q), own(n, "kv_num_heads", k));
    let (q, mut k, mut v) = (heads(n, q, qh)?, heads(n, k, kh)?, heads(n, v, kh)?);
    let mut past = 0;
    if let (Some(pk), Some(pv)) = (n.maybe(4)?, n.maybe(5)?) {
        n.demand_rank(pk, 4, "past_key")?;
        past = n.dims(pk)[2];
        k = n.concat(&[pk, k], 2)?;
        v = n.concat(&[pv, v], 2)?;
    }
    let (present_k, present_v) = (k, v);
    let (dq, dk) = (n.dims(q), n.dims(k));
    let (sq, sk, depth) = (dq[2], dk[2], dq[3]);
    if kh == 0 || !qh.is_multiple_of(kh) {
        return Err(format!("{qh} query heads do not share {kh} key and value heads"));
    }
    if qh != kh {
        (k, v) = (shared(n, k, qh / kh)?, shared(n, v, qh / kh)?);
    }
    let scale = n.attr("scale").map_or(1.0 / (depth as f64).sqrt(), |a| f64::from(a.f()));
    let q = n.with(Binary::Mul, q, scale)?;
    let raw = n.matmul(q, k, false, true)?;
    let mut scores = masked(n, raw, [sq, sk], past)?;
    let mut trace = vec![raw, scores];
    let mode = n.int("qk_matmul_output_mode", 0);
    let cap = n.float("softcap", 0.0);
    if cap != 0.0 {
        let s = n.with(Binary::Div, scores, cap)?;
        let t = n.un(Unary::Tanh, s)?;
        scores = n.with(Binary::Mul, t, cap)?;
    }
    trace.push(scores);
    let weights = n.add(Op::Softmax { axis: 3 }, &[scores])?;
    trace.push(weights);
    let y = matmul(n, weights, v)?;
    let y = if flat {
        let t = n.transpose(y, &[0, 2, 1, 3])?;
        let d = n.dims(t);
        n.reshape(t, &[d[0], d[1], d[2] * d[3]])?
    } else {
        y
    };
    let shown = usize::try_from(mode).ok().and_then(|m| trace.get(m).copied()).unwrap_or(raw);
    Ok(vec![y, present_k, present_v, shown])
}

/// Keys or values `[batch, heads, length, depth]` with each head given to so many query heads.
fn shared(n: &mut Node, x: NodeId, by: usize) -> Import<NodeId> {
    let [b, heads, length, depth] = n.dims(x)[..] else { return Err("takes keys and values of rank 4".into()) };
    let y = n.reshape(x, &[b, heads, 1, length, depth])?;
    let y = n.broadcast(y, &[b, heads, by, length, depth])?;
    n.reshape(y, &[b, heads * by, length, depth])
}

/// Scores without what a query may not see. That is selected away, never added: no finite number is low enough for every
/// format.
fn masked(n: &mut Node, mut scores: NodeId, [sq, sk]: [usize; 2], past: usize) -> Import<NodeId> {
    let (rank, none) = (4, n.num(f64::NEG_INFINITY)?);
    if n.flag("is_causal", false) {
        let (i, j) = (n.positions(rank, 2, sq)?, n.positions(rank, 3, sk)?);
        let last = n.with(Binary::Add, i, past as f64)?;
        let seen = n.bin(Binary::Le, j, last)?;
        scores = n.select(seen, scores, none)?;
    }
    if let Some(mut mask) = n.maybe(3)? {
        let have = n.dims(mask).last().copied().unwrap_or(1);
        if have < sk {
            let (axis, fill) = (n.rank(mask) - 1, if n.format(mask) == Format::Bool { 0.0 } else { f64::NEG_INFINITY });
            mask = super::shape::pad_axis(n, mask, axis, 0, (sk - have) as i64, "constant", fill)?;
        }
        scores = match n.format(mask) {
            Format::Bool => n.select(mask, scores, none)?,
            _ => n.bin(Binary::Add, scores, mask)?,
        };
    }
    if let Some(lengths) = n.maybe(6)? {
        let batch = n.dims(scores)[0];
        let lengths = n.reshape(lengths, &[batch, 1, 1, 1])?;
        let j = n.positions(rank, 3, sk)?;
        let seen = n.bin(Binary::Lt, j, lengths)?;
        scores = n.select(seen, scores, none)?;
    }
    Ok(scores)
}

/// Pairs of features turned by position-dependent angles (Su et al. 2021).
fn rotary(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, mut cos, mut sin) = (n.x(0)?, n.x(1)?, n.x(2)?);
    let dims = n.dims(x);
    let flat = dims.len() == 3;
    if !flat {
        n.demand_rank(x, 4, "the input")?;
    }
    let x4 = if flat {
        let h = n.int("num_heads", 1).max(1) as usize;
        if !dims[2].is_multiple_of(h) {
            return Err(format!("{} features do not divide into {h} heads", dims[2]));
        }
        n.reshape(x, &[dims[0], dims[1], h, dims[2] / h])?
    } else {
        n.transpose(x, &[0, 2, 1, 3])?
    };
    // [B, S, H, D]; the caches are [B, S, D/2], or [positions, D/2] with positions to look up.
    let d = n.dims(x4);
    if let Some(ids) = n.maybe(3)? {
        let ids = n.convert(ids, Format::I64)?;
        cos = n.add(Op::Gather { axis: 0 }, &[cos, ids])?;
        sin = n.add(Op::Gather { axis: 0 }, &[sin, ids])?;
    }
    let turned = match n.int("rotary_embedding_dim", 0).max(0) as usize {
        0 => d[3],
        r => r,
    };
    if turned > d[3] || !turned.is_multiple_of(2) {
        return Err(format!("{turned} of {} features cannot be turned in pairs", d[3]));
    }
    let half = turned / 2;
    let (mut c4, mut s4) = (cos, sin);
    for c in [&mut c4, &mut s4] {
        n.demand_rank(*c, 3, "a cache of angles")?;
        let own = n.dims(*c);
        *c = n.reshape(*c, &[own[0], own[1], 1, own[own.len() - 1]])?;
        *c = n.slice(*c, 3, 0, half)?;
    }
    let (part, rest) = (n.slice(x4, 3, 0, turned)?, n.slice(x4, 3, turned, d[3])?);
    let interleaved = n.flag("interleaved", false);
    let (a, b) = if interleaved {
        let pairs = n.reshape(part, &[d[0], d[1], d[2], half, 2])?;
        let (a, b) = (n.slice(pairs, 4, 0, 1)?, n.slice(pairs, 4, 1, 2)?);
        let one = [d[0], d[1], d[2], half];
        (n.reshape(a, &one)?, n.reshape(b, &one)?)
    } else {
        (n.slice(part, 3, 0, half)?, n.slice(part, 3, half, turned)?)
    };
    let (ac, bs) = (n.bin(Binary::Mul, a, c4)?, n.bin(Binary::Mul, b, s4)?);
    let (as_, bc) = (n.bin(Binary::Mul, a, s4)?, n.bin(Binary::Mul, b, c4)?);
    let (real, imaginary) = (n.bin(Binary::Sub, ac, bs)?, n.bin(Binary::Add, as_, bc)?);
    let out = if interleaved {
        let one = [d[0], d[1], d[2], half, 1];
        let (r, i) = (n.reshape(real, &one)?, n.reshape(imaginary, &one)?);
        let pairs = n.concat(&[r, i], 4)?;
        n.reshape(pairs, &[d[0], d[1], d[2], turned])?
    } else {
        n.concat(&[real, imaginary], 3)?
    };
    let out = if turned < d[3] { n.concat(&[out, rest], 3)? } else { out };
    Ok(vec![if flat { n.reshape(out, &dims)? } else { n.transpose(out, &[0, 2, 1, 3])? }])
}
