//! Inputs that strangers had, and what must come of them: a test for each, named after what broke. Right values were computed
//! by PyTorch, onnxruntime or NumPy; the inputs lie in `tests/strangers`.

mod common;

use mantissa::cost::Target;
use mantissa::format::Format;
use mantissa::ir::{Graph, NodeId, Op, Role, text, verify};
use mantissa::lower::lower;
use mantissa::model::{Checkpoint, Model, Purpose};
use mantissa::plan::{Policy, Request, plan};
use mantissa::rewrite::RuleSet;
use mantissa::run::{
    Device,
    cpu::{Cpu, CpuRunner},
};
use mantissa::train::{Optimizer, Session, Settings};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/strangers")
}

/// Runs the command in the inputs' folder.
fn mantissa(args: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mantissa"));
    command.args(args.split_whitespace()).current_dir(folder()).output().unwrap()
}

fn stderr(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

/// What a command prints that must go well.
fn stdout(args: &str) -> String {
    let o = mantissa(args);
    assert!(o.status.success(), "{args}: {}", stderr(&o));
    String::from_utf8_lossy(&o.stdout).into_owned()
}

/// The message of a command that must fail, but not crash.
fn refused(args: &str) -> String {
    let o = mantissa(args);
    assert!(matches!(o.status.code(), Some(1 | 2)), "{args}: {:?} {}", o.status, stderr(&o));
    assert!(!stderr(&o).contains("panicked"), "{args}: {}", stderr(&o));
    stderr(&o)
}

/// Trains and returns the losses of all epochs.
fn losses(args: &str) -> Vec<f64> {
    let out = tempfile::tempdir().unwrap();
    stdout(&format!("train {args} --device cpu --out {}", out.path().join("run").display()));
    let metrics = std::fs::read_to_string(out.path().join("run/metrics.jsonl")).unwrap();
    let loss = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap();
    metrics.lines().map(loss).collect()
}

/// Runs an ONNX file as it acts in inference on the tensors of a file, and compares with those of another.
fn assert_forward(model: &str, given: &str, expected: &str, tolerance: f64) {
    let model = Model::read(&folder().join(model)).unwrap();
    let read = |name: &str| Checkpoint::read(&folder().join(name)).unwrap();
    let (given, expected) = (read(given), read(expected));
    let shapes: BTreeMap<_, _> = given.tensors.iter().map(|(n, t)| (n.clone(), t.dims.clone())).collect();
    let mut bound = model.bind_shaped(&shapes, Purpose::Inference, &BTreeMap::new()).unwrap();
    let outputs: Vec<_> = bound.graph.outputs().iter().filter(|o| o.role == Role::Output).cloned().collect();
    bound.graph = bound.graph.prune(&outputs).unwrap();
    let request = Request::by_lists(Policy::Fp32, Format::F16, Target::named("cpu").unwrap());
    let planned = plan(&bound.graph, &request, &RuleSet::builtin().unwrap()).unwrap().graph;
    let mut cpu = CpuRunner::new(lower(verify(&planned).unwrap()).unwrap());
    for id in planned.sources() {
        let name = planned.name_of(id);
        match planned.op(id) {
            Op::Input { .. } => {
                let t = given.tensors.get(name).unwrap_or_else(|| panic!("nothing is given for `{name}`"));
                cpu.write_bytes(name, &t.bytes).unwrap();
            }
            _ => {
                let w = bound.weights.get(name).unwrap_or_else(|| panic!("`{name}` has no value"));
                cpu.write_as(name, w.format, w.bytes()).unwrap();
            }
        }
    }
    cpu.run().unwrap();
    for o in &outputs {
        let only = expected.tensors.values().next().filter(|_| outputs.len() == 1);
        let right = expected.tensors.get(&o.name).or(only).unwrap_or_else(|| panic!("`{}`", o.name));
        let right = right.weight().values::<f32>();
        let found = cpu.read(&o.name).unwrap();
        let d = common::distance(&found, &right);
        assert!(d <= tolerance, "`{}` is off by {d}", o.name);
    }
}

fn parse(source: &str) -> Graph {
    text::parse(source, "test.mir").unwrap_or_else(|e| panic!("{}", e.render(false)))
}

/// The gradients of one step, by parameter: with SGD, what the momentum begins with.
fn gradients(model: &Model, settings: &Settings, fed: &[(&str, Vec<f32>)]) -> BTreeMap<String, Vec<f32>> {
    let mut settings = settings.clone();
    settings.recipe.optimizer = Optimizer::Sgd { lr: 1e-6, momentum: 0.9, nesterov: false, weight_decay: 0.0 };
    let compiled = settings.compile(model, &RuleSet::builtin().unwrap(), None).unwrap();
    let parameters: Vec<String> = compiled.gradient_of.keys().cloned().collect();
    let mut session = Session::new(compiled, 0, &Cpu).unwrap();
    for (name, values) in fed {
        session.feed(name, values).unwrap();
    }
    // The loss scale comes down to where the step is good.
    for _ in 0..24 {
        session.step().unwrap();
        if session.read("overflow").unwrap() == [0.0] {
            break;
        }
    }
    let of = |p: String| (p.clone(), session.read(&format!("optimizer.momentum.{p}")).unwrap());
    parameters.into_iter().map(of).collect()
}

#[test]
fn a_concat_of_a_pad_copies_the_right_elements() {
    for model in ["concat_pad", "concat_pad_relu"] {
        let found = losses(&format!("{model}.mir --data concat_pad.npz --batch 8 --epochs 1 --lr 1e-9 --policy fp32"));
        assert!((found[0] - 17.4286).abs() < 1e-3, "{model}: {found:?}");
    }
}

#[test]
fn batch_norm_without_training_mode_trains() {
    let right = std::fs::read_to_string(folder().join("batch_norm.losses.txt")).unwrap();
    let right: Vec<f64> = right.split_whitespace().map(|x| x.parse().unwrap()).collect();
    let run = "batch_norm.onnx --loss cross_entropy --data batch_norm.npz --batch 16 --epochs 20 --policy fp32 --optimizer sgd --lr 0.05";
    let found = losses(run);
    assert_eq!(found.len(), right.len());
    assert!(found.iter().zip(&right).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?}\n{right:?}");
    // Frozen, they act as in inference, and the losses are others.
    assert!((losses(&format!("{run} --batch-norm frozen"))[0] - right[0]).abs() > 1e-2);
}

#[test]
fn a_row_masked_by_finite_numbers_is_uniform() {
    let name = "left_padded_batch";
    assert_forward(
        &format!("{name}.onnx"),
        &format!("{name}.safetensors"),
        &format!("{name}.expected.safetensors"),
        1e-5,
    );
}

/// Sums of squares that norms are made of overflow f16 long before what they are of. Here rows have rms 500 or so.
#[test]
fn what_a_norm_divides_by_is_not_stored_in_f16() {
    let model = Model::from_graph(parse(&std::fs::read_to_string(folder().join("rms_norm.mir")).unwrap()));
    let bound = model.bind(&BTreeMap::from([("batch".into(), 16)]), Purpose::TRAINING).unwrap().graph;
    let mut fed = Vec::new();
    for id in bound.sources() {
        if let Op::Input { label, ty, .. } = bound.op(id) {
            let scale = if *label { 1.0 } else { 2.0 };
            let values = (0..ty.elements()).map(|i| common::noise(7, i) * scale);
            let whole = ty.format.is_float();
            fed.push((bound.name_of(id).to_owned(), values.map(|v| if whole { v } else { v.abs().floor() }).collect()));
        }
    }
    let fed: Vec<(&str, Vec<f32>)> = fed.iter().map(|(n, v): &(String, Vec<f32>)| (n.as_str(), v.clone())).collect();
    let of = |policy| {
        let sizes = BTreeMap::from([("batch".to_owned(), 16)]);
        gradients(&model, &Settings { policy, low: Format::F16, sizes, ..Settings::default() }, &fed)
    };
    let right = of(Policy::Fp32);
    for policy in [Policy::O1, Policy::O2, Policy::Greedy, Policy::Auto] {
        for (name, found) in of(policy) {
            let d = common::distance(&found, &right[&name]);
            // A norm's gradient is a small difference of large ones, which magnifies rounding; what was lost was 97 %.
            assert!(d < 0.1, "{policy}: the gradient of `{name}` is off by {d}");
        }
    }
}

#[test]
fn a_norm_of_zero_stops_the_run_and_is_named() {
    let out = tempfile::tempdir().unwrap();
    let run = out.path().join("run");
    let said = refused(&format!(
        "train zero_row_norm.mir --data zero_row_norm.npz --batch 16 --epochs 1 --policy fp32 --device cpu --out {}",
        run.display()
    ));
    assert!(said.contains("`n`"), "{said}");
    let kept = Checkpoint::read(&run.join("checkpoint.safetensors")).unwrap();
    assert_eq!(kept.first_non_finite(), None, "what the last good step left");
}

#[test]
fn a_gradient_that_is_not_finite_in_f32_cannot_calibrate() {
    let said = refused("plan zero_row_norm.mir --policy auto --calibrate zero_row_norm.npz --batch 16");
    assert!(said.contains("not finite") && said.contains("gradient of `"), "{said}");
    // A norm that is clipped has a gradient, as in PyTorch.
    let plan = stdout("plan normalize_zero_row.onnx --policy auto --calibrate normalize_zero_row.npz");
    assert!(plan.contains("gradient of `w`"), "{plan}");
}

#[test]
fn constants_that_f16_loses_keep_their_node_wide() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("mixed.onnx");
    stdout(&format!("plan divide_by_small_std.onnx --inference --policy o1 --onnx {}", file.display()));
    let graph = Model::read(&file).unwrap().bind(&BTreeMap::from([("batch".into(), 4)]), Purpose::Inference).unwrap();
    let is_division = |id: &NodeId| matches!(graph.graph.op(*id), Op::Binary(mantissa::ir::Binary::Div));
    let divided: Vec<NodeId> = graph.graph.ids().filter(is_division).collect();
    assert!(!divided.is_empty(), "{}", text::print(&graph.graph));
    let narrowed = |id| matches!(graph.graph.op(id), Op::Convert(f) if f.is_low());
    for id in divided {
        assert!(!graph.graph.inputs(id).iter().copied().any(narrowed), "{}", text::print(&graph.graph));
    }
}

