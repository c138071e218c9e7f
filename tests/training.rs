//! Training on the CPU: accuracy, determinism, loss scaling, skipped steps, checkpoints.

mod common;

use common::{MODELS, compile, feed, initialise_all};
use mantissa::data::{self, Source};
use mantissa::format::Format;
use mantissa::ir::verify;
use mantissa::lower::lower;
use mantissa::model::{Checkpoint, Model};
use mantissa::plan::Policy;
use mantissa::rewrite::RuleSet;
use mantissa::run::Device;
use mantissa::run::cpu::{Cpu, CpuRunner};
use mantissa::train::{Compiled, EpochReport, Place, Progress, Run, RunFile, Seen, Session, names, train};
use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;

struct Digits {
    compiled: Compiled,
    train: data::Dataset,
    test: data::Dataset,
}

fn digits(policy: Policy, low: Format) -> Digits {
    digits_by("mlp.mir", policy, low)
}

fn digits_by(model: &str, policy: Policy, low: Format) -> Digits {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits");
    let file = RunFile::read(&dir.join("run.toml"), &[]).unwrap();
    let load = |s: &Source| data::load(&s.relative_to(&dir), file.data.scale).unwrap();
    let train = load(&file.data.train);
    let mut settings = file.settings(train.samples);
    (settings.policy, settings.low) = (policy, low);
    settings.total_steps = 44 * 24;
    let model = Model::read(&dir.join(model)).unwrap();
    let compiled = settings.compile(&model, &RuleSet::builtin().unwrap(), None).unwrap();
    Digits { compiled, train, test: load(file.data.test.as_ref().unwrap()) }
}

fn accuracy(d: &Digits, epochs: usize) -> f64 {
    let mut s = Session::new(d.compiled.clone(), 0, &Cpu).unwrap();
    for _ in 0..epochs {
        s.train_epoch(&d.train, |_| {}).unwrap();
    }
    s.evaluate(&d.test).unwrap().unwrap().accuracy.unwrap()
}

/// A loop over the rows of each image.
#[test]
fn digits_are_learnt_row_by_row() {
    for (policy, low) in [(Policy::Fp32, Format::F16), (Policy::O1, Format::F16), (Policy::O1, Format::Bf16)] {
        let found = accuracy(&digits_by("gru.mir", policy, low), 24);
        assert!(found >= 0.92, "{policy} {low}: {found}");
    }
}

#[test]
fn digits_are_learnt_in_every_format() {
    let full = accuracy(&digits(Policy::Fp32, Format::F16), 24);
    assert!(full >= 0.97, "fp32: {full}");
    for (policy, low) in [(Policy::O1, Format::F16), (Policy::O1, Format::Bf16), (Policy::O2, Format::F16)] {
        let low_accuracy = accuracy(&digits(policy, low), 24);
        assert!(low_accuracy >= 0.97, "{policy} {low}: {low_accuracy}");
        assert!((low_accuracy - full).abs() <= 0.006 + 1e-9, "{policy} {low}: {low_accuracy} against {full}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_and_a_resumed_run_too() {
    let d = digits(Policy::O1, Format::F16);
    let run = |epochs: usize| {
        let mut s = Session::new(d.compiled.clone(), 5, &Cpu).unwrap();
        for _ in 0..epochs {
            s.train_epoch(&d.train, |_| {}).unwrap();
        }
        s.checkpoint().unwrap()
    };
    let whole = run(3);
    assert_eq!(whole, run(3));
    let mut resumed = Session::new(d.compiled.clone(), 0, &Cpu).unwrap();
    resumed.restore(&run(2), Path::new("memory")).unwrap();
    resumed.train_epoch(&d.train, |_| {}).unwrap();
    assert_eq!(resumed.checkpoint().unwrap(), whole);
}

/// Looks for the checkpoint at the end of every epoch, as if the run were interrupted there.
struct Interrupted<'a> {
    dir: &'a Path,
    kept: RefCell<Vec<Checkpoint>>,
}

impl Progress for Interrupted<'_> {
    fn begins(&self, _: &Session, _: usize) {}
    fn seen(&self, _: usize, _: Seen) {}
    fn epoch(&self, _: &EpochReport) {
        self.kept.borrow_mut().extend(Checkpoint::read(&self.dir.join("checkpoint.safetensors")));
    }
    fn ends(&self) {}
}

