//! The launch of an attention's kernel: `kernels/attention.cuh`, on tensor cores where they take the operands.

use super::launch::Word;
use crate::format::Format;
use crate::ir::AttentionPart;
use crate::lower::kernel::{Address, Attention, Contraction, Kernel, Strided};
use crate::lower::view::{View, are_wide_rows};

/// What the source of a program with attention begins with.
pub(super) const INCLUDED: &str = "#include \"attention.cuh\"\n";

pub(super) fn is_attention(kernel: &Kernel) -> bool {
    matches!(kernel, Kernel::Product(p) if matches!(p.contraction, Contraction::Attention(_)))
}

/// Rows of a block on tensor cores.
const OWN_ROWS: usize = 128;
/// Threads of a block that computes one row.
const PLAIN_THREADS: u32 = 128;

/// A template's instance and how it is launched.
pub(super) struct Instance {
    pub ty: String,
    pub call: &'static str,
    pub blocks: usize,
    pub threads: u32,
    pub words: Vec<Word>,
}

/// The operands of each part that have a name of their own in the kernel, in the operation's order.
fn held(a: &Attention) -> [Option<&Strided>; 7] {
    let mut out = [None; 7];
    let own = a.part.operands();
    a.operands[..own].iter().enumerate().for_each(|(i, o)| out[i] = Some(o));
    out[6] = a.mask();
    out
}

/// Does the kernel on tensor cores take it? Operands are of one narrow format, rows are whole 16-byte words.
fn is_fast(a: &Attention, format_of: &impl Fn(Address) -> Format) -> bool {
    let multiplied = &a.operands[..a.part.operands().min(4)];
    let is_taken = |o: &Strided| format_of(o.at) == a.format && are_wide_rows(o.at.offset, &o.dims, &o.strides);
    matches!(a.format, Format::F16 | Format::Bf16)
        && multiplied.iter().all(is_taken)
        && Attention::fits_units(a.width, a.value_width)
        && a.spec.scale.get() > 0.0
        && a.queries.max(a.keys) < 1 << 30
}

/// The kernel that computes an attention into `out`, whose view says where each row begins; of an output, also its rows'
/// `statistics`, where these are asked for.
pub(super) fn instance(
    a: &Attention,
    out: Word,
    out_format: Format,
    view: &View,
    statistics: Option<Address>,
    format_of: impl Fn(Address) -> Format,
) -> Instance {
    let operands = held(a);
    let types = operands.map(|o| o.map(|o| format_of(o.at).c_type()));
    let [q, k, v, g, lse, delta, mask] = types;
    let some = |t: Option<&'static str>| t.unwrap_or("float");
    let part = match a.part {
        AttentionPart::Output => "OUTPUT",
        AttentionPart::Lse => "LSE",
        AttentionPart::GradQ => "GRAD_Q",
        AttentionPart::GradK => "GRAD_K",
        AttentionPart::GradV => "GRAD_V",
    };
    let rounded = if a.format.is_low() { a.format.c_type() } else { "float" };
    let (d, e) = (a.width, a.value_width);
    let formats = [some(q), some(k), some(v), some(g), some(lse), some(delta), mask.unwrap_or("none"), rounded];
    let ty = format!("Attention<{}, {}, {part}, {d}, {e}, {}>", formats.join(", "), out_format.c_type(), a.spec.causal);
    let mut words: Vec<Word> = operands.iter().map(|o| o.map_or(Word::Number(0), |o| Word::Buffer(o.at))).collect();
    words.push(out);
    let steps = |strides: &[usize]| [0, 1, 2].map(|i| Word::Number(strides.get(i).copied().unwrap_or(0) as u64));
    operands.iter().for_each(|o| words.extend(steps(o.map_or(&[][..], |o| &o.strides))));
    words.extend(steps(&result_strides(a, view)));
    words.push(Word::Number(a.mask().map_or(0, |m| m.strides[3]) as u64));
    words.extend([a.heads, a.groups, a.queries, a.keys].map(|n| Word::Number(n as u64)));
    words.push(Word::Number(u64::from((a.spec.scale.get() as f32).to_bits())));
    words.push(statistics.map_or(Word::Number(0), Word::Buffer));
    let (heads, rows) = match a.part {
        AttentionPart::GradK | AttentionPart::GradV => (a.groups, a.keys),
        _ => (a.heads, a.queries),
    };
    let fast = is_fast(a, &format_of);
    let each = if fast { OWN_ROWS } else { 1 };
    Instance {
        ty,
        call: if fast { "attention" } else { "attention_plain" },
        blocks: a.batch * heads * rows.div_ceil(each),
        threads: if fast { threads(a) } else { PLAIN_THREADS },
        words,
    }
}

/// Threads of a block on tensor cores: eight warps of 16 rows, or half as many of twice as many.
fn threads(a: &Attention) -> u32 {
    let single = match a.part {
        AttentionPart::GradQ | AttentionPart::GradK => a.width > 64,
        AttentionPart::GradV => a.width <= 64,
        AttentionPart::Output | AttentionPart::Lse => false,
    };
    if single { 256 } else { 128 }
}

/// Elements from one index of the result to the next, by axis; a view leaves out axes of extent 1.
fn result_strides(a: &Attention, view: &View) -> Vec<usize> {
    let mut given = view.strides.iter();
    a.result().iter().map(|&n| if n == 1 { 0 } else { given.next().copied().unwrap_or(0) }).collect()
}
