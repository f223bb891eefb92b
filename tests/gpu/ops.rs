//! Operations other than attention and sampling.

use inflight::backend::{
    Activate, Activation, Backend, BackendLimits, DType, Delta, Embedding, Gating, Head, Norm, NormKind,
    Projection,
};

use crate::rig::*;

#[test]
fn embed() {
    for dtype in DTYPES {
        let (vocab_size, max_tokens) = (300, 200);
        for width in sizes(&[8, 576, 4096], 576) {
            let mut rig = Rig::new(dtype);
            let mut random = Random(1);
            rig.reserve(&BackendLimits { max_tokens, max_slots: 2, vocab_size });
            let table = rig.weight(width, &random.values(vocab_size * width, 1.0));
            let positions = rig.weight(width, &random.values(max_tokens * width, 1.0));
            for num_tokens in [1, 7, 129] {
                let tokens = (0..num_tokens).map(|_| random.below(vocab_size) as u32).collect();
                let context_len = num_tokens + 3;
                let row = BatchRow { slot: 1, tokens, context_len, blocks: vec![] };
                rig.load_batch(&batch(&[row], &[]));
                // A plain row is copied; with a scale alone, positions alone and both it is computed.
                for (scale, with_positions) in [(1.0, false), (22.6, false), (1.0, true), (0.3, true)] {
                    let mut out = rig.poisoned(max_tokens, width);
                    let cpu_positions = with_positions.then_some(&positions.cpu);
                    let gpu_positions = with_positions.then_some(&positions.gpu);
                    let embedding = Embedding { table: &table.cpu, scale, positions: cpu_positions };
                    rig.cpu.embed(&embedding, &mut out.cpu).unwrap();
                    let embedding = Embedding { table: &table.gpu, scale, positions: gpu_positions };
                    rig.gpu.embed(&embedding, &mut out.gpu).unwrap();
                    let what = format!("embed {dtype:?} {num_tokens} x {width}, {scale}, {with_positions}");
                    let is_copy = scale == 1.0 && !with_positions;
                    rig.assert_same(&what, &out, if is_copy { 0.0 } else { rig.tolerance() });
                }
            }
        }
    }
}

/// The operands of a norm on both backends.
struct NormCase {
    residual: Pair,
    deltas: [Pair; 2],
    delta_bias: Pair,
    weight: Pair,
    bias: Pair,
}

impl NormCase {
    fn new(rig: &mut Rig, random: &mut Random, rows: usize, width: usize) -> NormCase {
        let mut rows = |rig: &mut Rig| rig.activation(width, &random.values(rows * width, 3.0));
        let (residual, deltas) = (rows(rig), [rows(rig), rows(rig)]);
        let mut row = |rig: &mut Rig| rig.single(width, &random.values(width, 1.0));
        NormCase { residual, deltas, delta_bias: row(rig), weight: row(rig), bias: row(rig) }
    }
}

/// Kind, number of deltas, and whether they and the norm have biases.
const NORM_CASES: [(NormKind, usize, bool); 5] = [
    (NormKind::Rms, 1, false),
    (NormKind::Rms, 0, false),
    (NormKind::Layer, 1, true),
    (NormKind::Layer, 2, true),
    (NormKind::Rms, 2, true),
];