/// What an interrupted run has kept, it goes on from as if nothing had been.
#[test]
fn an_interrupted_run_has_its_last_epoch() {
    let d = digits(Policy::O1, Format::F16);
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let watch = Interrupted { dir: &whole, kept: RefCell::default() };
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits");
    let run = |epochs| Run { epochs, ..Run::on("digits".into(), Source::find(&dir, "train").unwrap()) };
    let place = |out, resume, keep| Place { device: &Cpu, out: Some(out), force: false, resume, keep };
    train(d.compiled.clone(), &d.train, &run(3), &place(&whole, None, Duration::ZERO), &watch).unwrap();
    let kept = watch.kept.into_inner();
    assert_eq!(kept.iter().map(|c| c.metadata["epoch"].as_str()).collect::<Vec<_>>(), ["1", "2", "3"]);
    let (second, rest) = (folder.path().join("second.safetensors"), folder.path().join("rest"));
    kept[1].write(&second).unwrap();
    let watch = Interrupted { dir: &rest, kept: RefCell::default() };
    let long = Duration::from_secs(1 << 20);
    train(d.compiled, &d.train, &run(3), &place(&rest, Some(&second), long), &watch).unwrap();
    assert!(watch.kept.into_inner().is_empty(), "a short run is written once");
    let read = |dir: &Path| Checkpoint::read(&dir.join("checkpoint.safetensors")).unwrap().tensors;
    assert_eq!(read(&rest), read(&whole));
}

/// All of a device's parameters and state, by name.
fn state(device: &mut CpuRunner, compiled: &Compiled) -> Vec<(String, Vec<u8>)> {
    let g = &compiled.planned.graph;
    let ids = g.sources().filter(|&id| !matches!(g.op(id), mantissa::ir::Op::Input { .. }));
    ids.map(|id| (g.name_of(id).to_owned(), device.read_bytes(g.name_of(id)).unwrap())).collect()
}

#[test]
fn a_skipped_step_leaves_everything_but_the_scaler_as_it_was() {
    let compiled = compile(MODELS[0].1, Policy::O1, Format::F16, |s| s.recipe.clip_norm = Some(1.0));
    let g = &compiled.planned.graph;
    let mut cpu = CpuRunner::new(lower(verify(g).unwrap()).unwrap());
    initialise_all(&mut cpu, g, 3);
    feed(&mut cpu, g, 1, 5);
    cpu.run().unwrap();
    let before = state(&mut cpu, &compiled);
    // A scale that no f16 gradient survives.
    cpu.write(names::SCALE, &[1e30]).unwrap();
    cpu.run().unwrap();
    assert_eq!(cpu.read("overflow").unwrap(), [1.0]);
    assert_eq!(cpu.read(names::SKIPPED).unwrap(), [1.0]);
    assert_eq!(cpu.read(names::SCALE).unwrap(), [5e29]);
    assert_eq!(cpu.read(names::STEP).unwrap(), [1.0], "the schedule did not move");
    for ((name, old), (_, new)) in before.iter().zip(state(&mut cpu, &compiled)) {
        if !name.starts_with("scaler.") && !name.starts_with("log.") {
            assert_eq!(*old, new, "{name} changed in a skipped step");
        }
    }
}

