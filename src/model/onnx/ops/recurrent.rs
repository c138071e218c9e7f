//! LSTM, GRU and RNN: the input's products for all steps at once, then a step after the other.

use super::Handler;
use super::index::reversed;
use super::pointwise::hard_sigmoid;
use crate::format::Format;
use crate::ir::{Binary, NodeId, Unary};
use crate::model::onnx::node::{Import, Node};

pub const OPS: &[(&str, Handler)] =
    &[("LSTM", |n| layer(n, Cell::Lstm)), ("GRU", |n| layer(n, Cell::Gru)), ("RNN", |n| layer(n, Cell::Rnn))];

#[derive(Clone, Copy, PartialEq)]
enum Cell {
    Lstm,
    Gru,
    Rnn,
}

impl Cell {
    fn gates(self) -> usize {
        match self {
            Cell::Lstm => 4,
            Cell::Gru => 3,
            Cell::Rnn => 1,
        }
    }

    /// Activation functions of a direction, in the operator's order.
    fn defaults(self) -> &'static [&'static str] {
        match self {
            Cell::Lstm => &["Sigmoid", "Tanh", "Tanh"],
            Cell::Gru => &["Sigmoid", "Tanh"],
            Cell::Rnn => &["Tanh"],
        }
    }
}

/// A direction's weights, and what all its steps share.
struct Direction {
    cell: Cell,
    hidden: usize,
    /// `[hidden, gates · hidden]` after transposition, as the product takes it.
    r: NodeId,
    wb: Option<NodeId>,
    rb: Option<NodeId>,
    peephole: Option<NodeId>,
    functions: Vec<String>,
    clip: Option<f64>,
    /// GRU: the reset gate acts after the product.
    linear_before_reset: bool,
    input_forget: bool,
}

fn layer(n: &mut Node, cell: Cell) -> Import<Vec<NodeId>> {
    let mut x = n.x(0)?;
    n.demand_rank(x, 3, "the input")?;
    let batch_first = n.int("layout", 0) == 1;
    if batch_first {
        x = n.transpose(x, &[1, 0, 2])?;
    }
    let (w, r) = (n.x(1)?, n.x(2)?);
    for (i, what) in [(1, "W"), (2, "R")] {
        let weights = n.x(i)?;
        n.demand_rank(weights, 3, what)?;
    }
    let bias = n.maybe(3)?;
    if let Some(b) = bias {
        n.demand_rank(b, 2, "B")?;
    }
    let lengths = n.maybe(4)?;
    let [steps, batch, _] = n.dims(x)[..] else { return Err("takes an input of rank 3".into()) };
    let directions = n.dims(w)[0];
    let hidden = n.dims(r)[2];
    let gates = cell.gates() * hidden;
    let direction = n.word("direction", "forward");
    let functions: Vec<String> = match n.attr("activations") {
        Some(a) => a.strings.iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect(),
        None => {
            cell.defaults().iter().cycle().take(directions * cell.defaults().len()).map(|s| (*s).to_owned()).collect()
        }
    };
    let (mut all, mut last_h, mut last_c) = (Vec::new(), Vec::new(), Vec::new());
    for d in 0..directions {
        let part = |n: &mut Node, v: NodeId| {
            let dims = n.dims(v);
            let s = n.slice(v, 0, d, d + 1)?;
            n.reshape(s, &dims[1..])
        };
        let (wd, rd) = (part(n, w)?, part(n, r)?);
        let (mut wb, mut rb) = (None, None);
        if let Some(b) = bias {
            let b = part(n, b)?;
            (wb, rb) = (Some(n.slice(b, 0, 0, gates)?), Some(n.slice(b, 0, gates, 2 * gates)?));
        }
        // Initial states; with the batch first they are `[batch, directions, hidden]`.
        let initial = |n: &mut Node, i: usize| match n.maybe(i)? {
            Some(v) => {
                let v = if batch_first { n.transpose(v, &[1, 0, 2])? } else { v };
                let s = n.slice(v, 0, d, d + 1)?;
                n.reshape(s, &[batch, hidden])
            }
            None => {
                let zero = n.num(0.0)?;
                n.broadcast(zero, &[batch, hidden])
            }
        };
        let h0 = initial(n, 5)?;
        let c0 = if cell == Cell::Lstm { Some(initial(n, 6)?) } else { None };
        let peephole = if cell == Cell::Lstm {
            match n.maybe(7)? {
                Some(p) => Some(part(n, p)?),
                None => None,
            }
        } else {
            None
        };
        let per = cell.defaults().len();
        let own = Direction {
            cell,
            hidden,
            r: rd,
            wb,
            rb,
            peephole,
            functions: functions.get(d * per..(d + 1) * per).map_or_else(|| functions.clone(), <[String]>::to_vec),
            clip: n.attr("clip").map(|a| f64::from(a.f())),
            linear_before_reset: n.flag("linear_before_reset", false),
            input_forget: n.flag("input_forget", false),
        };
        let backwards = direction == "reverse" || d == 1;
        let mut source = x;
        if let (true, Some(l)) = (backwards, lengths) {
            let dims = n.dims(x);
            source = reversed(n, x, l, 0, 1, &dims)?;
        }
        let order: Vec<usize> =
            if backwards && lengths.is_none() { (0..steps).rev().collect() } else { (0..steps).collect() };
        let (mut ys, h, c) = run(n, &own, source, wd, (h0, c0), &order, lengths)?;
        if backwards && lengths.is_none() {
            ys.reverse();
        }
        let rows = ys.into_iter().map(|y| n.reshape(y, &[1, batch, hidden])).collect::<Import<Vec<_>>>()?;
        let mut y = n.concat(&rows, 0)?;
        if let (true, Some(l)) = (backwards, lengths) {
            let dims = n.dims(y);
            y = reversed(n, y, l, 0, 1, &dims)?;
        }
        all.push(n.reshape(y, &[steps, 1, batch, hidden])?);
        last_h.push(n.reshape(h, &[1, batch, hidden])?);
        if let Some(c) = c {
            last_c.push(n.reshape(c, &[1, batch, hidden])?);
        }
    }
    let mut y = n.concat(&all, 1)?;
    let mut out_h = n.concat(&last_h, 0)?;
    let mut out_c = if last_c.is_empty() { None } else { Some(n.concat(&last_c, 0)?) };
    if batch_first {
        y = n.transpose(y, &[2, 0, 1, 3])?;
        out_h = n.transpose(out_h, &[1, 0, 2])?;
        out_c = out_c.map(|c| n.transpose(c, &[1, 0, 2])).transpose()?;
    }
    Ok([vec![y, out_h], out_c.into_iter().collect()].concat())
}

