//! The kernels that count what buffers hold (`kernels/spread.cuh`): one for each format, whatever program is watched.

use crate::format::{Format, Spread};

/// 8-byte words of a buffer's table.
pub const WORDS: usize = 4 + Spread::OCTAVES;

const FORMATS: [Format; 4] = [Format::F64, Format::F32, Format::F16, Format::Bf16];

/// What the kernel for a format is called, if there is one.
pub fn spread_kernel(format: Format) -> Option<String> {
    FORMATS.contains(&format).then(|| format!("spread_{}", format.c_type()))
}

/// The source of all of them.
pub fn spread_source() -> String {
    let kernel = |f: &Format| {
        let t = f.c_type();
        format!(
            "extern \"C\" __global__ void __launch_bounds__(256) spread_{t}(const SpreadOf<{t}> k) {{ spread(k); }}\n"
        )
    };
    let check = format!("static_assert(4 + OCTAVES == {WORDS}, \"what tables are read by\");\n");
    format!(
        "#include \"spread.cuh\"\nusing namespace mantissa;\n{check}{}",
        FORMATS.iter().map(kernel).collect::<String>()
    )
}

/// What a table says.
pub fn spread_of(table: &[u64]) -> Spread {
    let bits = |word: u64| u32::try_from(word).expect("the bits of an f32");
    Spread::counted(table[0], table[1], f32::INFINITY.to_bits() - bits(table[2]), bits(table[3]), &table[4..])
}