#[test]
fn a_power_of_zero_at_zero_has_no_slope() {
    let g = parse("model m { input x: f32[batch, 3] param w: f32[3] = zeros p = pow(w, 0) loss = mean(x * p) }");
    let settings = Settings { policy: Policy::Fp32, sizes: [("batch".to_owned(), 2)].into(), ..Settings::default() };
    let found = gradients(&Model::from_graph(g), &settings, &[("x", vec![1.0; 6])]);
    assert_eq!(found["w"], [0.0; 3]);
}

#[test]
fn token_ids_outside_the_table_are_refused() {
    let run = |data: &str| {
        let out = tempfile::tempdir().unwrap();
        let out = out.path().join("run").display().to_string();
        mantissa(&format!("train ids.mir --data {data}.npz --batch 16 --epochs 1 --device cpu --out {out}"))
    };
    assert!(run("ids_ok").status.success());
    let said = stderr(&run("ids_bad"));
    assert!(said.contains("sample 37") && said.contains("70") && said.contains("`table`"), "{said}");
}

#[test]
fn a_bias_that_softmax_does_not_see_is_no_unit() {
    let plan =
        stdout("plan attention_key_bias.onnx --loss cross_entropy --policy auto --calibrate attention_key_bias.npz");
    assert!(plan.contains("calibrated on"), "{plan}");
}

