//! Kernels as text, for people and snapshots.

use super::kernel::{Address, Contraction, Inst, Kernel, Loop};
use super::program::Program;
use super::view::Guard;
use std::fmt::Write;

/// Every launch, its kernels, their domains and tapes.
pub fn print_program(p: &Program) -> String {
    let mut out = String::new();
    for (n, launch) in p.launches.iter().enumerate() {
        for i in launch.clone() {
            print_kernel(&mut out, p, n, i);
        }
    }
    out
}

fn print_kernel(out: &mut String, p: &Program, launch: usize, i: usize) {
    let kernel = &p.calls[i].kernel;
    let body = kernel.body();
    let name = |b: usize| p.buffers[b].name.as_str();
    // Writing to a String cannot fail.
    let _ = write!(out, "launch {launch}: {} ", kernel.kind());
    if let Some(l) = &p.calls[i].in_loop {
        let _ = write!(out, "in {} ", l.body);
        if l.times > 1 {
            let _ = write!(out, "{} times ", l.times);
        }
    }
    if let Kernel::Product(p) = kernel {
        let _ = write!(out, "{} ", contraction(&p.contraction, &name));
    }
    let _ = writeln!(out, "over {:?} × {:?}", body.outer, body.inner);
    for (r, inst) in body.tape.iter().enumerate() {
        let _ = writeln!(out, "  r{r} = {}", describe(inst, body, &name));
    }
    for s in &body.stores {
        let _ = writeln!(out, "  {}: {} = r{}", name(s.buffer), s.format, s.reg);
    }
}

fn contraction<'a>(c: &Contraction, buffer: &impl Fn(usize) -> &'a str) -> String {
    let name = |a: Address| match a.offset {
        0 => buffer(a.buffer).to_owned(),
        n => format!("{} from {n}", buffer(a.buffer)),
    };
    match c {
        Contraction::Gemm(g) => {
            let side = |t: bool, s: String| if t { format!("{s}ᵀ") } else { s };
            let batch = if g.batch == 1 { String::new() } else { format!("{} × ", g.batch) };
            let (a, b) = (side(g.ta, name(g.a)), side(g.tb, name(g.b)));
            format!("{} {a} × {b} ({batch}{}×{}×{})", g.format, g.m, g.n, g.k)
        }
        Contraction::Conv(c) => {
            let (what, s) = (c.kind.name(), &c.spec);
            let groups = if s.groups == 1 { String::new() } else { format!(" in {} groups", s.groups) };
            let steps = format!("stride {:?} dilation {:?} lo {:?} hi {:?}", s.stride, s.dilation, s.lo, s.hi);
            format!("{} {what} {}, {} (x {:?} w {:?} {steps}{groups})", c.format, name(c.a), name(c.b), c.x, c.w)
        }
        Contraction::Attention(a) => {
            let names: Vec<String> = a.operands.iter().map(|o| name(o.at)).collect();
            let causal = if a.spec.causal { " causal" } else { "" };
            let heads = if a.heads == a.groups { a.heads.to_string() } else { format!("{} of {}", a.heads, a.groups) };
            let sizes = format!("{} × {heads} × {} × {} × {}", a.batch, a.queries, a.keys, a.width);
            format!("{} {}{causal} scale {} of {} ({sizes})", a.format, a.part.name(), a.spec.scale, names.join(", "))
        }
        Contraction::Scatter(s) => {
            let into = s.base.map_or("zeros".to_owned(), name);
            format!("{} {} rows of {} at {} into {into}", s.kind.name(), s.positions, name(s.updates), name(s.index))
        }
    }
}

fn describe<'a>(inst: &Inst, body: &Loop, name: &impl Fn(usize) -> &'a str) -> String {
    let load = |i: usize| {
        let l = &body.loads[i];
        let whole = l.view == super::View::contiguous(&l.view.dims);
        let at = if whole {
            String::new()
        } else {
            format!(
                " strides {:?}{}",
                l.view.strides,
                if l.view.offset > 0 { format!(" from {}", l.view.offset) } else { String::new() }
            ) + &l.view.guards.iter().map(guard).collect::<String>()
        };
        format!("{}: {}{at}", name(l.buffer), l.format)
    };
    match inst {
        Inst::Load(i) => load(*i),
        Inst::Const(c) => c.to_string(),
        Inst::Position(a) => format!("position {a}"),
        Inst::Random { at, seed, step, salt } => {
            format!("random r{seed} r{step} salt {salt} strides {:?}", at.strides)
        }
        Inst::Unary(u, a) => format!("{} r{a}", u.name()),
        Inst::Binary(b, x, y) => format!("{} r{x} r{y}", b.name()),
        Inst::Select(c, x, y) => format!("select r{c} r{x} r{y}"),
        Inst::Reduce(k, a) => format!("{} r{a} over inner", k.name()),
        Inst::Round(f, a) => format!("round {f} r{a}"),
        Inst::Gather { load: i, index, .. } => format!("gather r{index} of {}", load(*i)),
        Inst::Accumulator => "accumulator".into(),
    }
}

fn guard(g: &Guard) -> String {
    let terms: Vec<String> = g.terms.iter().map(|(a, c)| format!("{c}·a{a}")).collect();
    let step = if g.step == 1 { String::new() } else { format!(" step {}", g.step) };
    format!(" at {} {:+}{step} below {} × {}, else {}", terms.join(" + "), g.offset, g.extent, g.stride, g.fill)
}