#[test]
fn a_start_at_the_cap_settles() {
    let mut d = digits(Policy::O1, Format::F16);
    let file = RunFile::read(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits/run.toml"),
        &["train.scaler.init=16777216.0".into()],
    )
    .unwrap();
    let mut settings = file.settings(d.train.samples);
    settings.recipe.optimizer = d.compiled.settings.recipe.optimizer.clone();
    let model = Model::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits/mlp.mir")).unwrap();
    d.compiled = settings.compile(&model, &RuleSet::builtin().unwrap(), None).unwrap();
    let mut s = Session::new(d.compiled.clone(), 0, &Cpu).unwrap();
    let mut last = s.train_epoch(&d.train, |_| {}).unwrap();
    for _ in 0..7 {
        last = s.train_epoch(&d.train, |_| {}).unwrap();
    }
    assert!(last.skipped_in_all > 0, "2^24 overflows at first");
    assert!(last.skipped_in_all < 40 && last.scale < 16_777_216.0, "{last:?}");
    assert!(last.loss < 0.5, "{last:?}");
}

/// The scaler's arithmetic over single steps: growth after the interval, hysteresis, floor and cap.
#[test]
fn the_scale_grows_backs_off_and_stays_in_bounds() {
    let compiled = compile(MODELS[0].1, Policy::O1, Format::F16, |s| {
        (s.recipe.scaler.init, s.recipe.scaler.interval, s.recipe.scaler.hysteresis) = (8.0, 3, 2);
        (s.recipe.scaler.floor, s.recipe.scaler.cap) = (4.0, 16.0);
    });
    let g = &compiled.planned.graph;
    let mut cpu = CpuRunner::new(lower(verify(g).unwrap()).unwrap());
    initialise_all(&mut cpu, g, 3);
    let mut step = |good: bool| {
        feed(&mut cpu, g, 1, 5);
        if !good {
            let n = g.ty(g.find("x.f16").unwrap()).elements();
            cpu.write("x.f16", &vec![f32::INFINITY; n]).unwrap();
        }
        cpu.run().unwrap();
        cpu.read(names::SCALE).unwrap()[0]
    };
    assert_eq!([step(true), step(true), step(true)], [8.0, 8.0, 16.0], "doubles after three good steps");
    assert_eq!([step(true), step(true), step(true)], [16.0; 3], "the cap holds");
    assert_eq!([step(false), step(false)], [16.0, 8.0], "the first overflow is forgiven");
    assert_eq!([step(false), step(false), step(false)], [4.0; 3], "the floor holds");
    assert_eq!([step(true), step(true), step(true)], [4.0, 4.0, 8.0]);
}

/// A running statistic moves on good steps and stays where it was on a skipped one.
#[test]
fn statistics_are_committed_on_good_steps_only() {
    let source = "model norm { input x: f32[batch, 3] label y: f32[batch, 3] state running: f32[3] = zeros param w: f32[3, 3] = kaiming_uniform \
                  m = mean(x, axes=[0]) p = (x - m) @ w loss = mse(p, y) update running = running * 0.9 + m * 0.1 }";
    // With a scale that overflows f16 gradients at once, the first steps are skipped until it has come down.
    let compiled = compile(source, Policy::O1, Format::F16, |s| s.recipe.scaler.init = 16_777_216.0);
    let graph = compiled.planned.graph.clone();
    let mut cpu = CpuRunner::new(lower(verify(&graph).unwrap()).unwrap());
    initialise_all(&mut cpu, &graph, 3);
    let name = graph.sources().map(|id| graph.name_of(id)).find(|n| *n == "running").unwrap().to_owned();
    cpu.write(&name, &[0.0; 3]).unwrap();
    cpu.write(names::SCALE, &[16_777_216.0]).unwrap();
    cpu.write(names::SKIPPED, &[0.0]).unwrap();
    let (mut skips, mut good) = (0, 0);
    for _ in 0..40 {
        feed(&mut cpu, &graph, 1, 1);
        let (before, skipped) = (cpu.read(&name).unwrap(), cpu.read(names::SKIPPED).unwrap()[0]);
        cpu.run().unwrap();
        let after = cpu.read(&name).unwrap();
        if cpu.read(names::SKIPPED).unwrap()[0] > skipped {
            assert_eq!(before, after, "a skipped step must leave statistics alone");
            skips += 1;
        } else {
            assert_ne!(before, after, "a good step moves statistics");
            good += 1;
        }
    }
    assert!(good > 0 && skips > 0, "{good} good steps, {skips} skipped");
}
