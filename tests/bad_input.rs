//! What the program says to bad input: the exit code, a message that names the place, and nothing half-written.

mod common;

use common::announce;
use npyz::WriterBuilder;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// The work failed.
const FAILED: i32 = 1;
/// The request or a file was wrong.
const WRONG: i32 = 2;

/// Four features, three classes.
const MODEL: &str = "model small {
  input x: f32[batch, 4]
  label y: i64[batch]
  param w: f32[4, 3] = kaiming_uniform
  param b: f32[3] = zeros
  loss = cross_entropy(x @ w + b, y)
}
";

/// As `MODEL`, with one layer more.
const OTHER_MODEL: &str = "model deep {
  input x: f32[batch, 4]
  label y: i64[batch]
  param w: f32[4, 5] = kaiming_uniform
  param v: f32[5, 3] = kaiming_uniform
  loss = cross_entropy(relu(x @ w) @ v, y)
}
";

const TRAIN: &str = "train small.mir --data data.csv --batch 4 --epochs 1 --device cpu --out run";

/// A temporary directory with the good files in it, where the program runs.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        place.put("small.mir", MODEL);
        place.put("deep.mir", OTHER_MODEL);
        place.put("data.csv", csv(&[]));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), content).unwrap();
    }

    /// Every file and directory, with the files' content.
    fn snapshot(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        fn walk(dir: &Path, out: &mut BTreeMap<PathBuf, Option<Vec<u8>>>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, out);
                    out.insert(path, None);
                } else {
                    let content = fs::read(&path).unwrap();
                    out.insert(path, Some(content));
                }
            }
        }
        let mut out = BTreeMap::new();
        walk(self.dir.path(), &mut out);
        out
    }

    /// Runs the program here, with temporary files here too; the command line is split at blanks.
    fn run(&self, line: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mantissa"));
        command.args(line.split_whitespace()).current_dir(self.dir.path()).env("TMPDIR", self.dir.path());
        command.output().unwrap()
    }

    /// Runs the program, which must succeed, and returns what it prints.
    fn succeeds(&self, line: &str) -> String {
        let out = self.run(line);
        assert!(out.status.success(), "`mantissa {line}` should work, but:\n{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Runs the program, which must exit with `code`, say all of `parts` on stderr and leave every file as it was.
    /// A part may give alternatives: `one|another`.
    fn refuses(&self, line: &str, code: i32, parts: &[&str]) {
        let before = self.snapshot();
        let out = self.run(line);
        let said = String::from_utf8_lossy(&out.stderr);
        let mut faults = String::new();
        if out.status.code() != Some(code) {
            writeln!(faults, "exit code {:?} instead of {code}", out.status.code()).unwrap();
        }
        for part in parts.iter().filter(|p| !p.split('|').any(|p| said.contains(p))) {
            writeln!(faults, "the message lacks `{part}`").unwrap();
        }
        let after = self.snapshot();
        for path in after.keys().filter(|p| !before.contains_key(*p)) {
            writeln!(faults, "left behind: {}", path.display()).unwrap();
        }
        for path in before.keys().filter(|p| before.get(*p) != after.get(*p)) {
            writeln!(faults, "changed or removed: {}", path.display()).unwrap();
        }
        assert!(faults.is_empty(), "`mantissa {line}`:\n{faults}stderr was:\n{said}");
    }
}

/// Eight samples of four features and a label below 3, with some fields (row, column) replaced.
fn csv(replaced: &[(usize, usize, &str)]) -> String {
    let mut text = "a,b,c,d,label\n".to_owned();
    for row in 0..8 {
        let mut fields: Vec<String> = (0..4).map(|i| format!("{}", (row * 4 + i) as f32 / 32.0)).collect();
        fields.push((row % 3).to_string());
        for (_, column, field) in replaced.iter().filter(|r| r.0 == row) {
            fields[*column] = (*field).to_owned();
        }
        text += &(fields.join(",") + "\n");
    }
    text
}

/// The bytes of a `.npz` with arrays `x` (rows of `width`) and `y`.
fn npz(x: &[f32], width: usize, y: &[i64]) -> Vec<u8> {
    npz_of(&[("x", width, x)], y)
}

/// The bytes of a `.npz` with some arrays, by name and width of a row, and `y`.
fn npz_of(features: &[(&str, usize, &[f32])], y: &[i64]) -> Vec<u8> {
    fn array<T: npyz::AutoSerialize + Copy>(
        npz: &mut npyz::npz::NpzWriter<fs::File>,
        name: &str,
        shape: &[u64],
        values: &[T],
    ) {
        let mut writer = npz.array(name, Default::default()).unwrap().default_dtype().shape(shape).begin_nd().unwrap();
        writer.extend(values.iter().copied()).unwrap();
        writer.finish().unwrap();
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut npz = npyz::npz::NpzWriter::new(file.reopen().unwrap());
    for (name, width, values) in features {
        array(&mut npz, name, &[(values.len() / width) as u64, *width as u64], values);
    }
    array(&mut npz, "y", &[y.len() as u64], y);
    drop(npz);
    fs::read(file.path()).unwrap()
}

/// Just enough of protobuf and of ONNX's messages to write small models.
mod onnx {
    fn varint(mut value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
        out
    }

    fn int(field: u64, value: u64) -> Vec<u8> {
        [varint(field << 3), varint(value)].concat()
    }

    /// A length-delimited field: text, bytes or a message.
    fn part(field: u64, content: impl AsRef<[u8]>) -> Vec<u8> {
        let content = content.as_ref();
        [varint(field << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
    }

    pub fn node(name: &str, op: &str, inputs: &[&str], output: &str) -> Vec<u8> {
        let inputs: Vec<u8> = inputs.iter().flat_map(|i| part(1, i)).collect();
        part(1, [inputs, part(2, output), part(3, name), part(4, op)].concat())
    }

    fn tensor(name: &str, dims: &[u64], data: &[u8]) -> Vec<u8> {
        let dims: Vec<u8> = dims.iter().flat_map(|&d| int(1, d)).collect();
        part(5, [dims, int(2, 1), part(8, name), data.to_vec()].concat())
    }

    /// An f32 initialiser of ones.
    pub fn ones(name: &str, dims: &[u64]) -> Vec<u8> {
        let raw = 1f32.to_le_bytes().repeat(dims.iter().product::<u64>() as usize);
        tensor(name, dims, &part(9, raw))
    }

    /// An f16 initialiser of zeros.
    pub fn halves(name: &str, dims: &[u64]) -> Vec<u8> {
        let sizes: Vec<u8> = dims.iter().flat_map(|&d| int(1, d)).collect();
        let raw = vec![0; 2 * dims.iter().product::<u64>() as usize];
        part(5, [sizes, int(2, 10), part(8, name), part(9, raw)].concat())
    }

    /// An f32 initialiser whose values lie in `weights.bin` at a byte offset.
    pub fn external(name: &str, dims: &[u64], offset: u64) -> Vec<u8> {
        let entry = |key: &str, value: &str| part(13, [part(1, key), part(2, value)].concat());
        tensor(
            name,
            dims,
            &[entry("location", "weights.bin"), entry("offset", &offset.to_string()), int(14, 1)].concat(),
        )
    }

    /// A `Constant` of one integer without an output.
    pub fn constant_without_output(name: &str) -> Vec<u8> {
        let attribute = [part(1, "value_int"), int(3, 1), int(20, 2)].concat();
        part(1, [part(3, name), part(4, "Constant"), part(5, attribute)].concat())
    }

    fn value(name: &str, width: u64) -> Vec<u8> {
        let shape = [part(1, part(2, "batch")), part(1, int(1, width))].concat();
        let ty = part(1, [int(1, 1), part(2, shape)].concat());
        [part(1, name), part(2, ty)].concat()
    }

    /// A model of nodes and initialisers from `x`, f32[batch, 4], to `out`, f32[batch, 3].
    pub fn model(parts: &[Vec<u8>]) -> Vec<u8> {
        of_opset(20, parts)
    }

    /// The same in another opset.
    pub fn of_opset(opset: u64, parts: &[Vec<u8>]) -> Vec<u8> {
        let graph =
            [parts.concat(), part(2, "main_graph"), part(11, value("x", 4)), part(12, value("out", 3))].concat();
        [int(1, 8), part(7, graph), part(8, int(2, opset))].concat()
    }
}

const PLAN_ONNX: &str = "plan net.onnx --loss cross_entropy --batch 4 -o plan.json";

fn good_onnx() -> Vec<u8> {
    onnx::model(&linear())
}

fn linear() -> [Vec<u8>; 2] {
    [onnx::node("fc", "MatMul", &["x", "w"], "out"), onnx::ones("w", &[4, 3])]
}

fn refuses_onnx(bytes: impl AsRef<[u8]>, parts: &[&str]) {
    let p = Place::new();
    p.put("net.onnx", bytes);
    p.refuses(PLAN_ONNX, WRONG, &[&["net.onnx"], parts].concat());
}

/// What the cases below spoil one thing of does work whole.
#[test]
fn good_input_is_taken() {
    let p = Place::new();
    p.put("net.onnx", good_onnx());
    p.put("data.npz", npz(&[0.5; 32], 4, &[0, 1, 2, 0, 1, 2, 0, 1]));
    p.succeeds(PLAN_ONNX);
    p.succeeds("plan small.mir --batch 4 -o small.json");
    p.succeeds(&format!("{TRAIN} --plan small.json"));
    p.succeeds("train small.mir --data data.csv --batch 4 --epochs 2 --device cpu --out more --resume run/checkpoint.safetensors");
    p.succeeds("train small.mir --data data.npz --batch 4 --epochs 1 --device cpu --out npz");
}

/// Each input is fed from the array of its name; what there is none for is named, with what there is.
#[test]
fn several_inputs() {
    let p = Place::new();
    let model = "model two { input left: f32[batch, 3] input right: f32[batch, 2] label y: i64[batch]
      param w: f32[3, 4] = kaiming_uniform param v: f32[2, 4] = kaiming_uniform
      logits = left @ w + right @ v loss = cross_entropy(logits, y) }";
    p.put("two.mir", model);
    // Only `right` tells the classes apart.
    let labels: Vec<i64> = (0..64).map(|i| i % 4).collect();
    let right: Vec<f32> =
        labels.iter().flat_map(|&l| [(l / 2) as f32 * 4.0 - 2.0, (l % 2) as f32 * 4.0 - 2.0]).collect();
    let left = vec![0.1; 64 * 3];
    p.put("both.npz", npz_of(&[("right", 2, &right), ("left", 3, &left)], &labels));
    p.put("one.npz", npz_of(&[("left", 3, &left)], &labels));
    p.put("other.npz", npz_of(&[("left", 3, &left), ("rihgt", 2, &right)], &labels));
    let train = |data: &str| {
        format!(
            "train two.mir --data {data} --test both.npz --batch 16 --epochs 40 --lr 0.1 --device cpu --out {data}.run"
        )
    };
    let said = p.succeeds(&train("both.npz"));
    assert!(said.contains("100.00 %"), "{said}");
    p.refuses(&train("one.npz"), WRONG, &["one.npz", "right"]);
    p.refuses(&train("other.npz"), WRONG, &["other.npz", "`right`", "rihgt"]);
    // An input called `x` takes none of the others' arrays from them; what is beside it is not looked at unless it is fed.
    p.put("two.mir", model.replace("left", "x"));
    let nothing = [f32::NAN; 64];
    p.put("beside.npz", npz_of(&[("right", 2, &right), ("x", 3, &left), ("nothing", 1, &nothing)], &labels));
    let train = |data: &str| train(data).replace("both.npz", data);
    let said = p.succeeds(&train("beside.npz"));
    assert!(said.contains("100.00 %"), "{said}");
    p.put("short.npz", npz_of(&[("right", 2, &right[..64]), ("x", 3, &left)], &labels));
    p.refuses(&train("short.npz"), WRONG, &["short.npz", "`right`", "has x"]);
    let mut spoilt = right.clone();
    spoilt[33] = f32::NAN;
    p.put("nan.npz", npz_of(&[("right", 2, &spoilt), ("x", 3, &left)], &labels));
    p.refuses(&train("nan.npz"), WRONG, &["nan.npz", "feature of `right` 1 of sample 16 is NaN"]);
    p.put("alone.npz", npz_of(&[("feet", 4, &[0.5; 64]), ("x", 4, &[0.5; 64])], &[0; 16]));
    p.succeeds("train small.mir --data alone.npz --batch 4 --epochs 1 --device cpu --out alone");
}

/// A model's file in mixed precision is written beside it, from one in f32, and says what is missing.
#[test]
fn mixed_precision_files() {
    let p = Place::new();
    p.put("net.onnx", good_onnx());
    p.put("low.onnx", onnx::model(&[onnx::node("fc", "MatMul", &["x", "w"], "out"), onnx::halves("w", &[4, 3])]));
    p.put("x.npz", npz_of(&[("x", 4, &[0.5; 64])], &[0; 16]));
    p.put("there.onnx", "something");
    let plan = "plan net.onnx --inference --batch 4";
    let said = p.succeeds(&format!("{plan} --policy greedy --calibrate x.npz --onnx mixed.onnx"));
    assert!(said.contains("off by") && said.contains("1 of 1 nodes in narrow formats, 2 casts"), "{said}");
    p.succeeds("plan mixed.onnx --inference --batch 4 --policy fp32");
    p.refuses(&format!("{plan} --onnx there.onnx"), WRONG, &["there.onnx", "--force"]);
    p.refuses(&format!("{plan} --onnx net.onnx --force"), WRONG, &["net.onnx", "the model itself"]);
    p.refuses(&format!("{plan} --calibrate x.npz --budget 10% --policy auto"), WRONG, &["rel=1e-2", "outputs"]);
    p.refuses(&format!("{plan} --calibrate nowhere.npz --onnx new.onnx"), WRONG, &["nowhere.npz"]);
    p.refuses("plan net.onnx --batch 4 --loss mse --onnx new.onnx", WRONG, &["--inference"]);
    p.refuses("plan low.onnx --inference --batch 4 --onnx new.onnx", WRONG, &["low.onnx", "`w`", "f32"]);
    p.refuses("plan small.mir --inference --batch 4 --onnx new.onnx", WRONG, &["small", "mantissa export"]);
    p.refuses("plan small.mir --inference --batch 4 --policy auto --calibrate x.npz", WRONG, &["mantissa export"]);
    let bf16 = plan.to_owned() + " --policy greedy --format bf16 --onnx";
    p.succeeds(&format!("{bf16} bf16.onnx"));
    p.put("old.onnx", onnx::of_opset(12, &linear()));
    p.refuses(&format!("{bf16} new.onnx").replace("net.onnx", "old.onnx"), WRONG, &["old.onnx", "opset", "bf16"]);
}

#[test]
fn onnx_truncated() {
    let bytes = good_onnx();
    refuses_onnx(&bytes[..bytes.len() / 2], &["truncated", "export|copy|again"]);
}

#[test]
fn onnx_empty() {
    refuses_onnx("", &["no graph|empty", "truncated"]);
}

#[test]
fn onnx_unknown_operations_are_one_message() {
    let nodes = [
        onnx::node("spin_a", "Spin", &["x"], "s"),
        onnx::node("fc", "MatMul", &["s", "w"], "t"),
        onnx::node("spin_b", "Spin", &["t"], "out"),
        onnx::ones("w", &[4, 3]),
    ];
    refuses_onnx(onnx::model(&nodes), &["not supported", "Spin × 2: spin_a, spin_b"]);
}

#[test]
fn onnx_cycle() {
    let nodes = [
        onnx::node("one", "Relu", &["b"], "a"),
        onnx::node("two", "Relu", &["a"], "b"),
        onnx::node("three", "Add", &["x", "b"], "out"),
    ];
    refuses_onnx(onnx::model(&nodes), &["cycle", "`one`", "`two`"]);
}

/// A product with a weight in `weights.bin`.
fn external_onnx(dims: &[u64], offset: u64) -> Vec<u8> {
    onnx::model(&[onnx::node("fc", "MatMul", &["x", "w"], "out"), onnx::external("w", dims, offset)])
}

#[test]
fn onnx_missing_external_data() {
    refuses_onnx(external_onnx(&[4, 3], 0), &["`w`", "weights.bin", "o such file|not there", "beside|copy|put|export"]);
}

#[test]
fn onnx_external_data_too_short() {
    let p = Place::new();
    p.put("weights.bin", [0; 20]);
    // The second offset is chosen so that the end of the tensor wraps around.
    for offset in [0, u64::MAX - 7] {
        p.put("net.onnx", external_onnx(&[4, 3], offset));
        p.refuses(PLAN_ONNX, WRONG, &["net.onnx", "`w`", "weights.bin"]);
    }
}

#[test]
fn onnx_absurd_extents() {
    for dims in [&[1 << 62, 4][..], &[1 << 62]] {
        refuses_onnx(external_onnx(dims, 0), &["`w`", "too large"]);
    }
}

#[test]
fn onnx_constant_without_output() {
    refuses_onnx(onnx::model(&[onnx::constant_without_output("lost")]), &["Constant `lost`", "output"]);
}

#[test]
fn onnx_shape_conflict_in_gemm() {
    let nodes = [onnx::node("fc1", "Gemm", &["x", "w", "b"], "out"), onnx::ones("w", &[5, 3]), onnx::ones("b", &[3])];
    refuses_onnx(onnx::model(&nodes), &["net.onnx: Gemm `fc1`: matmul(", "differ: 4 and 5"]);
}

#[test]
fn onnx_shape_conflict_in_matmul() {
    let nodes = [onnx::node("fc2", "MatMul", &["x", "w"], "out"), onnx::ones("w", &[7, 3])];
    refuses_onnx(onnx::model(&nodes), &["net.onnx: MatMul `fc2`: matmul(", "differ: 4 and 7"]);
}

fn refuses_mir(from: &str, to: &str, parts: &[&str]) {
    let p = Place::new();
    assert!(MODEL.contains(from), "`{from}` is to be replaced");
    p.put("bad.mir", MODEL.replace(from, to));
    p.refuses("plan bad.mir -o plan.json", WRONG, &[parts, &["here"]].concat());
}

#[test]
fn mir_syntax_error() {
    refuses_mir("i64[batch]", "i64[batch", &["bad.mir:4:3", "expected", "`]`"]);
}

#[test]
fn mir_undefined_name() {
    refuses_mir("@ w + b, y)", "@ w + b, yy)", &["bad.mir:6:35", "`yy`", "`y` meant"]);
}

#[test]
fn mir_shape_error() {
    refuses_mir("f32[4, 3]", "f32[5, 3]", &["bad.mir:6:24", "differ: 4 and 5"]);
}

/// What an operation does not know is not passed over: `sum(x, axis=1)` would be the sum of everything.
#[test]
fn mir_unknown_attribute() {
    let p = Place::new();
    p.put("a.mir", "model a { input x: f32[batch, 4]  output y = sum(x, axis=1) }");
    p.refuses("plan a.mir --inference", WRONG, &["a.mir:1:46", "no attribute `axis`", "it takes axes, keep"]);
    p.put("b.mir", "model b { input x: f32[batch, 4]  output y = sum(x, axes=[0], axes=[1]) }");
    p.refuses("plan b.mir --inference", WRONG, &["b.mir:1:46", "`axes` is given twice"]);
    p.put("c.mir", "model c { input x: f32[batch, 4]  output y = sum(x, axes=[-3]) }");
    p.refuses("plan c.mir --inference", WRONG, &["c.mir:1:46", "axis -3 is out of range", "rank 2"]);
}

/// What text declares is what is built: nothing is dropped, and nothing of another kind is taken.
#[test]
fn mir_declarations_and_formats() {
    let p = Place::new();
    let body = "input x: f32[4]  input b: bool[4]  input i: i64[4]  input j: i64[2]  input u: f32[2]";
    for (rest, says) in [
        ("input z: f32[4] = ones", "the input `z` comes from data"),
        ("output y = x  output y = b", "the output `y` is defined twice"),
        ("t3 = relu(x)  param t3: f32[4] = zeros", "the name `t3` is defined twice"),
        ("h = x  state h: f32[] = zeros", "the name `h` is defined twice"),
        ("output y = concat(b, i, axis=0)", "does not line up"),
        ("output y = scatter(i, j, u)", "updates are f32, what they go into is i64"),
        ("output y = cross_entropy(reshape(i, dims=[2, 2]), j)", "i64"),
        ("output y = scatter_add(x, i, size=[9, 4])", "size=[9, 4] is not one extent"),
    ] {
        p.put("a.mir", format!("model a {{ {body} {rest} }}"));
        p.refuses("plan a.mir --inference", WRONG, &["a.mir:1:", says]);
    }
}

/// Numbers of a recipe are such that its formulas make sense.
#[test]
fn recipes_that_make_no_sense() {
    let p = Place::new();
    p.put(
        "run.toml",
        "model = \"small.mir\"\n[data]\ntrain = { features = \"data.csv\" }\n[train]\nbatch = 4\nepochs = 1\n",
    );
    for (set, says) in [
        ("train.optimizer={name=\"adamw\",lr=-1}", "`lr` is -1"),
        ("train.optimizer={name=\"adamw\",lr=nan}", "`lr` is NaN"),
        ("train.optimizer={name=\"adamw\",lr=1,beta1=1}", "`beta1` is 1"),
        ("train.optimizer={name=\"adam\",lr=1,beta2=-0.1}", "`beta2` is -0.1"),
        ("train.optimizer={name=\"adam\",lr=1,eps=0}", "`eps` is 0"),
        ("train.optimizer={name=\"sgd\",lr=1,momentum=1}", "`momentum` is 1"),
        ("train.optimizer={name=\"sgd\",lr=1,nesterov=true}", "`nesterov` looks ahead by `momentum`"),
        ("train.optimizer={name=\"sgd\",lr=1,weight_decay=inf}", "`weight_decay` is inf"),
        ("train.clip_norm=-1", "clip_norm is -1"),
        ("train.scaler={init=0}", "scaler: `init`"),
        ("train.scaler={init=0.5}", "scaler: `init` must lie between"),
    ] {
        p.refuses(&format!("train run.toml --device cpu --out run --set {set}"), WRONG, &[says]);
    }
    p.put("plain.mir", MODEL.replace("loss = cross_entropy(x @ w + b, y)", "output z = x @ w + b"));
    let line = TRAIN.replace("small.mir", "plain.mir");
    for (options, says) in [
        ("--loss cross_entropy --class-axis 0", "class_axis 0 is that of the batch"),
        ("--loss huber --huber-delta 0", "huber_delta is 0; it is above 0"),
        ("--loss cross_entropy --label-smoothing 1.5", "label_smoothing is 1.5; it takes 0 to 1"),
    ] {
        p.refuses(&format!("{line} {options}"), WRONG, &[says]);
    }
}

/// Axes are whole numbers that an operand has, and a message says what was written.
#[test]
fn mir_axes() {
    let p = Place::new();
    for (call, says) in [
        ("softmax(x, axis=1.0)", "axis=1.0 is not a whole number"),
        ("softmax(x, axis=-3)", "axis -3 is out of range for an operand of rank 2"),
        ("softmax(sum(x))", "goes along an axis, and a scalar has none"),
        ("sum(x, axes=[-1.5])", "expected a whole number, found `-`"),
        ("slice(x, axis=0, start=-1, stop=2)", "start=-1 is below 0"),
    ] {
        p.put("a.mir", format!("model a {{ input x: f32[batch, 4]  output y = {call} }}"));
        p.refuses("plan a.mir --inference", WRONG, &["a.mir:1:", says]);
    }
}

#[test]
fn mir_loss_of_no_parameter() {
    let p = Place::new();
    p.put(
        "fixed.mir",
        "model m { input x: f32[batch, 4] param w: f32[3] = ones loss = mean(x * x) output w output loss }",
    );
    p.put("data.npz", npz(&[0.5; 32], 4, &[0; 8]));
    // Without a loss scale there is one more sign that may stop a run, and it is no gradient.
    for policy in ["fp32", "o1"] {
        let args =
            format!("train fixed.mir --data data.npz --batch 4 --epochs 1 --device cpu --out run --policy {policy}");
        p.refuses(&args, WRONG, &["depends on no parameter"]);
    }
}

#[test]
fn unknown_policy() {
    Place::new().refuses(
        "plan small.mir -o plan.json --policy fp33",
        WRONG,
        &["unknown policy `fp33`", "fp32, o1, o2, o3", "`fp32` meant"],
    );
}

#[test]
fn unknown_target() {
    Place::new().refuses(
        "plan small.mir -o plan.json --target sm_99",
        WRONG,
        &["unknown target `sm_99`", "cpu, sm_70, sm_75, sm_80, sm_89, sm_90, h100, sm_100", "`sm_89` meant"],
    );
}

#[test]
fn unknown_format() {
    Place::new().refuses("plan small.mir -o plan.json --format bf61", WRONG, &["`bf61`", "bf16", "f16"]);
}

#[test]
fn unknown_stage() {
    Place::new().refuses("plan small.mir -o plan.json --emit irr", WRONG, &["`irr`", "ir, step, plan, kernels, cuda"]);
}

const BF16_ON_V100: [&str; 4] = ["sm_70", "bf16", "sm_80", "sm_90"];

#[test]
fn bf16_on_a_target_without_it_is_not_planned() {
    Place::new().refuses("plan small.mir --format bf16 --target sm_70 -o plan.json", WRONG, &BF16_ON_V100);
}

#[test]
fn bf16_on_a_target_without_it_is_not_compiled() {
    Place::new().refuses(
        "compile small.mir --format bf16 --target sm_70 --archs none -o trainer",
        WRONG,
        &BF16_ON_V100,
    );
}

#[test]
fn bf16_on_a_target_without_it_is_not_trained() {
    Place::new().refuses(&format!("{TRAIN} --format bf16 --target sm_70"), WRONG, &BF16_ON_V100);
}

fn refuses_csv(text: &str, parts: &[&str]) {
    let p = Place::new();
    p.put("data.csv", text);
    p.refuses(TRAIN, WRONG, &[&["data.csv"], parts].concat());
}

#[test]
fn nan_in_csv() {
    refuses_csv(&csv(&[(5, 2, "NaN")]), &["feature 2", "sample 5", "NaN", "finite"]);
}

#[test]
fn nan_in_npz() {
    let p = Place::new();
    let mut x = [0.5; 32];
    x[3 * 4 + 1] = f32::NAN;
    p.put("data.npz", npz(&x, 4, &[0; 8]));
    p.refuses(&TRAIN.replace("data.csv", "data.npz"), WRONG, &["data.npz", "feature 1", "sample 3", "NaN", "finite"]);
}

#[test]
fn word_in_csv() {
    refuses_csv(&csv(&[(5, 2, "three")]), &["line 7", "`c`", "`three` is not a number"]);
}

#[test]
fn label_out_of_range() {
    refuses_csv(&csv(&[(6, 4, "3")]), &["label", "sample 6", "is 3", "3 classes", "0 to 2"]);
}

#[test]
fn label_below_zero() {
    refuses_csv(&csv(&[(1, 4, "-1")]), &["label", "sample 1", "is -1", "3 classes", "0 to 2"]);
}

#[test]
fn features_that_do_not_fit_the_model() {
    refuses_csv("a,b,c,label\n1,2,3,0\n4,5,6,1\n7,8,9,2\n1,2,3,0\n", &["3 features", "takes 4"]);
}

/// One target in a row for a model that predicts three.
#[test]
fn labels_that_do_not_fit_the_model() {
    let p = Place::new();
    p.put("reg.mir", "model reg { input x: f32[batch, 4] label y: f32[batch, 3] param w: f32[4, 3] = kaiming_uniform loss = mse(x @ w, y) }");
    p.refuses(&TRAIN.replace("small.mir", "reg.mir"), WRONG, &["data.csv", "1 ", "3"]);
}

#[test]
fn fewer_samples_than_a_batch() {
    refuses_csv("a,b,c,d,label\n1,2,3,4,0\n", &["1 sample", "batch of 4", "--batch|smaller"]);
}

#[test]
fn data_of_an_unknown_kind() {
    let p = Place::new();
    p.put("data.parquet", "PAR1 and so on");
    p.refuses(&TRAIN.replace("data.csv", "data.parquet"), WRONG, &["data.parquet", ".npz", ".csv", "IDX"]);
}

#[test]
fn missing_data() {
    Place::new().refuses(&TRAIN.replace("data.csv", "absent.csv"), WRONG, &["absent.csv", "no such file"]);
}

#[test]
fn missing_model() {
    Place::new().refuses("plan absent.mir -o plan.json", WRONG, &["absent.mir", "no such file"]);
}

/// Nothing is allocated before its size is known to fit.
#[test]
fn model_larger_than_memory() {
    let p = Place::new();
    p.put("deep.mir", OTHER_MODEL.replace("[4, 5]", "[4, 100000000000]").replace("[5, 3]", "[100000000000, 3]"));
    p.refuses(&TRAIN.replace("small.mir", "deep.mir"), FAILED, &["TB of memory", "batch"]);
    p.refuses("plan small.mir --batch 1000000000000000", WRONG, &["`x`", "more than 2^40 elements"]);
}

/// A path below a regular file cannot be made by anyone, root included.
#[test]
fn output_that_cannot_be_written() {
    let p = Place::new();
    p.put("file", "not a directory");
    let reason = "ot a directory";
    p.refuses("plan small.mir -o file/plan.json", FAILED, &["file/plan.json", reason]);
    p.refuses("plan small.mir -o missing/plan.json", FAILED, &["missing/plan.json", "No such file or directory"]);
    p.refuses("compile small.mir --archs none -o file/trainer", FAILED, &["file/trainer", reason]);
    p.refuses(&TRAIN.replace("--out run", "--out file/run"), FAILED, &["file/run", reason]);
}

#[test]
fn output_that_exists() {
    let p = Place::new();
    p.put("taken", "mine");
    p.put("run/metrics.jsonl", "mine too");
    p.refuses("plan small.mir -o taken", WRONG, &["taken exists", "--force"]);
    p.refuses("compile small.mir --archs none -o taken", WRONG, &["taken exists", "--force"]);
    p.refuses(TRAIN, WRONG, &["run exists", "--out", "--force"]);
}

#[test]
fn plan_of_another_model() {
    let p = Place::new();
    p.succeeds("plan deep.mir --batch 4 -o deep.json");
    p.refuses(&format!("{TRAIN} --plan deep.json"), WRONG, &["deep.json", "another", "`deep`", "plan the model again"]);
}

#[test]
fn plan_of_another_batch_size() {
    let p = Place::new();
    p.succeeds("plan small.mir --batch 8 -o small.json");
    p.refuses(&format!("{TRAIN} --plan small.json"), WRONG, &["small.json", "batch size", "plan the model again"]);
}

#[test]
fn plan_of_a_wrong_version() {
    let p = Place::new();
    p.succeeds("plan small.mir --batch 4 -o small.json");
    let mut plan: serde_json::Value = serde_json::from_slice(&fs::read(p.path("small.json")).unwrap()).unwrap();
    plan["version"] = 99.into();
    p.put("small.json", plan.to_string());
    p.refuses(
        &format!("{TRAIN} --plan small.json"),
        WRONG,
        &["small.json", "version 99", "reads version", "plan the model again"],
    );
}

#[test]
fn plan_that_is_not_json() {
    let p = Place::new();
    p.put("small.json", "{ \"version\": 1,");
    p.refuses(&format!("{TRAIN} --plan small.json"), WRONG, &["small.json", "not a plan", "line 1"]);
}

#[test]
fn missing_plan_or_checkpoint() {
    let p = Place::new();
    p.refuses(&format!("{TRAIN} --plan absent.json"), WRONG, &["absent.json", "o such file"]);
    p.refuses(&format!("{TRAIN} --resume absent.safetensors"), WRONG, &["absent.safetensors", "o such file"]);
}

/// A checkpoint of `small.mir`, as bytes.
fn checkpoint(p: &Place) -> Vec<u8> {
    p.succeeds(&TRAIN.replace("--out run", "--out first"));
    fs::read(p.path("first/checkpoint.safetensors")).unwrap()
}

#[test]
fn checkpoint_of_another_model() {
    let p = Place::new();
    p.put("kept.safetensors", checkpoint(&p));
    let line = format!("{} --resume kept.safetensors", TRAIN.replace("small.mir", "deep.mir"));
    p.refuses(&line, WRONG, &["kept.safetensors", "another model", "`small`", "`deep`"]);
}

#[test]
fn checkpoint_truncated() {
    let p = Place::new();
    let bytes = checkpoint(&p);
    for len in [bytes.len() - 1, bytes.len() / 2, 4, 0] {
        p.put("kept.safetensors", &bytes[..len]);
        p.refuses(
            &format!("{TRAIN} --resume kept.safetensors"),
            WRONG,
            &["kept.safetensors", "truncated", "again|another|copy|without --resume"],
        );
    }
}

#[test]
fn cuda_without_a_gpu() {
    let p = Place::new();
    let doctor = p.run("doctor");
    let report = String::from_utf8_lossy(&doctor.stdout);
    let gpu = report.lines().find(|l| l.starts_with("gpu")).expect("doctor tells of GPUs");
    if !gpu.contains("none") {
        announce(&format!("skipped: cuda_without_a_gpu, for there is one ({gpu})"));
        return;
    }
    p.refuses(&TRAIN.replace("--device cpu", "--device cuda"), FAILED, &["libcuda|driver", "--device cpu"]);
}

#[test]
fn unknown_device() {
    Place::new().refuses(&TRAIN.replace("--device cpu", "--device tpu"), WRONG, &["`tpu`", "cpu, cuda and auto"]);
}

#[test]
fn unknown_condition_in_a_rule() {
    let p = Place::new();
    p.put("mine/simplify.rules", "; Mine.\n(rule one \"x + 0 = x.\" (add ?x 0) => ?x when (not-constent ?x))\n");
    let parts = ["mine/simplify.rules:2:47", "there is no condition `not-constent`", "`not-constant` meant", "here"];
    p.refuses("plan small.mir --rules mine -o plan.json", WRONG, &parts);
    p.refuses("rules list --rules mine", WRONG, &parts);
}

/// A folder's rules take the place of the built-in ones, which is easily forgotten.
#[test]
fn rules_that_store_nothing() {
    let p = Place::new();
    p.put("mine/simplify.rules", "(rule one \"x + 0 = x.\" (add ?x 0) => ?x)");
    let parts = ["no phase `fuse`", "copy the built-in rules"];
    p.refuses("plan small.mir --rules mine -o plan.json", WRONG, &parts);
}

#[test]
fn rules_directory_without_rules() {
    let p = Place::new();
    p.put("mine/simplify.txt", "");
    p.refuses("plan small.mir --rules mine -o plan.json", WRONG, &["mine", "no rule files", "simplify.rules"]);
}

/// A rule whose right side has no type, or another than its left, is told where it has none, when it is read.
#[test]
fn rules_that_make_no_sense() {
    let p = Place::new();
    p.put("deep.mir", OTHER_MODEL);
    for (rule, parts) in [
        ("(relu ?x) => (sum axes=[7] keep=true ?x)", ["simplify.rules:1:31", "axis 7 is outside"]),
        ("(relu ?x) => (sum axes=[0] keep=false ?x)", ["simplify.rules:1:31", "but the left side is f32["]),
        ("(relu ?x) => (neg (transpose perm=[2, 1, 0] ?x))", ["simplify.rules:1:36", "is not a permutation"]),
        ("(relu ?x) => (reshape dims=[3] ?x)", ["simplify.rules:1:31", "[3]"]),
        ("(log (relu ?x)) => (and ?x ?x)", ["simplify.rules:1:37", "takes bools, not f32"]),
    ] {
        p.put("mine/simplify.rules", format!("(rule odd \"odd.\" {rule})"));
        let parts = [&parts[..], &["the left side fits ?x: f32"]].concat();
        p.refuses("plan deep.mir --batch 4 --rules mine -o plan.json", WRONG, &parts);
        p.refuses("rules check --rules mine", WRONG, &parts);
    }
}

#[test]
fn a_file_of_rules_that_is_no_phase() {
    let p = Place::new();
    p.put("mine/simplify.rules", "");
    p.put("mine/simplifi.rules", "");
    let parts = ["simplifi.rules", "a file of rules is a phase", "`simplify` meant"];
    p.refuses("plan small.mir --batch 4 --rules mine -o plan.json", WRONG, &parts);
}