#[test]
fn a_budget_that_no_rounding_keeps_ends_in_f32() {
    let plan =
        stdout("plan softplus_select.mir --policy auto --calibrate softplus_select.npz --batch 16 --budget rel=1e-8");
    assert!(plan.contains("calibrated on"), "{plan}");
    assert!(!plan.contains("product f16") && !plan.contains("product bf16"), "{plan}");
}

#[test]
fn what_the_planner_broke_on_is_planned() {
    for args in [
        "plan softplus_select.mir --policy auto --calibrate softplus_select.npz --batch 16",
        "profile gru_bidirectional_last.onnx --loss cross_entropy --data gru_bidirectional_last.npz",
        "plan pad_then_pool.onnx --inference --policy auto --calibrate pad_then_pool.npz",
        "plan f64_product.mir",
        "plan cumulative_sum.onnx --loss cross_entropy --batch 4",
    ] {
        stdout(args);
    }
}

#[test]
fn long_chains_are_planned_and_lowered() {
    let chain = |n: usize, result: &str| {
        let steps: String = (1..=n).map(|i| format!("h{i} = sin(h{})\n", i - 1)).collect();
        parse(&format!("model chain {{ input x: f32[4, 8] h0 = x * 2\n{steps} output y = {result} }}"))
    };
    let request = Request::by_lists(Policy::O1, Format::F16, Target::named("sm_90").unwrap());
    plan(&chain(400, "h400"), &request, &RuleSet::builtin().unwrap()).unwrap();
    // One kernel of so many operations, which is written without a stack as deep.
    let n = 20_000;
    let program = lower(verify(&chain(n, &format!("put(h{n}, format=f32)"))).unwrap()).unwrap();
    assert_eq!(program.calls.len(), 1);
    let mut cpu = CpuRunner::new(program);
    cpu.write("x", &[1.0; 32]).unwrap();
    cpu.run().unwrap();
    let right = (0..n).fold(2.0f64, |x, _| x.sin());
    assert!(cpu.read("y").unwrap().iter().all(|&y| (f64::from(y) - right).abs() < 1e-5));
}

