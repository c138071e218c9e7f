//! LSTM, GRU and RNN: the input's products for all steps at once, then a loop over the steps.

use super::Handler;
use super::index::reversed;
use super::pointwise::hard_sigmoid;
use crate::format::Format;
use crate::ir::{Binary, Body, Dim, Graph, Init, NodeId, Op, Role, Scan, Take, Type, Unary};
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

/// A direction of a layer: its weights, and what all its steps share.
struct Direction {
    cell: Cell,
    hidden: usize,
    /// `[hidden, gates · hidden]` after transposition, as the product takes it; a GRU's last gate apart.
    r: Vec<NodeId>,
    wb: Option<NodeId>,
    /// Biases of `r`'s products.
    rb: Vec<NodeId>,
    /// What the gates i, o and f see of the cell state.
    peephole: Vec<NodeId>,
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
    let direction = n.word("direction", "forward");
    let functions: Vec<String> = match n.attr("activations") {
        Some(a) => a.strings.iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect(),
        None => {
            cell.defaults().iter().cycle().take(directions * cell.defaults().len()).map(|s| (*s).to_owned()).collect()
        }
    };
    let (mut all, mut last_h, mut last_c) = (Vec::new(), Vec::new(), Vec::new());
    for d in 0..directions {
        let wd = of_direction(n, w, d)?;
        let own = Direction::new(n, cell, d, (r, bias), &functions)?;
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
        let backwards = direction == "reverse" || d == 1;
        let turned = backwards && lengths.is_some();
        let mut source = x;
        if let (true, Some(l)) = (turned, lengths) {
            let dims = n.dims(x);
            source = reversed(n, x, l, 0, 1, &dims)?;
        }
        let name = if d == 1 { format!("{}.reverse", loop_name(n)) } else { loop_name(n) };
        let mut run = run(n, &own, source, wd, (h0, c0), lengths)?;
        (run.body.name, run.reverse) = (name, backwards && !turned);
        let (mut y, h, c) = run.outputs(n)?;
        if let (true, Some(l)) = (turned, lengths) {
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

/// What belongs to one direction of weights or biases, which have a direction a row.
fn of_direction(n: &mut Node, v: NodeId, d: usize) -> Import<NodeId> {
    let dims = n.dims(v);
    let row = n.slice(v, 0, d, d + 1)?;
    n.reshape(row, &dims[1..])
}

impl Direction {
    /// The `d`-th direction of recurrent weights and biases; `functions` are those of all directions.
    fn new(
        n: &mut Node,
        cell: Cell,
        d: usize,
        (r, bias): (NodeId, Option<NodeId>),
        functions: &[String],
    ) -> Import<Direction> {
        let hidden = n.dims(r)[2];
        let gates = cell.gates() * hidden;
        let r = of_direction(n, r, d)?;
        let (mut wb, mut rb) = (None, None);
        if let Some(b) = bias {
            let b = of_direction(n, b, d)?;
            (wb, rb) = (Some(n.slice(b, 0, 0, gates)?), Some(n.slice(b, 0, gates, 2 * gates)?));
        }
        let peephole = match n.maybe(7)? {
            Some(p) if cell == Cell::Lstm => {
                let p = of_direction(n, p, d)?;
                (0..3).map(|i| n.slice(p, 0, i * hidden, (i + 1) * hidden)).collect::<Import<_>>()?
            }
            _ => Vec::new(),
        };
        // A GRU multiplies its last gate by something of its own.
        let cuts = if cell == Cell::Gru { vec![0, 2 * hidden, gates] } else { vec![0, gates] };
        let mut pieces = |v: NodeId| cuts.windows(2).map(|w| n.slice(v, 0, w[0], w[1])).collect::<Import<Vec<_>>>();
        let (r, rb) = (pieces(r)?, rb.map_or(Ok(Vec::new()), pieces)?);
        let per = cell.defaults().len();
        Ok(Direction {
            cell,
            hidden,
            r,
            wb,
            rb,
            peephole,
            functions: functions.get(d * per..(d + 1) * per).unwrap_or(functions).to_vec(),
            clip: n.attr("clip").map(|a| f64::from(a.f())),
            linear_before_reset: n.flag("linear_before_reset", false),
            input_forget: n.flag("input_forget", false),
        })
    }
}

/// What the loop of a layer is called.
fn loop_name(n: &Node) -> String {
    let named = Some(n.proto.name()).filter(|s| !s.is_empty());
    named.unwrap_or_else(|| n.proto.output.first().map_or("", String::as_str)).to_owned()
}

type States = (NodeId, Option<NodeId>);

/// A loop to be added to the graph.
struct Run {
    body: Graph,
    operands: Vec<NodeId>,
    steps: usize,
    reverse: bool,
    carries_cell: bool,
}

impl Run {
    /// What every step puts out, and the last states.
    fn outputs(self, n: &mut Node) -> Import<(NodeId, NodeId, Option<NodeId>)> {
        let (body, steps, reverse) = (Body::new(self.body), Dim::Fixed(self.steps), self.reverse);
        let mut take = |take: Take| {
            let scan = Scan { body: body.clone(), steps: steps.clone(), reverse, take };
            n.add(Op::Scan(scan), &self.operands)
        };
        let y = take(Take::Stack("y".into()))?;
        let h = take(Take::Last("h".into()))?;
        let c = if self.carries_cell { Some(take(Take::Last("c".into()))?) } else { None };
        Ok((y, h, c))
    }
}

/// The sources of a loop's body, as they are declared, and the operands they stand for.
struct Sources<'s> {
    outer: &'s mut Graph,
    operands: Vec<NodeId>,
}

impl Sources<'_> {
    fn declare(&mut self, n: &mut Node, name: &str, operand: NodeId, op: impl Fn(Type) -> Op) -> Import<NodeId> {
        let mut ty = self.outer.ty(operand).clone();
        let made = op(ty.clone());
        if matches!(made, Op::Input { .. }) {
            ty.shape.0.remove(0);
        }
        self.operands.push(operand);
        n.named(name, op(ty))
    }
}

/// The loop of a direction: gates of the input for all steps, then the steps.
fn run(n: &mut Node, d: &Direction, x: NodeId, w: NodeId, (h0, c0): States, lengths: Option<NodeId>) -> Import<Run> {
    let [steps, batch, features] = n.dims(x)[..] else { return Err("takes an input of rank 3".into()) };
    let gates = d.cell.gates() * d.hidden;
    let rows = n.reshape(x, &[steps * batch, features])?;
    let mut all = n.matmul(rows, w, false, true)?;
    if let Some(b) = d.wb {
        all = n.bin(Binary::Add, all, b)?;
    }
    // Where the recurrent bias meets nothing but a sum, it joins the input's.
    let joined = d.cell != Cell::Gru;
    if let (Some(&b), true) = (d.rb.first(), joined) {
        all = n.bin(Binary::Add, all, b)?;
    }
    let all = n.reshape(all, &[steps, batch, gates])?;
    let alive = match lengths {
        Some(l) => {
            let l = n.convert(l, Format::I64)?;
            let l = n.reshape(l, &[1, batch, 1])?;
            let t = n.positions(3, 0, steps)?;
            Some(n.bin(Binary::Gt, l, t)?)
        }
        None => None,
    };
    let origin = n.im.graph.origin.clone();
    let mut outer = std::mem::take(&mut n.im.graph);
    n.im.graph.origin = origin;
    let mut s = Sources { outer: &mut outer, operands: Vec::new() };
    let sequence = |label| move |ty| Op::Input { label, ty, copy_of: None };
    let state = |ty| Op::State { init: Init::Data, ty };
    let param = |ty| Op::Param { init: Init::Data, ty };
    let xt = s.declare(n, "x", all, sequence(false))?;
    let alive = alive.map(|a| s.declare(n, "alive", a, sequence(true))).transpose()?;
    let h = s.declare(n, "h", h0, state)?;
    let c = c0.map(|c| s.declare(n, "c", c, state)).transpose()?;
    let mut params = |n: &mut Node, what: &str, of: &[NodeId]| {
        of.iter().enumerate().map(|(i, &v)| s.declare(n, &format!("{what}.{i}"), v, param)).collect::<Import<Vec<_>>>()
    };
    let inner = Direction {
        r: params(n, "r", &d.r)?,
        rb: if joined { Vec::new() } else { params(n, "rb", &d.rb)? },
        peephole: params(n, "peephole", &d.peephole)?,
        functions: d.functions.clone(),
        ..*d
    };
    let (mut next_h, mut next_c) = step(n, &inner, xt, h, c)?;
    let mut y = next_h;
    if let Some(alive) = alive {
        // Samples that have ended keep their states and put out zeros.
        let zero = n.num_like(y, 0.0)?;
        y = n.select(alive, next_h, zero)?;
        next_h = n.select(alive, next_h, h)?;
        if let (Some(new), Some(old)) = (next_c, c) {
            next_c = Some(n.select(alive, new, old)?);
        }
    }
    let operands = s.operands;
    let mut body = std::mem::replace(&mut n.im.graph, outer);
    body.add_output("y", Role::Output, y);
    body.add_output("h", Role::Update, next_h);
    if let Some(c) = next_c {
        body.add_output("c", Role::Update, c);
    }
    Ok(Run { body, operands, steps, reverse: false, carries_cell: next_c.is_some() })
}

fn step(n: &mut Node, d: &Direction, xt: NodeId, h: NodeId, c: Option<NodeId>) -> Import<States> {
    let s = d.hidden;
    let gate = |n: &mut Node, v: NodeId, i: usize| n.slice(v, 1, i * s, (i + 1) * s);
    match d.cell {
        Cell::Rnn => {
            let hr = n.matmul(h, d.r[0], false, true)?;
            let z = n.bin(Binary::Add, xt, hr)?;
            Ok((activate(n, d, 0, z)?, None))
        }
        Cell::Lstm => {
            let c = c.ok_or("lacks a cell state")?;
            let hr = n.matmul(h, d.r[0], false, true)?;
            let all = n.bin(Binary::Add, xt, hr)?;
            let peep = |n: &mut Node, z: NodeId, i: usize, of: NodeId| match d.peephole.get(i) {
                Some(&p) => {
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
            let bias = |n: &mut Node, v: NodeId, i: usize| match d.rb.get(i) {
                Some(&b) => n.bin(Binary::Add, v, b),
                None => Ok(v),
            };
            let hr = n.matmul(h, d.r[0], false, true)?;
            let hr = bias(n, hr, 0)?;
            let zr = n.slice(xt, 1, 0, 2 * s)?;
            let zr = n.bin(Binary::Add, zr, hr)?;
            let (z, r) = (gate(n, zr, 0)?, gate(n, zr, 1)?);
            let (z, r) = (activate(n, d, 0, z)?, activate(n, d, 0, r)?);
            let inner = if d.linear_before_reset {
                let p = n.matmul(h, d.r[1], false, true)?;
                let p = bias(n, p, 1)?;
                n.bin(Binary::Mul, r, p)?
            } else {
                let rh = n.bin(Binary::Mul, r, h)?;
                let p = n.matmul(rh, d.r[1], false, true)?;
                bias(n, p, 1)?
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