#[test]
fn add_norm() {
    for dtype in DTYPES {
        let mut rig = Rig::new(dtype);
        let mut random = Random(2);
        for width in sizes(&[8, 72, 576, 4096, 8192, 8200, 12288], 600) {
            for rows in [1, 3, 130] {
                for (kind, num_deltas, with_bias) in NORM_CASES {
                    let mut case = NormCase::new(&mut rig, &mut random, rows + 2, width);
                    let mut out = rig.poisoned(rows + 2, width);
                    macro_rules! run {
                        ($backend:ident) => {{
                            let bias = |bias| if with_bias { Some(bias) } else { None };
                            let delta = |index: usize| {
                                let values = &case.deltas[index].$backend;
                                (num_deltas > index)
                                    .then_some(Delta { values, bias: bias(&case.delta_bias.$backend) })
                            };
                            let norm = Norm {
                                kind,
                                epsilon: 1e-5,
                                weight: &case.weight.$backend,
                                bias: bias(&case.bias.$backend),
                            };
                            let (deltas, residual) = ([delta(0), delta(1)], &mut case.residual.$backend);
                            rig.$backend.add_norm(residual, deltas, &norm, &mut out.$backend, rows).unwrap();
                        }};
                    }
                    run!(cpu);
                    run!(gpu);
                    let what = format!("add_norm {dtype:?} {rows} x {width} {kind:?} {num_deltas}");
                    rig.assert_same(&what, &out, rig.tolerance());
                    rig.assert_same(&format!("{what}: residual"), &case.residual, rig.tolerance());
                }
            }
        }
    }
}

#[test]
fn norm_add() {
    for dtype in DTYPES {
        let mut rig = Rig::new(dtype);
        let mut random = Random(12);
        for width in sizes(&[8, 72, 576, 4096, 8200], 600) {
            for rows in [1, 130] {
                for (kind, _, with_bias) in NORM_CASES {
                    let mut case = NormCase::new(&mut rig, &mut random, rows + 2, width);
                    macro_rules! run {
                        ($backend:ident) => {{
                            let bias = |bias| if with_bias { Some(bias) } else { None };
                            let values = &case.deltas[0].$backend;
                            let delta = Delta { values, bias: bias(&case.delta_bias.$backend) };
                            let norm = Norm {
                                kind,
                                epsilon: 1e-5,
                                weight: &case.weight.$backend,
                                bias: bias(&case.bias.$backend),
                            };
                            let residual = &mut case.residual.$backend;
                            rig.$backend.norm_add(delta, &norm, residual, rows).unwrap();
                        }};
                    }
                    run!(cpu);
                    run!(gpu);
                    let what = format!("norm_add {dtype:?} {rows} x {width} {kind:?}");
                    rig.assert_same(&what, &case.residual, rig.tolerance());
                }
            }
        }
    }
}

#[test]
fn activate() {
    for dtype in DTYPES {
        let mut rig = Rig::new(dtype);
        let mut random = Random(3);
        for width in sizes(&[8, 1536, 14336], 1536) {
            for rows in [1, 5, 130] {
                for function in Activation::ALL {
                    for (gating, with_bias) in
                        [(Gating::Gated, false), (Gating::Gated, true), (Gating::Plain, true)]
                    {
                        let input_width = gating.input_width(width);
                        let input =
                            rig.activation(input_width, &random.values((rows + 1) * input_width, 8.0));
                        let bias = rig.single(input_width, &random.values(input_width, 1.0));
                        let mut out = rig.poisoned(rows + 1, width);
                        let cpu_bias = with_bias.then_some(&bias.cpu);
                        let gpu_bias = with_bias.then_some(&bias.gpu);
                        let activate = Activate { function, gating, bias: cpu_bias };
                        rig.cpu.activate(&input.cpu, &activate, &mut out.cpu, rows).unwrap();
                        let activate = Activate { function, gating, bias: gpu_bias };
                        rig.gpu.activate(&input.gpu, &activate, &mut out.gpu, rows).unwrap();
                        let what = format!("{} {gating:?} {dtype:?} {rows} x {width}", function.name());
                        rig.assert_same(&what, &out, rig.tolerance());
                    }
                }
            }
        }
    }
}

