//! What a batch may hold, and the operations that read tokens and slots from it.

use super::*;
use crate::backend::RopePairing;

const LIMITS: BackendLimits = BackendLimits { max_tokens: 8, max_slots: 3, vocab_size: 10 };
const LAYOUT: KvLayout = KvLayout {
    num_layers: 1,
    num_blocks: 6,
    block_size: 16,
    num_kv_heads: 1,
    head_dim: 4,
    dtype: DType::F32,
};

/// Two rows: a chunk of three tokens that ends at 20, and one token at position 3.
fn batch() -> Batch {
    Batch {
        slots: vec![2, 0],
        query_starts: vec![0, 3, 4],
        context_lens: vec![20, 4],
        tokens: vec![1, 2, 3, 9],
        block_starts: vec![0, 2, 3],
        block_tables: vec![5, 0, 1],
        sampled_rows: vec![0, 1],
    }
}

fn reserved() -> Cpu {
    let mut cpu = Cpu::new(2).unwrap();
    cpu.reserve(&LIMITS).unwrap();
    cpu.alloc_kv_cache(&LAYOUT).unwrap();
    cpu
}

#[test]
fn bad_batches_are_refused() {
    let mut cpu = reserved();
    cpu.load_batch(&batch()).unwrap();
    type Change = fn(&mut Batch);
    let changes: [(&str, Change); 19] = [
        ("slot 3", |b| b.slots[0] = 3),
        ("stands twice", |b| b.slots[1] = 2),
        ("query_starts", |b| b.query_starts[1] = 5),
        ("query_starts", |b| b.query_starts[0] = 1),
        ("query_starts", |b| b.query_starts[2] = 3),
        ("query_starts", |b| b.query_starts.clear()),
        ("query_starts", |b| b.query_starts.push(4)),
        ("block_starts", |b| b.block_starts[1] = 4),
        ("block_starts", |b| b.block_starts[2] = 9),
        ("context_lens", |b| b.context_lens.truncate(1)),
        ("context of 2", |b| b.context_lens[0] = 2),
        ("2 blocks for a context of 33", |b| b.context_lens[0] = 33),
        ("blocks for a context of 4294967295", |b| b.context_lens[0] = u32::MAX),
        ("0 tokens", |b| b.query_starts[1] = 4),
        ("block 6", |b| b.block_tables[1] = 6),
        ("token 10", |b| b.tokens[2] = 10),
        ("sampled_rows[1]", |b| b.sampled_rows[1] = 2),
        ("sampled_rows[1]", |b| b.sampled_rows = vec![1, 0]),
        ("9 tokens", |b| {
            b.tokens.resize(9, 0);
            b.query_starts[2] = 9;
            b.context_lens[1] = 9;
        }),
    ];
    for (word, change) in changes {
        let mut bad = batch();
        change(&mut bad);
        match cpu.load_batch(&bad) {
            Err(BackendError::InvalidArgument { operation: "load_batch", message }) => {
                assert!(message.contains(word), "{message}");
            }
            other => panic!("{word}: {other:?}"),
        }
        assert_eq!(cpu.batch.num_tokens(), 0, "{word}: a refused batch is still there");
    }
    cpu.load_batch(&Batch::new()).unwrap();
}

