//! Kernels as text, for people and snapshots.

use super::kernel::{Inst, Kernel, Loop};
use super::program::Program;
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
    let kernel = &p.kernels[i];
    let body = kernel.body();
    let name = |b: usize| p.buffers[b].name.as_str();
    // Writing to a String cannot fail.
    let _ = write!(out, "launch {launch}: {} ", kernel.kind());
    if let Kernel::Gemm(g) = kernel {
        let side = |t: bool, s: &str| if t { format!("{s}ᵀ") } else { s.to_owned() };
        let batch = if g.batch == 1 { String::new() } else { format!("{} × ", g.batch) };
        let _ = write!(
            out,
            "{} {} × {} ({batch}{}×{}×{}) ",
            g.format,
            side(g.ta, name(g.a)),
            side(g.tb, name(g.b)),
            g.m,
            g.n,
            g.k
        );
    }
    let _ = writeln!(out, "over {:?} × {:?}", body.outer, body.inner);
    for (r, inst) in body.tape.iter().enumerate() {
        let _ = writeln!(out, "  r{r} = {}", describe(inst, body, &name));
    }
    for s in &body.stores {
        let _ = writeln!(out, "  {}: {} = r{}", name(s.buffer), s.format, s.reg);
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
            )
        };
        format!("{}: {}{at}", name(l.buffer), l.format)
    };
    match inst {
        Inst::Load(i) => load(*i),
        Inst::Const(c) => c.to_string(),
        Inst::Position(a) => format!("position {a}"),
        Inst::Unary(u, a) => format!("{} r{a}", u.name()),
        Inst::Binary(b, x, y) => format!("{} r{x} r{y}", b.name()),
        Inst::Select(c, x, y) => format!("select r{c} r{x} r{y}"),
        Inst::Reduce(k, a) => format!("{} r{a} over inner", k.name()),
        Inst::Round(f, a) => format!("round {f} r{a}"),
        Inst::Gather { load: i, index, .. } => format!("gather r{index} of {}", load(*i)),
        Inst::Accumulator => "accumulator".into(),
    }
}