/// One product with its activation on both backends, in each way that the device has.
fn check_product_with_activation(
    rig: &mut Rig,
    random: &mut Random,
    (rows, width, in_features): (usize, usize, usize),
    (function, gating, has_bias): (Activation, Gating, bool),
) {
    let input_width = gating.input_width(width);
    let input = rig.activation(in_features, &random.values((rows + 1) * in_features, 1.0));
    let weight = rig.weight(in_features, &random.values(input_width * in_features, 0.3));
    let bias = rig.single(input_width, &random.values(input_width, 1.0));
    for columns in ways(rig, rows) {
        rig.gpu.force_tiles(columns);
        let mut projected = rig.poisoned(rows + 1, input_width);
        let mut out = rig.poisoned(rows + 1, width);
        let activate = Activate { function, gating, bias: has_bias.then_some(&bias.cpu) };
        let places = (&mut projected.cpu, &mut out.cpu);
        rig.cpu.linear_activate(&input.cpu, &weight.cpu, &activate, places, rows).unwrap();
        let activate = Activate { function, gating, bias: has_bias.then_some(&bias.gpu) };
        let places = (&mut projected.gpu, &mut out.gpu);
        rig.gpu.linear_activate(&input.gpu, &weight.gpu, &activate, places, rows).unwrap();
        let (name, dtype) = (function.name(), rig.dtype);
        let what = format!("{name} {gating:?} {dtype:?} {rows} x {width} x {in_features}, tiles {columns}");
        rig.assert_same(&what, &out, 2.0 * rig.tolerance());
    }
}

#[test]
fn products_with_activations() {
    for dtype in DTYPES {
        let mut rig = Rig::new(dtype);
        rig.reserve(&BackendLimits { max_tokens: 64, max_slots: 4, vocab_size: 8 });
        let mut random = Random(13);
        for (width, in_features) in [(8, 8), (40, 264), (1544, 512)] {
            for (case, rows) in sizes(&[1, 7, 8, 9, 16, 17, 40, 257], 40).into_iter().enumerate() {
                let function = Activation::ALL[case % Activation::ALL.len()];
                let kind = (function, [Gating::Gated, Gating::Plain][case % 2], case != 2);
                check_product_with_activation(&mut rig, &mut random, (rows, width, in_features), kind);
            }
        }
        for function in Activation::ALL {
            for (gating, has_bias) in [(Gating::Gated, false), (Gating::Gated, true), (Gating::Plain, true)] {
                let kind = (function, gating, has_bias);
                check_product_with_activation(&mut rig, &mut random, (20, 232, 72), kind);
            }
        }
    }
}

/// Widths of tiles to try for products of `rows` rows; 0: none, the library's.
fn ways(rig: &Rig, rows: usize) -> Vec<usize> {
    let tiles = if rows > 16 { rig.gpu.tile_columns() } else { &[] };
    let library: &[usize] = if tiles.is_empty() || !is_in_own_tiles() { &[0] } else { &[] };
    [library, tiles].concat()
}

#[test]
fn linear() {
    for dtype in DTYPES {
        let mut rig = Rig::new(dtype);
        rig.reserve(&BackendLimits { max_tokens: 1, max_slots: 1, vocab_size: 1 });
        let mut random = Random(4);
        for (out_features, in_features) in
            [(1, 8), (16, 8), (17, 40), (72, 576), (576, 1536), (1000, 264), (1024, 4096)]
        {
            if is_small() && out_features * in_features > 50_000 {
                continue;
            }
            let weight = rig.weight(in_features, &random.values(out_features * in_features, 1.0));
            for rows in sizes(&[1, 2, 7, 8, 9, 15, 16, 17, 33, 130, 512], 20) {
                let input = rig.activation(in_features, &random.values((rows + 3) * in_features, 1.0));
                for columns in ways(&rig, rows) {
                    rig.gpu.force_tiles(columns);
                    let mut out = rig.poisoned(rows + 3, out_features);
                    rig.cpu.linear(&input.cpu, &weight.cpu, &mut out.cpu, rows).unwrap();
                    rig.gpu.linear(&input.gpu, &weight.gpu, &mut out.gpu, rows).unwrap();
                    let what =
                        format!("linear {dtype:?} {rows} x {out_features} x {in_features}, tiles {columns}");
                    rig.assert_same(&what, &out, rig.tolerance());
                }
            }
        }
    }
}

/// Rows, width of the residual, and widths of the projections' inputs; 0: there is no such projection.
type ProjectionShape = (usize, usize, [usize; 2]);