#[test]
fn a_sum_of_whole_numbers_takes_a_time() {
    let source = "model m { input x: f32[batch, 300] label y: i64[batch] param w: f32[300, 4] = ones n = sum(convert(gt(x, 0), format=i64), axes=[1], keep=true) z = (x @ w) * convert(n, format=f32) loss = cross_entropy(z, y) }";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sum.mir");
    std::fs::write(&file, source).unwrap();
    for policy in ["fp32", "o1", "auto"] {
        let found: serde_json::Value =
            serde_json::from_str(&stdout(&format!("plan {} --policy {policy} --json", file.display()))).unwrap();
        let seconds = found["predicted_seconds"].as_f64().unwrap_or_else(|| panic!("{found}"));
        assert!((1e-9..1e-2).contains(&seconds), "{policy}: {seconds}");
    }
}

#[test]
fn a_constant_that_is_read_twice_stays_known() {
    for model in ["cumsum_axis_also_operand", "eb_slice_shape"] {
        stdout(&format!("plan {model}.onnx --inference"));
    }
}

#[test]
fn sequences_and_loops_of_known_length_are_resolved() {
    for name in ["sequence", "embedding_bag_present", "embedding_bag_earlier"] {
        let tensors = format!("{name}.safetensors");
        assert_forward(&format!("{name}.onnx"), &tensors, &tensors, 1e-5);
    }
}

/// A weight read through a copy, a sequence and the steps of a loop is one parameter, under its own name.
#[test]
fn a_weight_by_other_names_is_itself() {
    let name = "weights_by_other_names";
    let tensors = format!("{name}.safetensors");
    assert_forward(&format!("{name}.onnx"), &tensors, &tensors, 1e-5);
    let step = stdout(&format!("plan {name}.onnx --loss mse --prediction y --emit step"));
    let params: Vec<&str> = step.lines().filter_map(|l| l.trim().strip_prefix("param ")?.split(':').next()).collect();
    assert_eq!(params.len(), 3, "{params:?}");
    assert!(["v", "b", "big"].iter().all(|p| params.contains(p)), "{params:?}");
}

#[test]
fn dropout_that_is_spelled_out_is_off_in_inference() {
    let name = "dropout_spelled_out";
    let tensors = format!("{name}.safetensors");
    assert_forward(&format!("{name}.onnx"), &tensors, &tensors, 1e-6);
    stdout(&format!("plan {name}.onnx --inference --policy auto --calibrate {name}.npz"));
}

