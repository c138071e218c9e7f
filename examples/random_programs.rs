//! Makes random programs, compiles and runs them, and compares what they compute with the reference evaluator.
//!
//! ```text
//! random_programs COUNT [SEED] [--ways fp32,o1-f16,…] [--device cpu|cuda|nvrtc] [--threads N] [--seconds N]
//! random_programs COUNT [SEED] --onnx DIR
//! random_programs --bytes HEX [--ways …] [--device …] [--search N]
//! ```
//!
//! Prints a line for every program that is wrong, made as small as it gets, with the bytes that make it and how far the
//! plan was searched for, and at the end how many there were of each verdict. Exits 1 if one was wrong. `nvrtc` compiles the
//! CUDA code of each and runs on the CPU. `--seconds`: no program is begun, or made smaller, after so many. `--onnx` writes
//! programs as ONNX files with what must come of them, for other runtimes.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/programs/mod.rs"]
mod programs;

use mantissa::error::Result;
use mantissa::ir::text;
use mantissa::lower::Program as Lowered;
use mantissa::rewrite::RuleSet;
use mantissa::run::cuda::{Cuda, compile};
use mantissa::run::{Backend, Device};
use programs::draw::{random_bytes, shrink};
use programs::judge::{Open, Reference, Verdict, Way, judge, on_cpu};
use programs::{as_onnx, generate};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Candidates tried to make one failure smaller.
const SHRINKING: usize = 500;

fn on_gpu(program: Lowered) -> Result<Box<dyn Device>> {
    Cuda::default().open(program)
}

/// The CPU, once NVRTC has taken the kernels.
fn on_cpu_compiled(program: Lowered) -> Result<Box<dyn Device>> {
    compile(&mantissa::lower::cuda::generate(&program)?.source, "sm_90a")?;
    on_cpu(program)
}

/// What becomes of the program of some bytes, compiled in one way.
fn verdict(bytes: &[u8], way: Way, rules: &RuleSet, open: Open) -> Verdict {
    let made = std::panic::catch_unwind(|| Reference::new(generate(bytes)));
    match made {
        Ok(Ok(Some(reference))) => judge(&reference, way, rules, open),
        Ok(Ok(None)) => Verdict::Meaningless,
        Ok(Err(why)) => Verdict::Wrong(why),
        Err(_) => Verdict::Wrong("panic in the reference".into()),
    }
}

/// Failures of one kind have the same words, whatever the names and numbers.
fn kind(why: &str) -> String {
    why.chars().filter(|c| !c.is_ascii_digit()).take(40).collect()
}

/// The bytes of a program.
fn bytes_of(seed: u64, i: usize) -> Vec<u8> {
    random_bytes(seed.wrapping_mul(1 << 32).wrapping_add(i as u64))
}