type States = (NodeId, Option<NodeId>);

/// The outputs of every step, in the order they ran, and the last states.
fn run(
    n: &mut Node,
    d: &Direction,
    x: NodeId,
    w: NodeId,
    (h0, c0): States,
    order: &[usize],
    lengths: Option<NodeId>,
) -> Import<(Vec<NodeId>, NodeId, Option<NodeId>)> {
    let [steps, batch, features] = n.dims(x)[..] else { return Err("takes an input of rank 3".into()) };
    let gates = d.cell.gates() * d.hidden;
    let rows = n.reshape(x, &[steps * batch, features])?;
    let mut all = n.matmul(rows, w, false, true)?;
    if let Some(b) = d.wb {
        all = n.bin(Binary::Add, all, b)?;
    }
    // Where the recurrent bias meets nothing but a sum, it joins the input's.
    if let (Some(b), true) = (d.rb, d.cell != Cell::Gru) {
        all = n.bin(Binary::Add, all, b)?;
    }
    let all = n.reshape(all, &[steps, batch, gates])?;
    let (mut h, mut c) = (h0, c0);
    let mut out = Vec::new();
    for &t in order {
        let xt = n.slice(all, 0, t, t + 1)?;
        let xt = n.reshape(xt, &[batch, gates])?;
        let (mut next_h, mut next_c) = step(n, d, xt, h, c)?;
        let mut shown = next_h;
        if let Some(l) = lengths {
            // Samples that have ended keep their states and put out zeros.
            let l = n.convert(l, Format::I64)?;
            let l = n.reshape(l, &[batch, 1])?;
            let alive = n.with(Binary::Gt, l, t as f64)?;
            let zero = n.num(0.0)?;
            shown = n.select(alive, next_h, zero)?;
            next_h = n.select(alive, next_h, h)?;
            if let (Some(new), Some(old)) = (next_c, c) {
                next_c = Some(n.select(alive, new, old)?);
            }
        }
        (h, c) = (next_h, next_c);
        out.push(shown);
    }
    Ok((out, h, c))
}