/// The row of `padding_idx` gets no gradient where the exporter noted it.
#[test]
fn a_padding_row_is_not_trained() {
    let model = Model::read(&folder().join("embedding_bag_present.onnx")).unwrap();
    let settings = Settings { policy: Policy::Fp32, loss: Some("mse".into()), ..Settings::default() };
    let ids: Vec<f32> = (0..20).map(|i| (i % 10) as f32).collect();
    let input = model.input_names().remove(0);
    let found = gradients(&model, &settings, &[(input.as_str(), ids), ("target", vec![1.0; 16])]);
    let rows: Vec<bool> = found["e.weight"].chunks(6).map(|r| r.iter().any(|&x| x != 0.0)).collect();
    assert_eq!(rows, [true, false, true, true, true, true, true, true, true, true]);
}

#[test]
fn nodes_that_made_the_importer_panic_are_named() {
    for (model, node) in [("concat_without_inputs", "Concat"), ("tensor_scatter_rank1", "TensorScatter")] {
        let said = refused(&format!("plan {model}.onnx --inference"));
        assert!(said.contains(node) && said.contains(model), "{said}");
    }
}

#[test]
fn weights_in_constants_are_parameters() {
    let plan = stdout("plan weights_in_constants.onnx --loss mse");
    assert!(plan.contains("84 parameters"), "{plan}");
}

#[test]
fn open_extents_are_bound_by_flags() {
    assert!(stdout("plan extent_minus_one.onnx --inference --batch 5").contains("batch 5"));
    assert!(refused("plan extents_unnamed.onnx --inference").contains("--dim x.1="));
    stdout("plan extents_unnamed.onnx --inference --dim x.1=3");
}

#[test]
fn sizes_and_depths_are_checked_before_anything_is_allocated() {
    for (model, why) in [
        ("recursive_function", "call itself"),
        ("nested_functions", "nodes"),
        ("range_long", "Range"),
        ("resize_large", "Resize"),
        ("constant_of_shape_long", "ConstantOfShape"),
        ("constant_of_shape_wide", "ConstantOfShape"),
    ] {
        let said = refused(&format!("plan {model}.onnx --inference"));
        assert!(said.contains(why), "{said}");
    }
    for (open, inner, close) in [("relu(", "x", ")"), ("(", "x", ")"), ("-", "x", "")] {
        let (open, close) = (open.repeat(5000), close.repeat(5000));
        let source = format!("model m {{ input x: f32[4] loss = sum({open}{inner}{close}) }}");
        let e = text::parse(&source, "deep.mir").unwrap_err();
        assert!(e.to_string().contains("200 deep"), "{e}");
    }
}

/// The exporter writes equal small tensors once, as those of norms are that were just made; its notes tell them apart.
#[test]
fn parameters_that_start_out_equal_are_trained_apart() {
    let model = Model::read(&folder().join("merged_norms.onnx")).unwrap();
    let expected = Checkpoint::read(&folder().join("merged_norms.safetensors")).unwrap().into_weights();
    let settings = Settings { policy: Policy::Fp32, loss: Some("cross_entropy".into()), ..Settings::default() };
    let fed = |name: &str| expected[name].values::<f32>();
    let found = gradients(&model, &settings, &[("x", fed("x")), ("label", fed("y"))]);
    for name in expected.keys().filter(|name| name.starts_with("n.")) {
        let d = common::distance(&found[name], &fed(name));
        assert!(d < 1e-5, "the gradient of `{name}` is off by {d}");
    }
    assert!(model.hints().is_empty(), "{:?}", model.hints());
}

#[test]
fn batch_norms_whose_statistics_start_out_equal_have_their_own() {
    let step = stdout("plan merged_statistics.onnx --loss cross_entropy --emit step");
    for of in ["b.0.0.running_mean", "b.1.0.running_mean", "b.0.0.running_var", "b.1.0.running_var"] {
        assert!(step.contains(&format!("update {of} = ")), "{of} is not updated:\n{step}");
    }
}

#[test]
fn a_number_that_is_computed_with_may_be_an_option_too() {
    assert_forward("pad_where.onnx", "pad_where.safetensors", "pad_where.safetensors", 1e-7);
}

#[test]
fn a_value_called_label_is_no_label() {
    assert!(stdout("plan value_named_label.onnx --loss mse").contains("training step"));
}