/// Writes programs as ONNX files, as many as ONNX has.
fn write_onnx(count: usize, seed: u64, folder: &Path) -> ExitCode {
    let (mut written, mut wrong) = (0, 0);
    for i in 0..count {
        let Ok(Some(reference)) = Reference::new(generate(&bytes_of(seed, i))) else { continue };
        match as_onnx::write(&reference, &folder.join(i.to_string())) {
            Ok(true) => written += 1,
            Ok(false) => {}
            Err(why) => {
                println!("== {why}\n{}", text::print(&reference.program.graph));
                wrong += 1;
            }
        }
    }
    println!("{written} of {count} programs are written, {wrong} wrong");
    if wrong > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let after = |flag: &str| args.iter().position(|a| a == flag).and_then(|i| args.get(i + 1));
    let all: Vec<Way> = std::iter::once(Way::FP32).chain(Way::NARROW).collect();
    let ways: Vec<Way> = match after("--ways") {
        Some(list) => all.iter().copied().filter(|w| list.split(',').any(|n| named(w).starts_with(n))).collect(),
        None => all,
    };
    let open: fn(Lowered) -> Result<Box<dyn Device>> = match after("--device").map(String::as_str) {
        Some("cuda") => on_gpu,
        Some("nvrtc") => on_cpu_compiled,
        _ => on_cpu,
    };
    let rules = RuleSet::builtin().expect("built-in rules load");
    if std::env::var_os("RUST_BACKTRACE").is_none_or(|v| v == "0") {
        std::panic::set_hook(Box::new(|_| {}));
    }
    if let Some(hex) = after("--bytes") {
        let bytes: Vec<u8> =
            (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex")).collect();
        println!("{}", text::print(&generate(&bytes).graph));
        for way in ways.into_iter().map(|w| Way { search: after("--search").and_then(|n| n.parse().ok()), ..w }) {
            println!("{}: {:?}", named(&way), verdict(&bytes, way, &rules, &open));
        }
        return ExitCode::SUCCESS;
    }
    let number = |i: usize, default: usize| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (count, seed) = (number(0, 1000), number(1, 0) as u64);
    if let Some(folder) = after("--onnx") {
        return write_onnx(count, seed, Path::new(folder));
    }
    let trial = Trial {
        ways,
        rules,
        open,
        seed,
        most: after("--seconds").and_then(|n| n.parse().ok()).map_or(Duration::MAX, Duration::from_secs),
        began: Instant::now(),
        tally: Mutex::default(),
        seen: Mutex::default(),
    };
    let next = AtomicUsize::new(0);
    std::thread::scope(|s| {
        let threads = after("--threads").and_then(|n| n.parse().ok());
        for _ in 0..threads.unwrap_or(std::thread::available_parallelism().map_or(1, usize::from)) {
            s.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= count || trial.began.elapsed() > trial.most {
                        return;
                    }
                    if i % 500 == 499 {
                        eprintln!("{} of {count}", i + 1);
                    }
                    trial.program(i);
                }
            });
        }
    });
    trial.report()
}

fn named(w: &Way) -> String {
    format!("{}-{}", w.policy, w.low)
}

/// Programs tried, and what came of them.
struct Trial {
    ways: Vec<Way>,
    rules: RuleSet,
    open: fn(Lowered) -> Result<Box<dyn Device>>,
    seed: u64,
    most: Duration,
    began: Instant,
    /// How many ended how, by way.
    tally: Mutex<BTreeMap<String, usize>>,
    /// How many went wrong, by way and kind.
    seen: Mutex<BTreeMap<String, usize>>,
}

impl Trial {
    /// Tries one program all ways until one is wrong, which is made small and printed, unless it is the fourth of its kind.
    fn program(&self, i: usize) {
        let bytes = bytes_of(self.seed, i);
        for way in self.ways.iter().map(|w| w.of_program(i as u64)) {
            let found = verdict(&bytes, way, &self.rules, &self.open);
            let word = format!("{} {}", named(&way), format!("{found:?}").split('(').next().unwrap_or(""));
            *self.tally.lock().expect("no panic holds it").entry(word).or_insert(0) += 1;
            let Verdict::Wrong(why) = found else { continue };
            if self.is_news(&way, &kind(&why)) {
                self.print_small(bytes.clone(), way, &kind(&why));
            }
            return;
        }
    }

    fn is_news(&self, way: &Way, kind: &str) -> bool {
        let mut seen = self.seen.lock().expect("no panic holds it");
        let n = seen.entry(format!("{} {kind}", named(way))).or_insert(0);
        *n += 1;
        *n <= 3
    }

    fn print_small(&self, bytes: Vec<u8>, way: Way, kind: &str) {
        let mut fails = |b: &[u8]| {
            self.began.elapsed() <= self.most
                && matches!(verdict(b, way, &self.rules, &self.open), Verdict::Wrong(w) if self::kind(&w) == kind)
        };
        let small = shrink(bytes, SHRINKING, &mut fails);
        let hex: String = small.iter().map(|b| format!("{b:02x}")).collect();
        let why = verdict(&small, way, &self.rules, &self.open);
        let graph = text::print(&generate(&small).graph);
        println!("== {} search {:?} {hex}\n{why:?}\n{graph}", named(&way), way.search);
    }

    fn report(self) -> ExitCode {
        let tally = self.tally.into_inner().expect("threads are done");
        for (word, n) in &tally {
            println!("{n:>8}  {word}");
        }
        for (kind, n) in self.seen.into_inner().expect("threads are done") {
            println!("{n:>8}  wrong: {kind}");
        }
        if tally.keys().any(|k| k.ends_with("Wrong")) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}
