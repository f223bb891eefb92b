//! What several integration tests need.

use std::path::PathBuf;

/// The SmolLM2 GGUF file; `scripts/setup.sh` fetches it.
pub fn smollm2() -> PathBuf {
    let path = std::env::var_os("INFLIGHT_TEST_MODEL").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    });
    assert!(path.is_file(), "{} is missing; run scripts/setup.sh to fetch it", path.display());
    path
}