/// Every way through forty residual connections was followed once.
#[test]
fn the_loss_of_a_deep_network_is_found() {
    assert!(stdout("plan residuals_own_loss.onnx --policy fp32").contains("training step"));
}

#[test]
fn an_input_that_a_file_decides_by_can_be_given() {
    assert!(refused("plan decides_by_an_input.onnx --inference").contains("--value"));
    let planned = |value| stdout(&format!("plan decides_by_an_input.onnx --inference --value {value} --emit plan"));
    assert!(planned("sr=16000").contains("mul(x, two)") && planned("sr=8000").contains("mul(x, three)"));
    assert!(refused("plan decides_by_an_input.onnx --inference --value rate=1").contains("it has x, sr"));
    assert!(refused("plan decides_by_an_input.onnx --inference --value x=1").contains("more than one number"));
}

#[test]
fn sizes_that_a_model_does_not_have_are_refused() {
    assert!(refused("plan ids.mir --batch 4 --dim seq=3").contains("no size `seq`; it has `batch`"));
    assert!(refused("plan pad_where.onnx --inference --dim seq=3").contains("no size `seq`"));
}

/// Scaling and linear models as skl2onnx writes them, against onnxruntime.
#[test]
fn pipelines_of_scikit_learn_are_read() {
    for name in ["pipeline_classes", "pipeline_two_classes", "pipeline_regression", "normalizers"] {
        let tensors = format!("{name}.safetensors");
        assert_forward(&format!("{name}.onnx"), &tensors, &tensors, 1e-5);
    }
}

/// A classifier that ends in `argmax` is planned as it is, and trained by the scores before.
#[test]
fn a_model_that_yields_classes_is_trained_by_its_scores() {
    let model = "whole_number_output.onnx";
    let said = refused(&format!("plan {model} --loss cross_entropy"));
    assert!(said.contains("whole numbers") && said.contains("--prediction linear_1"), "{said}");
    // 4 × 8 + 8 and 8 × 3 + 3.
    let planned = stdout(&format!("plan {model} --loss cross_entropy --prediction linear_1"));
    assert!(planned.contains("67 parameters"), "{planned}");
    stdout(&format!("plan {model} --inference"));
}

/// A model of classes alone is judged by the scores that they are chosen by. By NumPy, weights of the first product in bf16
/// move them by 1.73e-3 of their norm.
#[test]
fn a_model_that_yields_classes_is_calibrated_by_its_scores() {
    let plan =
        "plan classes_alone.onnx --inference --batch 128 --target cpu --format bf16 --calibrate classes_alone.npz";
    let out = tempfile::tempdir().unwrap();
    for (policy, more, expected) in [
        ("o1", String::new(), 1.73e-3),
        ("auto", String::new(), 1.73e-3),
        // The file stores the second product's weights low as well.
        ("o1", format!(" --onnx {}", out.path().join("mixed.onnx").display()), 2.5e-3),
    ] {
        let said = stdout(&format!("{plan} --policy {policy}{more}"));
        let line = said.lines().find(|l| l.trim_start().starts_with("class ")).unwrap_or_else(|| panic!("{said}"));
        let error: f64 = line.split_whitespace().nth(3).unwrap().parse().unwrap();
        assert!((error / expected - 1.0).abs() < 0.1, "{line}");
    }
}

/// Values are shown behind the module that the exporter notes, gradients too, and are found by that name; where a value comes
/// from is not forgotten when the model is recognised.
#[test]
fn values_are_shown_with_their_modules() {
    let plan = stdout("plan merged_norms.onnx --loss cross_entropy --batch 4");
    for value in ["l.0/t0 ", "n.0/layer_norm ", "l.2/d.linear_2 "] {
        assert!(plan.contains(value), "no `{value}` in\n{plan}");
    }
    for name in ["l.0/linear", "linear"] {
        let said = stdout(&format!("explain merged_norms.onnx {name} --loss cross_entropy --batch 4"));
        assert!(said.contains("module      l.0") && said.contains("from        Gemm"), "{said}");
    }
}

/// A batch norm's count of batches is a scalar, and no loss.
#[test]
fn a_model_without_a_loss_is_told_so() {
    let said = refused("plan batch_norm.onnx --batch 4");
    assert!(said.contains("has no loss") && said.contains("--loss"), "{said}");
}

