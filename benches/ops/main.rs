//! Speed of the CPU backend's operations, as a share of what the machine can do.
//!
//! `cargo bench --bench ops` runs the operations of a decoder of SmolLM2-135M's shape with random weights: one
//! sequence, 16 sequences, and a prompt of 512 tokens. `-- --dtype f32|f16|bf16` sets the type of weights and
//! cache, `-- --threads N` the threads, `-- --only WORD` picks workloads by name. For each operation it
//! prints its time in one step and the larger of its shares of the peaks that were measured first: reading memory,
//! and f32 multiply-adds.

mod decoder;
mod peak;

use inflight::backend::DType;
use inflight::backend::cpu::Cpu;

use decoder::{Decoder, Workload};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value_of = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).map(String::as_str)
    };
    let dtype = match value_of("--dtype").unwrap_or("bf16") {
        "f32" => DType::F32,
        "f16" => DType::F16,
        "bf16" => DType::Bf16,
        other => panic!("--dtype {other}: f32, f16 or bf16"),
    };
    let threads = value_of("--threads").map_or(0, |n| n.parse().expect("--threads takes a number"));

    let cpu = Cpu::new(threads).expect("a CPU backend");
    let num_threads = cpu.num_threads();
    let peaks = peak::measure(num_threads);
    println!(
        "{num_threads} threads, {}, weights {dtype:?}; peaks {:.1} GB/s read, {:.0} GFLOP/s f32",
        cpu.instruction_set(),
        peaks.bytes_per_s / 1e9,
        peaks.flops_per_s / 1e9
    );

    let mut decoder = Decoder::new(cpu, dtype);
    for workload in [
        Workload { name: "decode, 1 sequence", num_sequences: 1, tokens_each: 1, context_len: 528 },
        Workload { name: "decode, 16 sequences", num_sequences: 16, tokens_each: 1, context_len: 528 },
        Workload { name: "prompt of 512", num_sequences: 1, tokens_each: 512, context_len: 512 },
    ] {
        if value_of("--only").is_some_and(|word| !workload.name.contains(word)) {
            continue;
        }
        let report = decoder.measure(&workload);
        let step_s = report.step_s;
        println!(
            "\n{}: {:.2} ms a step, {:.1} tokens/s",
            workload.name,
            step_s * 1e3,
            workload.num_tokens() as f64 / step_s
        );
        println!(
            "{:>16} {:>9} {:>6} {:>8} {:>9} {:>7}",
            "operation", "ms", "share", "GB/s", "GFLOP/s", "of peak"
        );
        for op in &report.ops {
            let (bytes_per_s, flops_per_s) = (op.bytes / op.seconds, op.flops / op.seconds);
            let of_peak = (bytes_per_s / peaks.bytes_per_s).max(flops_per_s / peaks.flops_per_s);
            println!(
                "{:>16} {:>9.3} {:>5.1}% {:>8.1} {:>9.1} {:>6.0}%",
                op.name,
                op.seconds * 1e3,
                100.0 * op.seconds / step_s,
                bytes_per_s / 1e9,
                flops_per_s / 1e9,
                100.0 * of_peak
            );
        }
    }
}
