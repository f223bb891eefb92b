// Compiles `kernels/*.cu` to fat binaries that `src/backend/cuda` embeds.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

/// Machine code for Ampere, Ada and Hopper, and PTX for what comes later.
const TARGETS: [&str; 4] = [
    "arch=compute_80,code=sm_80",
    "arch=compute_89,code=sm_89",
    "arch=compute_90a,code=sm_90a",
    "arch=compute_90,code=compute_90",
];

/// The target of files whose name ends with [`HOPPER_SUFFIX`]: instructions that no other architecture has.
const HOPPER_TARGET: &str = "arch=compute_90a,code=sm_90a";
const HOPPER_SUFFIX: &str = "_sm90";

const FLAGS: [&str; 7] =
    ["-std=c++17", "-O3", "-fatbin", "-Xfatbin", "-compress-all", "--Werror", "all-warnings"];

/// Environment variable with the targets to build other files for instead, separated by spaces, for quick builds.
const TARGETS_VARIABLE: &str = "INFLIGHT_CUDA_TARGETS";

/// Writes `kernels.rs` to OUT_DIR: `FATBINS`, an array of file names and contents.
pub fn build() {
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-env-changed={TARGETS_VARIABLE}");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let nvcc = find_nvcc(&root).unwrap_or_else(|| {
        panic!(
            "nvcc is neither on PATH nor in CUDA_HOME nor in .cache/cuda; run scripts/cuda-toolkit.sh, or \
             build without CUDA: --no-default-features"
        )
    });
    let targets = env::var(TARGETS_VARIABLE).unwrap_or_else(|_| TARGETS.join(" "));
    let sources = kernel_sources(&root.join("kernels"));

    let queue = Mutex::new(sources.iter());
    let num_threads =
        env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1).clamp(1, sources.len());
    thread::scope(|scope| {
        for _ in 0..num_threads {
            scope.spawn(|| {
                while let Some(source) = next(&queue) {
                    let is_for_hopper = stem(source).ends_with(HOPPER_SUFFIX);
                    compile(&nvcc, if is_for_hopper { HOPPER_TARGET } else { &targets }, source, &out);
                }
            });
        }
    });

    let mut table = format!("pub(super) static FATBINS: [(&str, &[u8]); {}] = [\n", sources.len());
    for source in &sources {
        let name = stem(source);
        let path = out.join(format!("{name}.fatbin"));
        writeln!(table, "    ({name:?}, include_bytes!({path:?})),").expect("a string takes everything");
    }
    table.push_str("];\n");
    write_file(&out.join("kernels.rs"), &table);
}

fn next<'a>(queue: &Mutex<std::slice::Iter<'a, PathBuf>>) -> Option<&'a PathBuf> {
    queue.lock().ok()?.next()
}

fn find_nvcc(root: &Path) -> Option<PathBuf> {
    let on_path =
        env::var_os("PATH").into_iter().flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
    let in_home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin"));
    let pythons = fs::read_dir(root.join(".cache/cuda/lib")).into_iter().flatten().flatten();
    let in_cache = pythons.map(|python| python.path().join("site-packages/nvidia/cu13/bin"));
    on_path.chain(in_home).chain(in_cache).map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file())
}

fn kernel_sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut sources: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();
    sources
}

/// Compiles a file, or takes what an earlier build made of the same sources for the same targets: other profiles
/// and feature sets need the same kernels.
fn compile(nvcc: &Path, targets: &str, source: &Path, out: &Path) {
    let made = out.join(format!("{}.fatbin", stem(source)));
    let Some(kept) = kept_path(nvcc, targets, source, out) else {
        return run_nvcc(nvcc, targets, source, &made);
    };
    if fs::copy(&kept, &made).is_ok() {
        return;
    }
    run_nvcc(nvcc, targets, source, &made);
    // A build that runs at the same time may do the same; a file appears whole or not at all.
    let partial = kept.with_extension(std::process::id().to_string());
    let is_kept = fs::copy(&made, &partial).and_then(|_| fs::rename(&partial, &kept));
    if let Err(error) = is_kept {
        println!("cargo:warning=cannot keep {}: {error}", kept.display());
    }
}

/// Where the fat binary of these inputs is kept: in a folder of the target directory, under their hash.
fn kept_path(nvcc: &Path, targets: &str, source: &Path, out: &Path) -> Option<PathBuf> {
    // OUT_DIR is TARGET/PROFILE/build/PACKAGE/out.
    let folder = out.ancestors().nth(4)?.join("kernels");
    fs::create_dir_all(&folder).ok()?;
    let mut hasher = DefaultHasher::new();
    (nvcc, targets, FLAGS, fs::read(source).ok()?).hash(&mut hasher);
    let mut headers: Vec<PathBuf> =
        fs::read_dir(source.parent()?).ok()?.flatten().map(|e| e.path()).collect();
    headers.retain(|path| path.extension().is_some_and(|extension| extension == "cuh"));
    headers.sort();
    for header in headers {
        (&header, fs::read(&header).ok()?).hash(&mut hasher);
    }
    Some(folder.join(format!("{}-{:016x}.fatbin", stem(source), hasher.finish())))
}

fn run_nvcc(nvcc: &Path, targets: &str, source: &Path, made: &Path) {
    let mut command = Command::new(nvcc);
    command.args(FLAGS);
    for target in targets.split_whitespace() {
        command.arg("-gencode").arg(target);
    }
    command.arg("-o").arg(made).arg(source);
    let output = command.output().unwrap_or_else(|error| panic!("{}: {error}", nvcc.display()));
    if !output.status.success() {
        panic!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn stem(source: &Path) -> &str {
    source.file_stem().and_then(|stem| stem.to_str()).expect("kernel files have plain names")
}

fn write_file(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