/// What moves elements is looked through, whatever it is called: token ids are checked, a divisor is not rounded, and what is
/// computed from positions is looked at.
#[test]
fn rolled_values_are_what_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let shifts =
        ["roll(V, axis=1, by=1)", "concat(slice(V, axis=1, start=3, stop=4), slice(V, axis=1, stop=3), axis=1)"];
    let ids = "x,x1,x2,x3,label\n1,2,999,4,0\n1,2,3,4,1\n";
    std::fs::write(at("d.csv"), ids).unwrap();
    for (i, shift) in shifts.iter().enumerate() {
        let of = |v: &str| shift.replace('V', v);
        let divided = format!(
            "model d {{ input x: f32[batch, 4] label y: i64[batch] param w: f32[4, 4] = kaiming_uniform \
             s = square(x @ w) q = x / {} loss = cross_entropy(q, y) }}",
            of("s")
        );
        std::fs::write(at("d.mir"), divided).unwrap();
        let table = stdout(&format!("plan {} --policy o2", at("d.mir").display()));
        assert!(table.contains("something is divided by it"), "{i}: {table}");
        let ids = format!(
            "model e {{ input x: i64[batch, 4] label y: i64[batch] param e: f32[10, 3] = kaiming_uniform \
             loss = cross_entropy(mean(gather(e, {}, axis=0), axes=[1]), y) }}",
            of("x")
        );
        std::fs::write(at("e.mir"), ids).unwrap();
        let command = format!("train {} --data {} --batch 2", at("e.mir").display(), at("d.csv").display());
        let o = mantissa(&command);
        assert!(!o.status.success() && stderr(&o).contains("position 999"), "{i}: {}", stderr(&o));
        let positions = format!(
            "model p {{ input x: f32[batch, 4] label y: i64[batch] param w: f32[4, 4] = kaiming_uniform \
             loss = cross_entropy(x @ w + convert({}, format=f32), y) }}",
            of("iota(dims=[1, 4], axis=1)")
        );
        std::fs::write(at("p.mir"), positions).unwrap();
        stdout(&format!("profile {} --data {} --batch 2", at("p.mir").display(), at("d.csv").display()));
    }
}

/// A key that a loop does not know was ignored.
#[test]
fn loops_refuse_unknown_attributes() {
    let step = |more: &str| {
        format!(
            "model m {{ input xs: f32[5, 2] param h0: f32[2] = zeros \
             body step {{ input x: f32[2] state h: f32[2] = data y = put(tanh(x + h), format=f32) output y update h = y }} \
             h = scan(xs, h0, body=step, steps=[5], last=h{more}) loss = sum(h) }}"
        )
    };
    assert!(text::parse(&step(", reverse=true"), "m.mir").is_ok());
    for (more, why) in [(", revers=true", "no attribute `revers`"), (", reverse=true, reverse=false", "given twice")] {
        let error = text::parse(&step(more), "m.mir").expect_err(more).render(false);
        assert!(error.contains(why), "{error}");
    }
}

/// Distances near the largest whole number wrapped around: a padded axis of 8 had 4 elements, and trained.
#[test]
fn distances_do_not_wrap_around() {
    let of = |h: &str| {
        let text =
            format!("model m {{ input x: f32[4, 8] param w: f32[8, 8] = kaiming_uniform h = x @ w loss = sum({h}) }}");
        text::parse(&text, "m.mir").expect_err(h).render(false)
    };
    let far = i64::MAX;
    for h in [
        format!("pad(h, axis=1, lo={far}, hi={far})"),
        format!("pad(h, axis=1, inner={far})"),
        format!("window(h, axis=1, size=2, lo={far}, hi={far})"),
        format!("window(h, axis=1, size={far}, dilation=3)"),
        format!("unwindow(window(h, axis=1, size=2), axis=1, extent=8, lo={far})"),
        format!("conv(reshape(h, dims=[1, 1, 32]), reshape(w, dims=[1, 1, 64]), strides=[1], lo=[{far}], hi=[{far}])"),
    ] {
        let error = of(&h);
        assert!(error.contains("2^40"), "{h}: {error}");
    }
}