/// Projections to the residual on both backends, by the products or by the norm that follows, and that norm; returns
/// whether the device's products did it. Rows past those of the projections stay as they are.
fn check_projections(
    rig: &mut Rig,
    random: &mut Random,
    (rows, width, in_features): ProjectionShape,
    with_bias: bool,
    what: &str,
) -> bool {
    let past = vec![f32::NAN; 3 * width];
    let mut residual = rig.activation(width, &[random.values(rows * width, 3.0), past].concat());
    let mut out = rig.poisoned(rows + 3, width);
    let mut deltas = [rig.poisoned(rows + 3, width), rig.poisoned(rows + 3, width)];
    let [first, second] = in_features.map(|columns| columns.max(8));
    let mut inputs = |columns: usize| rig.activation(columns, &random.values((rows + 3) * columns, 1.0));
    let inputs = [inputs(first), inputs(second)];
    let mut weights = |columns: usize| rig.weight(columns, &random.values(width * columns, 0.3));
    let weights = [weights(first), weights(second)];
    let mut row = || rig.single(width, &random.values(width, 1.0));
    let (biases, norm_weight) = ([row(), row()], row());
    let mut are_added = [false; 2];
    macro_rules! run {
        ($backend:ident, $index:literal) => {{
            let [first, second] = &mut deltas;
            let mut delta = [Some(&mut first.$backend), Some(&mut second.$backend)];
            let projections = [0, 1].map(|i| {
                let (input, weight) = (&inputs[i].$backend, &weights[i].$backend);
                let bias = with_bias.then_some(&biases[i].$backend);
                let delta = delta[i].take()?;
                (in_features[i] > 0).then_some(Projection { input, weight, bias, delta })
            });
            let is_added = rig.$backend.project(projections, &mut residual.$backend, rows).unwrap();
            let waiting = [0, 1].map(|i| {
                let bias = with_bias.then_some(&biases[i].$backend);
                let waits = !is_added && in_features[i] > 0;
                waits.then_some(Delta { values: &deltas[i].$backend, bias })
            });
            let norm = Norm::rms(&norm_weight.$backend, 1e-5);
            let (residual, out) = (&mut residual.$backend, &mut out.$backend);
            rig.$backend.add_norm(residual, waiting, &norm, out, rows).unwrap();
            are_added[$index] = is_added;
        }};
    }
    run!(cpu, 0);
    run!(gpu, 1);
    let what = format!("{:?} {rows} x {width} x {in_features:?}, bias {with_bias}, {what}", rig.dtype);
    rig.assert_same(&format!("residual of {what}"), &residual, rig.tolerance());
    rig.assert_same(&format!("norm of {what}"), &out, rig.tolerance());
    assert!(!are_added[0], "{what}: the CPU leaves it to the norm");
    are_added[1]
}

#[test]
fn projections_to_the_residual() {
    for dtype in DTYPES {
        let mut rig = Rig::new(dtype);
        rig.reserve(&BackendLimits { max_tokens: 64, max_slots: 4, vocab_size: 8 });
        let mut random = Random(15);
        let widths = [
            (8, [8, 0]),
            (40, [264, 0]),
            (232, [0, 72]),
            (40, [72, 200]),
            (232, [584, 8]),
            (1544, [64, 128]),
        ];
        let mut shapes: Vec<ProjectionShape> = Vec::new();
        for rows in sizes(&[1, 16, 17, 65, 300, 513], 65) {
            shapes.extend(widths.map(|(width, in_features)| (rows, width, in_features)));
        }
        // More tiles than the device takes at once.
        shapes.extend(sizes(&[1100], 65).iter().map(|&rows| (rows, 4104, [136, 72])));
        // To choose the fastest way leaves the residual as it was.
        for &shape in &shapes {
            check_projections(&mut rig, &mut random, shape, true, "as timed");
        }
        for &shape in &shapes {
            for columns in ways(&rig, shape.0) {
                rig.gpu.force_tiles(columns);
                for with_bias in [false, true] {
                    let what = format!("tiles {columns}");
                    let is_added = check_projections(&mut rig, &mut random, shape, with_bias, &what);
                    assert_eq!(is_added, columns > 0, "{shape:?}, {what}");
                }
            }
        }
    }
}