#[test]
fn a_batch_runs_only_on_the_cache_it_was_checked_with() {
    let shape = AttentionShape { num_heads: 1, num_kv_heads: 1, head_dim: 4, scale: 1.0 };
    let mut cpu = reserved();
    let mut small = cpu.alloc_kv_cache(&KvLayout { num_blocks: 1, ..LAYOUT }).unwrap();
    let cache = cpu.alloc_kv_cache(&LAYOUT).unwrap();
    cpu.load_batch(&batch()).unwrap();
    let mut qkv = cpu.alloc(DType::F32, 8, 12).unwrap();
    let mut out = cpu.alloc(DType::F32, 8, 4).unwrap();
    let table = cpu.alloc(DType::F32, 20, 4).unwrap();
    let short_table = cpu.alloc(DType::F32, 19, 4).unwrap();
    let mut fits = cpu.alloc_kv_cache(&LAYOUT).unwrap();
    let half = |table| QkvTransform::rotate(table, RopePairing::Half);
    let plain = Scoring::default();
    assert!(cpu.attention(&qkv, &shape, &plain, &cache, 0, &mut out).is_ok());
    assert!(cpu.attention(&qkv, &shape, &plain, &cache, 1, &mut out).is_err());
    assert!(cpu.attention(&qkv, &shape, &plain, &small, 0, &mut out).is_err());
    assert!(cpu.rope_and_write_kv(&mut qkv, &half(&table), &shape, &mut small, 0).is_err());
    assert!(cpu.rope_and_write_kv(&mut qkv, &half(&short_table), &shape, &mut fits, 0).is_err());
    assert!(cpu.rope_and_write_kv(&mut qkv, &half(&table), &shape, &mut fits, 0).is_ok());
    let narrow = cpu.alloc(DType::F32, 1, 4).unwrap();
    let with_bias = QkvTransform { bias: Some(&narrow), ..half(&table) };
    assert!(cpu.rope_and_write_kv(&mut qkv, &with_bias, &shape, &mut fits, 0).is_err());
    let wrong = AttentionShape { num_heads: 3, num_kv_heads: 2, head_dim: 4, scale: 1.0 };
    assert!(cpu.attention(&qkv, &wrong, &plain, &cache, 0, &mut out).is_err());
}

#[test]
fn embed_copies_rows_of_the_table() {
    let values = Random(21).values(10 * 37, 1.0);
    for dtype in DTYPES {
        let mut cpu = reserved();
        cpu.load_batch(&batch()).unwrap();
        let table = tensor(&mut cpu, dtype, 37, &values);
        let mut out = poisoned(&mut cpu, 5, 37);
        cpu.embed(&Embedding::plain(&table), &mut out).unwrap();
        let rows: Vec<_> =
            [1, 2, 3, 9].iter().flat_map(|&t| &values[t * 37..(t + 1) * 37]).copied().collect();
        let expected: Vec<_> = rounded(dtype, &rows).iter().map(|&x| (f64::from(x), 0.0)).collect();
        assert_close("embed", &read(&mut cpu, &out), &expected);
        let short = tensor(&mut cpu, dtype, 37, &values[..9 * 37]);
        assert!(cpu.embed(&Embedding::plain(&short), &mut out).is_err());
    }
}

#[test]
fn embed_scales_and_adds_positions() {
    let (tokens, positions) = (Random(25).values(10 * 37, 1.0), Random(26).values(20 * 37, 1.0));
    let row_positions: Vec<usize> = {
        let batch = batch();
        let rows = 0..batch.num_rows();
        rows.flat_map(|row| batch.first_position(row)..batch.context_lens[row] as usize).collect()
    };
    for dtype in DTYPES {
        let mut cpu = reserved();
        cpu.load_batch(&batch()).unwrap();
        let (held_tokens, held_positions) = (rounded(dtype, &tokens), rounded(dtype, &positions));
        let table = tensor(&mut cpu, dtype, 37, &tokens);
        let positions_table = tensor(&mut cpu, dtype, 37, &positions);
        let embedding = Embedding { table: &table, scale: 6.5, positions: Some(&positions_table) };
        let mut out = poisoned(&mut cpu, 5, 37);
        cpu.embed(&embedding, &mut out).unwrap();
        let mut expected = Vec::new();
        for (token, position) in [1, 2, 3, 9].into_iter().zip(&row_positions) {
            for column in 0..37 {
                let value = 6.5 * f64::from(held_tokens[token * 37 + column])
                    + f64::from(held_positions[position * 37 + column]);
                expected.push((value, 1e-6));
            }
        }
        assert_close("embed", &read(&mut cpu, &out), &expected);
        let short = tensor(&mut cpu, dtype, 37, &positions[..19 * 37]);
        assert!(cpu.embed(&Embedding { positions: Some(&short), ..embedding }, &mut out).is_err());
    }
}

