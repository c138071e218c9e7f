//! A tape as a C++ functor.

use super::real::Real;
use crate::ir::{Binary, ReduceKind};
use crate::lower::kernel::{Inst, Load, Loop, Reg};
use crate::lower::layout::LoopKind;
use crate::lower::stages::{Pass, Work, passes, work};
use crate::lower::view::View;
use std::collections::BTreeSet;
use std::fmt::Write;

/// A functor under construction.
pub struct Functor<'a> {
    k: &'a Loop,
    kind: LoopKind,
    pub width: usize,
    reductions: Vec<Reg>,
    passes: Vec<Pass>,
    work: Vec<Work>,
    /// What passes take from those before, each in a slot of its own.
    kept: Vec<Reg>,
}

impl<'a> Functor<'a> {
    pub fn new(k: &'a Loop, kind: LoopKind) -> Functor<'a> {
        let reductions = (0..k.tape.len()).filter(|&r| matches!(k.tape[r], Inst::Reduce(..))).collect();
        let work = work(k, kind == LoopKind::Held);
        let kept: BTreeSet<Reg> = work.iter().flat_map(|w| w.taken.iter().copied()).collect();
        let kept = kept.into_iter().collect();
        let mut f = Functor { k, kind, width: 1, reductions, passes: passes(k), work, kept };
        f.width = f.choose_width();
        f
    }

    /// The axes that neighbouring lanes run along: the outer ones of pointwise and column kernels, else the inner ones.
    fn lane_axes(&self) -> std::ops::Range<usize> {
        let o = self.k.outer.len();
        if matches!(self.kind, LoopKind::Pointwise | LoopKind::Column) { 0..o } else { o..o + self.k.inner.len() }
    }

    /// Elements a thread takes at once: as many as 16-byte accesses move, if every access keeps its alignment.
    fn choose_width(&self) -> usize {
        let axes = self.lane_axes();
        let Some(last) = axes.clone().last() else { return 1 };
        let dims: Vec<usize> = self.k.outer.iter().chain(&self.k.inner).copied().collect();
        if self.k.wide
            || self.k.loads.iter().any(|l| !l.view.guards.is_empty())
            || self.k.tape.iter().any(|i| matches!(i, Inst::Gather { .. }))
        {
            return 1;
        }
        let flat = axes.len() == 1;
        let aligned = |v: &View, w: usize| {
            let runs = last < v.dims.len() && v.strides[last] == 1;
            let others = v.strides.iter().enumerate().all(|(a, s)| a == last || s % w == 0);
            !runs || (v.offset.is_multiple_of(w) && others)
        };
        let views = || self.k.loads.iter().map(|l| &l.view).chain(self.k.stores.iter().map(|s| &s.view));
        let size: usize = dims[axes].iter().product();
        let wide = self
            .k
            .loads
            .iter()
            .map(|l| l.format.bytes())
            .chain(self.k.stores.iter().map(|s| s.format.bytes()))
            .max()
            .unwrap_or(4);
        let most = if wide <= 2 && size >= 1 << 14 { 8 } else { 4 };
        if self.kind == LoopKind::Column {
            // Four columns a thread, or one: the last group must be whole, and the block's sums must fit its memory.
            return if self.reductions.len() <= 4
                && size.is_multiple_of(4)
                && dims[last].is_multiple_of(4)
                && views().all(|v| aligned(v, 4))
            {
                4
            } else {
                1
            };
        }
        // Small kernels are better spread over more threads.
        if size < 1 << 12 && self.kind == LoopKind::Pointwise {
            return 1;
        }
        [8, 4, 2]
            .into_iter()
            .find(|&w| {
                w <= most
                    && (flat && self.kept.is_empty() || dims[last].is_multiple_of(w))
                    && views().all(|v| aligned(v, w))
            })
            .unwrap_or(1)
    }

    /// Names of the pointer members: `x0 …` for loads, `y0 …` for stores.
    fn members(&self) -> String {
        let mut out = String::new();
        for (i, l) in self.k.loads.iter().enumerate() {
            let in_place = self.k.stores.iter().any(|s| s.buffer == l.buffer);
            let restrict = if in_place { "" } else { "__restrict__ " };
            let _ = writeln!(out, "    const {}* {restrict}x{i};", l.format.c_type());
        }
        for (i, s) in self.k.stores.iter().enumerate() {
            let _ = writeln!(out, "    {}* y{i};", s.format.c_type());
        }
        let rest = super::kinds::of(self.kind).members();
        rest.iter().for_each(|m| {
            let _ = writeln!(out, "    {};", m.replace("REAL", self.real().name()));
        });
        out + "    u64 first_block;\n"
    }

    /// The struct, under a name of the generator's choice.
    pub fn text(&self, name: &str) -> String {
        let mut out = format!("struct {name} {{\n{}", self.members());
        let _ = writeln!(out, "    static constexpr int WIDTH = {};", self.width);
        if self.kind == LoopKind::Pointwise {
            let all = Work { computed: (0..self.k.tape.len()).collect(), taken: Vec::new() };
            let stores: Vec<usize> = (0..self.k.stores.len()).collect();
            let _ = writeln!(out, "    template <int W> __device__ __forceinline__ void run(u64 i) const {{");
            self.body(&mut out, &all, &stores, &[], 2);
            let _ = writeln!(out, "    }}\n}};");
            return out;
        }
        self.reduction_members(&mut out);
        let real = self.real();
        let _ = writeln!(
            out,
            "    template <int P, int W> __device__ __forceinline__ void element(u64 o, u64 i, const {real}* done, {real}* sum{}) const {{",
            if self.kept.is_empty() { String::new() } else { format!(", {real}* kept") }
        );
        for (p, (pass, work)) in self.passes.iter().zip(&self.work).enumerate() {
            let _ = writeln!(out, "        if constexpr (P == {p}) {{");
            self.body(&mut out, work, &pass.stores, &pass.reductions, 3);
            let _ = writeln!(out, "        }}");
        }
        let _ = writeln!(out, "    }}\n    __device__ __forceinline__ void finish(u64 o, const {real}* done) const {{");
        self.finish(&mut out);
        let _ = writeln!(out, "    }}\n}};");
        out
    }

    fn reduction_members(&self, out: &mut String) {
        let live = self.passes.iter().filter(|p| p.is_live()).count();
        let kind = |r: Reg| if let Inst::Reduce(k, _) = self.k.tape[r] { k } else { ReduceKind::Sum };
        let _ = writeln!(out, "    static constexpr int PASSES = {live}, SUMS = {};", self.reductions.len());
        if !self.kept.is_empty() {
            let _ = writeln!(out, "    static constexpr int KEPT = {};", self.kept.len());
        }
        let per = |f: &dyn Fn(usize, ReduceKind) -> String| {
            let cases = self.reductions.iter().enumerate().map(|(s, &r)| f(s, kind(r)));
            cases.collect::<Vec<_>>().join(" : ")
        };
        let chain = |f: &dyn Fn(ReduceKind) -> String| {
            let n = self.reductions.len();
            per(&|s, k| if s + 1 == n { f(k) } else { format!("s == {s} ? {}", f(k)) })
        };
        let real = self.real();
        let identity = chain(&|k| real.number(k.identity()));
        let combine = chain(&|k| match k {
            ReduceKind::Sum | ReduceKind::Mean => "a + b".into(),
            ReduceKind::Max => "maximum(a, b)".into(),
            ReduceKind::Min => "minimum(a, b)".into(),
            ReduceKind::Any => real.binary(Binary::Or, "a", "b"),
            ReduceKind::Prod => "a * b".into(),
        });
        let settle = chain(&|k| if k == ReduceKind::Mean { format!("x / {real}(n)") } else { "x".into() });
        let n = self.reductions.len();
        let pass_of = self.reductions.iter().enumerate().map(|(s, r)| {
            let pass = self.passes.iter().position(|p| p.reductions.contains(r)).unwrap_or(0);
            if s + 1 == n { pass.to_string() } else { format!("s == {s} ? {pass}") }
        });
        let pass_of = pass_of.collect::<Vec<_>>().join(" : ");
        let head = "    static __device__ __forceinline__ constexpr";
        let _ = writeln!(out, "    using Real = {real};");
        let _ = writeln!(out, "    static __device__ __forceinline__ {real} identity(int s) {{ return {identity}; }}");
        let _ = writeln!(
            out,
            "    static __device__ __forceinline__ {real} combine(int s, {real} a, {real} b) {{ return {combine}; }}"
        );
        let _ = writeln!(out, "{head} int pass_of(int s) {{ return {pass_of}; }}");
        let _ =
            writeln!(out, "    __device__ __forceinline__ {real} settle(int s, {real} x) const {{ return {settle}; }}");
    }

    /// Operands of what is wanted, but for what finished reductions already hold.
    fn close(&self, mut want: Vec<bool>) -> Vec<Reg> {
        for r in (0..want.len()).rev() {
            if want[r] && !matches!(self.k.tape[r], Inst::Reduce(..)) {
                self.k.tape[r].operands().iter().for_each(|&x| want[x] = true);
            }
        }
        (0..want.len()).filter(|&r| want[r]).collect()
    }

    /// Loads, one loop over the lanes, stores.
    fn body(&self, out: &mut String, work: &Work, stores: &[usize], reductions: &[Reg], depth: usize) {
        let pad = "    ".repeat(depth);
        self.indices(out, &pad);
        for &r in &work.computed {
            if let Inst::Load(l) = self.k.tape[r] {
                self.vector_load(out, &pad, l);
            }
        }
        for &s in stores {
            let _ = writeln!(out, "{pad}{} z{s}[W];", self.real());
        }
        let _ = writeln!(out, "#pragma unroll\n{pad}for (int w = 0; w < W; ++w) {{");
        let slot = |r: Reg| self.kept.iter().position(|&k| k == r);
        for (r, slot) in work.taken.iter().filter_map(|&r| Some((r, slot(r)?))) {
            let _ = writeln!(out, "{pad}    const {} r{r} = kept[{slot} * W + w];", self.real());
        }
        for &r in &work.computed {
            self.positions(out, &format!("{pad}    "), r);
            let _ = writeln!(out, "{pad}    const {} r{r} = {};", self.real(), self.expression(r));
            if let Some(slot) = slot(r) {
                let _ = writeln!(out, "{pad}    kept[{slot} * W + w] = r{r};");
            }
        }
        for &r in reductions {
            if let Inst::Reduce(_, x) = self.k.tape[r] {
                let s = self.sum(r);
                let at = if self.kind == LoopKind::Column { format!("{s} * W + w") } else { s.to_string() };
                let _ = writeln!(out, "{pad}    sum[{at}] = combine({s}, sum[{at}], r{x});");
            }
        }
        for &s in stores {
            let _ = writeln!(out, "{pad}    z{s}[w] = r{};", self.k.stores[s].reg);
        }
        let _ = writeln!(out, "{pad}}}");
        for &s in stores {
            let view = &self.k.stores[s].view;
            let (at, stride) = self.address(view);
            let _ = match stride {
                1 if !self.k.wide => writeln!(out, "{pad}store<W>(y{s} + {at}, z{s});"),
                stride => writeln!(
                    out,
                    "{pad}for (int w = 0; w < W; ++w) y{s}[{at} + w * {stride}] = Narrow<{}>::of(z{s}[w]);",
                    self.k.stores[s].format.c_type()
                ),
            };
        }
    }

    /// The type of registers.
    fn real(&self) -> Real {
        Real { wide: self.k.wide }
    }

    fn sum(&self, r: Reg) -> usize {
        self.reductions.iter().position(|&x| x == r).unwrap_or(0)
    }

    /// Declares an index for every axis: `a0 …`, from the flat indices `o` and `i`.
    fn indices(&self, out: &mut String, pad: &str) {
        let o = self.k.outer.len();
        let groups: [(&str, std::ops::Range<usize>); 2] = if self.kind == LoopKind::Pointwise {
            [("i", 0..o), ("0", o..o)]
        } else {
            [("o", 0..o), ("i", o..o + self.k.inner.len())]
        };
        // 32-bit division is several times cheaper than 64-bit.
        let reach = |v: &View| v.dims.iter().zip(&v.strides).map(|(d, s)| d * s).sum::<usize>();
        let furthest = self
            .k
            .loads
            .iter()
            .map(|l| reach(&l.view))
            .chain(self.k.stores.iter().map(|s| reach(&s.view)))
            .max()
            .unwrap_or(0);
        let small = furthest.max(self.k.outer_size() * self.k.inner_size().max(1)) < 1 << 31;
        let index = if small && self.k.outer.len() + self.k.inner.len() > 1 { "u32" } else { "u64" };
        for (flat, axes) in groups {
            let mut rest = if flat == "0" || index == "u64" { flat.to_owned() } else { format!("u32({flat})") };
            for a in axes.clone().rev() {
                let dim = if a < o { self.k.outer[a] } else { self.k.inner[a - o] };
                if a == axes.start {
                    let _ = writeln!(out, "{pad}const {index} a{a} = {rest};");
                } else {
                    let _ = writeln!(out, "{pad}const {index} a{a} = {rest} % {dim};");
                    rest = format!("{rest} / {dim}");
                }
            }
        }
    }

    /// The address of lane 0 from the view's first element, which its pointer points at, and how far apart lanes are.
    fn address(&self, v: &View) -> (String, usize) {
        let mut terms = Vec::new();
        for (a, &s) in v.strides.iter().enumerate() {
            match s {
                0 => {}
                1 => terms.push(format!("a{a}")),
                _ => terms.push(format!("a{a} * {s}")),
            }
        }
        let lane = self.lane_axes().last().filter(|&a| a < v.strides.len()).map_or(0, |a| v.strides[a]);
        (if terms.is_empty() { "0".into() } else { terms.join(" + ") }, lane)
    }

    fn vector_load(&self, out: &mut String, pad: &str, l: usize) {
        let load = &self.k.loads[l];
        if !load.view.guards.is_empty() {
            return;
        }
        let (at, stride) = self.address(&load.view);
        let _ = match stride {
            0 => writeln!(out, "{pad}const {} v{l} = {}(x{l}[{at}]);", self.real(), self.real().widen()),
            1 if !self.k.wide => writeln!(out, "{pad}float v{l}[W];\n{pad}load<W>(x{l} + {at}, v{l});"),
            s => writeln!(
                out,
                "{pad}{} v{l}[W];\n{pad}for (int w = 0; w < W; ++w) v{l}[w] = {}(x{l}[{at} + w * {s}]);",
                self.real(),
                self.real().widen()
            ),
        };
    }

    fn expression(&self, r: Reg) -> String {
        match &self.k.tape[r] {
            Inst::Load(l) => self.loaded(*l),
            Inst::Const(c) => self.real().number(c.get()),
            Inst::Position(a) => {
                let lane = if self.lane_axes().last() == Some(*a) { " + w" } else { "" };
                format!("{}(a{a}{lane})", self.real())
            }
            Inst::Random { at, seed, step, salt } => {
                let (at, lane) = self.address(at);
                format!("uniform(u64({at} + w * {lane}), u32(r{step}), u32(r{seed}), {salt}u)")
            }
            Inst::Unary(u, a) => self.real().unary(*u, &format!("r{a}")),
            Inst::Binary(b, x, y) => self.real().binary(*b, &format!("r{x}"), &format!("r{y}")),
            Inst::Select(c, x, y) => format!("r{c} != {} ? r{x} : r{y}", self.real().number(0.0)),
            Inst::Reduce(..) => format!("done[{}]", self.sum(r)),
            Inst::Round(f, x) => format!("round_to<{}>(r{x})", f.c_type()),
            Inst::Gather { load, index, extent, stride } => {
                let (at, lane) = self.address(&self.k.loads[*load].view);
                format!("{}(x{load}[{at} + w * {lane} + resolve(r{index}, {extent}) * {stride}])", self.real().widen())
            }
            Inst::Accumulator => unreachable!("the accumulator is read from memory"),
        }
    }

    fn loaded(&self, l: usize) -> String {
        let load: &Load = &self.k.loads[l];
        let (at, stride) = self.address(&load.view);
        let Some(first) = load.view.guards.first() else {
            return if stride == 0 { format!("v{l}") } else { format!("v{l}[w]") };
        };
        let (mut inside, mut moved) = (Vec::new(), String::new());
        for (i, g) in load.view.guards.iter().enumerate() {
            let p = format!("p{l}_{i}");
            inside.push(format!("{p} >= 0 && {p} < {}", g.extent * g.step));
            let steps = if g.step > 1 {
                inside.push(format!("{p} % {} == 0", g.step));
                format!("{p} / {}", g.step)
            } else {
                p
            };
            let _ = write!(moved, " + {steps} * {}", g.stride);
        }
        format!(
            "{} ? {}(x{l}[{at}{moved}]) : {}",
            inside.join(" && "),
            self.real().widen(),
            self.real().number(first.fill.get())
        )
    }

    /// Declares the positions of a guarded load, `p<load>_<guard>`.
    fn positions(&self, out: &mut String, pad: &str, r: Reg) {
        let Inst::Load(l) = self.k.tape[r] else { return };
        for (i, g) in self.k.loads[l].view.guards.iter().enumerate() {
            let terms: String = g.terms.iter().map(|(a, c)| format!(" + {c} * i64(a{a})")).collect();
            let _ = writeln!(out, "{pad}const i64 p{l}_{i} = {}{terms};", g.offset);
        }
    }

    /// Scalars after the last pass, and their stores.
    fn finish(&self, out: &mut String) {
        let stores: Vec<usize> = (0..self.k.stores.len()).filter(|&s| !self.k.stores_elements(s)).collect();
        if stores.is_empty() {
            return;
        }
        let mut want = vec![false; self.k.tape.len()];
        stores.iter().for_each(|&s| want[self.k.stores[s].reg] = true);
        let pad = "        ";
        let mut axes = String::new();
        self.indices(&mut axes, pad);
        // Only outer indices exist here.
        let outer: Vec<&str> = axes.lines().filter(|l| !l.contains("= i") && !l.contains("u32(i)")).collect();
        outer.iter().for_each(|l| {
            let _ = writeln!(out, "{l}");
        });
        let _ = writeln!(out, "{pad}constexpr int w = 0;\n{pad}(void)w;");
        for r in self.close(want) {
            self.positions(out, pad, r);
            let value = match &self.k.tape[r] {
                Inst::Load(l) if self.k.loads[*l].view.guards.is_empty() => {
                    format!("{}(x{l}[{}])", self.real().widen(), self.address(&self.k.loads[*l].view).0)
                }
                _ => self.expression(r),
            };
            let _ = writeln!(out, "{pad}const {} r{r} = {value};", self.real());
        }
        for s in stores {
            let store = &self.k.stores[s];
            let _ = writeln!(
                out,
                "{pad}y{s}[{}] = Narrow<{}>::of(r{});",
                self.address(&store.view).0,
                store.format.c_type(),
                store.reg
            );
        }
    }
}