#[test]
fn logits_of_sampled_rows() {
    for dtype in DTYPES {
        for (vocab_size, width) in [(1000, 576), (49_153, 64)] {
            if is_small() && vocab_size > 1000 {
                continue;
            }
            let mut rig = Rig::new(dtype);
            let mut random = Random(5);
            let (max_tokens, max_slots) = (150, 64);
            rig.reserve(&BackendLimits { max_tokens, max_slots, vocab_size });
            let head = rig.weight(width, &random.values(vocab_size * width, 1.0));
            let hidden = rig.activation(width, &random.values(max_tokens * width, 1.0));
            let bias = rig.single(vocab_size, &random.values(vocab_size, 3.0));
            // Decodes alone need no gathering; a prompt among them does; forty rows go through cuBLASLt.
            let cases: [(Vec<usize>, Vec<u32>); 4] = [
                (vec![1, 1, 1], vec![0, 1, 2]),
                (vec![1, 70, 1, 1], vec![0, 1, 3]),
                (vec![1; 40], (0..40).collect()),
                ((0..40).map(|row| 1 + row % 3).collect(), (0..40).filter(|row| row % 5 > 0).collect()),
            ];
            for (lengths, sampled) in cases {
                let row = |(slot, &length): (usize, &usize)| BatchRow {
                    slot: slot as u32,
                    tokens: vec![0; length],
                    context_len: length,
                    blocks: vec![],
                };
                let rows: Vec<_> = lengths.iter().enumerate().map(row).collect();
                rig.load_batch(&batch(&rows, &sampled));
                for (with_bias, scale, soft_cap) in
                    [(false, 1.0, None), (true, 1.0, None), (false, 0.5, Some(30.0)), (true, 2.0, Some(5.0))]
                {
                    let mut out = rig.single(vocab_size, &vec![f32::NAN; max_slots * vocab_size]);
                    let cpu_bias = with_bias.then_some(&bias.cpu);
                    let gpu_bias = with_bias.then_some(&bias.gpu);
                    let cpu_head = Head { weight: &head.cpu, bias: cpu_bias, scale, soft_cap };
                    let gpu_head = Head { weight: &head.gpu, bias: gpu_bias, scale, soft_cap };
                    rig.cpu.logits(&hidden.cpu, &cpu_head, &mut out.cpu).unwrap();
                    rig.gpu.logits(&hidden.gpu, &gpu_head, &mut out.gpu).unwrap();
                    let (count, what) = (sampled.len(), format!("{with_bias} {scale} {soft_cap:?}"));
                    let what =
                        format!("logits {dtype:?} {count} of {} rows, {vocab_size} {what}", rows.len());
                    rig.assert_same(&what, &out, 1e-5);
                }
            }
        }
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let mut gpu = gpu();
    let mut other = Rig::new(DType::Bf16);
    let mut alloc = |dtype, rows, columns| gpu.alloc(dtype, rows, columns).unwrap();
    let input = alloc(DType::Bf16, 4, 64);
    let narrow = alloc(DType::Bf16, 4, 12);
    let weight = alloc(DType::Bf16, 32, 64);
    let half_weight = alloc(DType::F16, 32, 64);
    let mut out = alloc(DType::Bf16, 4, 32);
    let foreign = other.gpu.alloc(DType::Bf16, 4, 64).unwrap();
    assert!(gpu.linear(&input, &weight, &mut out, 5).is_err(), "more rows than there are");
    assert!(gpu.linear(&narrow, &weight, &mut out, 4).is_err(), "widths differ");
    assert!(gpu.linear(&input, &half_weight, &mut out, 4).is_err(), "types differ");
    assert!(gpu.linear(&foreign, &weight, &mut out, 4).is_err(), "another backend's tensor");
    assert!(gpu.linear(&input, &weight, &mut out, 4).is_ok());
}