#[test]
fn logits_take_bias_scale_and_cap() {
    for mut cpu in backends() {
        cpu.reserve(&LIMITS).unwrap();
        cpu.alloc_kv_cache(&LAYOUT).unwrap();
        cpu.load_batch(&batch()).unwrap();
        let weight = tensor(&mut cpu, DType::F32, 33, &Random(23).values(10 * 33, 1.0));
        let hidden = tensor(&mut cpu, DType::F32, 33, &Random(22).values(5 * 33, 1.0));
        let biases = Random(24).values(10, 3.0);
        let bias = tensor(&mut cpu, DType::F32, 10, &biases);
        let mut plain = poisoned(&mut cpu, 3, 10);
        cpu.logits(&hidden, &Head::plain(&weight), &mut plain).unwrap();
        let plain = read(&mut cpu, &plain);
        for (scale, soft_cap) in [(1.0, None), (0.25, None), (1.5, Some(4.0))] {
            let mut out = poisoned(&mut cpu, 3, 10);
            let head = Head { weight: &weight, bias: Some(&bias), scale, soft_cap };
            cpu.logits(&hidden, &head, &mut out).unwrap();
            let expected = plain[..20].iter().zip(biases.iter().cycle()).map(|(&product, &bias)| {
                let logit = (f64::from(product) + f64::from(bias)) * f64::from(scale);
                (soft_cap.map_or(logit, |cap| f64::from(cap) * (logit / f64::from(cap)).tanh()), 2e-6)
            });
            assert_close("logits", &read(&mut cpu, &out), &expected.collect::<Vec<_>>());
        }
        let head = Head { bias: Some(&weight), ..Head::plain(&weight) };
        assert!(cpu.logits(&hidden, &head, &mut poisoned(&mut Cpu::new(1).unwrap(), 3, 10)).is_err());
    }
}

#[test]
fn logits_are_of_the_last_tokens_of_sampled_rows() {
    for mut cpu in backends() {
        cpu.reserve(&LIMITS).unwrap();
        cpu.alloc_kv_cache(&LAYOUT).unwrap();
        cpu.load_batch(&batch()).unwrap();
        let hidden = Random(22).values(5 * 33, 1.0);
        let head = tensor(&mut cpu, DType::Bf16, 33, &Random(23).values(10 * 33, 1.0));
        let all = tensor(&mut cpu, DType::F32, 33, &hidden);
        let mut out = poisoned(&mut cpu, 3, 10);
        cpu.logits(&all, &Head::plain(&head), &mut out).unwrap();
        let last = tensor(&mut cpu, DType::F32, 33, &hidden[2 * 33..4 * 33]);
        let mut expected = poisoned(&mut cpu, 3, 10);
        cpu.linear(&last, &head, &mut expected, 2).unwrap();
        assert_eq!(bits(&read(&mut cpu, &out)), bits(&read(&mut cpu, &expected)));
    }
}

#[test]
fn a_sampled_token_feeds_the_next_batch() {
    let mut cpu = reserved();
    for slot in [0, 2] {
        cpu.reset_slot(slot, &GREEDY).unwrap();
    }
    assert!(cpu.reset_slot(3, &GREEDY).is_err());
    assert!(cpu.collect().is_err());
    cpu.load_batch(&batch()).unwrap();
    let mut logits = Random(24).values(2 * 10, 1.0);
    (logits[7], logits[14]) = (5.0, 5.0);
    let logits = tensor(&mut cpu, DType::F32, 10, &logits);
    cpu.sample(&logits).unwrap();
    let sampled: Vec<_> = cpu.collect().unwrap().iter().map(|s| (s.slot, s.token)).collect();
    assert_eq!(sampled, [(2, Some(7)), (0, Some(4))]);
    let mut next = batch();
    (next.tokens[2], next.tokens[3]) = (crate::backend::TOKEN_FROM_SLOT, crate::backend::TOKEN_FROM_SLOT);
    cpu.load_batch(&next).unwrap();
    assert_eq!(cpu.batch.tokens, [1, 2, 7, 4]);
}