fn step(n: &mut Node, d: &Direction, xt: NodeId, h: NodeId, c: Option<NodeId>) -> Import<States> {
    let s = d.hidden;
    let gate = |n: &mut Node, v: NodeId, i: usize| n.slice(v, 1, i * s, (i + 1) * s);
    match d.cell {
        Cell::Rnn => {
            let hr = n.matmul(h, d.r, false, true)?;
            let z = n.bin(Binary::Add, xt, hr)?;
            Ok((activate(n, d, 0, z)?, None))
        }
        Cell::Lstm => {
            let c = c.ok_or("lacks a cell state")?;
            let hr = n.matmul(h, d.r, false, true)?;
            let all = n.bin(Binary::Add, xt, hr)?;
            let peep = |n: &mut Node, z: NodeId, i: usize, of: NodeId| match d.peephole {
                Some(p) => {
                    let p = n.slice(p, 0, i * s, (i + 1) * s)?;
                    let t = n.bin(Binary::Mul, p, of)?;
                    n.bin(Binary::Add, z, t)
                }
                None => Ok(z),
            };
            // Gates stand in the order i, o, f, c.
            let (zi, zo, zf, zc) = (gate(n, all, 0)?, gate(n, all, 1)?, gate(n, all, 2)?, gate(n, all, 3)?);
            let zi = peep(n, zi, 0, c)?;
            let i = activate(n, d, 0, zi)?;
            let f = if d.input_forget {
                let one = n.num(1.0)?;
                n.bin(Binary::Sub, one, i)?
            } else {
                let zf = peep(n, zf, 2, c)?;
                activate(n, d, 0, zf)?
            };
            let new = activate(n, d, 1, zc)?;
            let (kept, added) = (n.bin(Binary::Mul, f, c)?, n.bin(Binary::Mul, i, new)?);
            let c = n.bin(Binary::Add, kept, added)?;
            let zo = peep(n, zo, 1, c)?;
            let o = activate(n, d, 0, zo)?;
            let shown = activate(n, d, 2, c)?;
            Ok((n.bin(Binary::Mul, o, shown)?, Some(c)))
        }
        // Gates stand in the order z, r, h.
        Cell::Gru => {
            let bias = |n: &mut Node, v: NodeId, from: usize, to: usize| match d.rb {
                Some(b) => {
                    let b = n.slice(b, 0, from * s, to * s)?;
                    n.bin(Binary::Add, v, b)
                }
                None => Ok(v),
            };
            let (r_zr, r_h) = (n.slice(d.r, 0, 0, 2 * s)?, n.slice(d.r, 0, 2 * s, 3 * s)?);
            let hr = n.matmul(h, r_zr, false, true)?;
            let hr = bias(n, hr, 0, 2)?;
            let zr = n.slice(xt, 1, 0, 2 * s)?;
            let zr = n.bin(Binary::Add, zr, hr)?;
            let (z, r) = (gate(n, zr, 0)?, gate(n, zr, 1)?);
            let (z, r) = (activate(n, d, 0, z)?, activate(n, d, 0, r)?);
            let inner = if d.linear_before_reset {
                let p = n.matmul(h, r_h, false, true)?;
                let p = bias(n, p, 2, 3)?;
                n.bin(Binary::Mul, r, p)?
            } else {
                let rh = n.bin(Binary::Mul, r, h)?;
                let p = n.matmul(rh, r_h, false, true)?;
                bias(n, p, 2, 3)?
            };
            let xh = gate(n, xt, 2)?;
            let zh = n.bin(Binary::Add, xh, inner)?;
            let new = activate(n, d, 1, zh)?;
            let one = n.num(1.0)?;
            let open = n.bin(Binary::Sub, one, z)?;
            let (a, b) = (n.bin(Binary::Mul, open, new)?, n.bin(Binary::Mul, z, h)?);
            Ok((n.bin(Binary::Add, a, b)?, None))
        }
    }
}

fn activate(n: &mut Node, d: &Direction, which: usize, x: NodeId) -> Import<NodeId> {
    let mut x = x;
    if let Some(c) = d.clip.filter(|&c| c > 0.0) {
        let low = n.with(Binary::Max, x, -c)?;
        x = n.with(Binary::Min, low, c)?;
    }
    match d.functions.get(which).map_or("", String::as_str).to_lowercase().as_str() {
        "sigmoid" => n.un(Unary::Sigmoid, x),
        "tanh" => n.un(Unary::Tanh, x),
        "relu" => n.un(Unary::Relu, x),
        "softplus" => n.un(Unary::Softplus, x),
        "affine" => Ok(x),
        "hardsigmoid" => hard_sigmoid(n, x, 0.2, 0.5),
        "softsign" => {
            let a = n.un(Unary::Abs, x)?;
            let a = n.with(Binary::Add, a, 1.0)?;
            n.bin(Binary::Div, x, a)
        }
        other => Err(format!("the activation `{other}` is not supported")),
    }
}
