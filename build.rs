//! Link options of the shared library, and the CUDA kernels.

use std::path::Path;
use std::{env, fs};

#[cfg(feature = "cuda")]
#[path = "build/kernels.rs"]
mod kernels;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    link_options();
    #[cfg(feature = "cuda")]
    kernels::build();
}

fn link_options() {
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    let major = env::var("CARGO_PKG_VERSION_MAJOR").unwrap_or_default();
    let options = [
        // The ABI's major version is part of the name, so that two can be installed side by side.
        format!("-Wl,-soname,libinflight.so.{major}"),
        // A missing library is an error now and not in the host.
        "-Wl,-z,defs".to_owned(),
        // No table of addresses stays writable.
        "-Wl,-z,relro,-z,now".to_owned(),
        // Engine threads run the library's code: dlclose must not unmap it under them.
        "-Wl,-z,nodelete".to_owned(),
        // The library's own calls are not to be replaced by symbols of the host.
        "-Wl,-Bsymbolic".to_owned(),
    ];
    for option in options {
        // Instrumented code gets its missing symbols from the fuzzer.
        if option.ends_with("defs") && env::var_os("CARGO_CFG_FUZZING").is_some() {
            continue;
        }
        println!("cargo:rustc-cdylib-link-arg={option}");
    }
    name_library(&format!("libinflight.so.{major}"));
}

/// Programs look for the library by its soname, also in the build folder, where cargo gives it no such name.
/// The link points to what cargo is about to build.
fn name_library(soname: &str) {
    let out_dir = env::var_os("OUT_DIR").unwrap_or_default();
    // OUT_DIR is PROFILE/build/PACKAGE/out.
    let Some(profile_dir) = Path::new(&out_dir).ancestors().nth(3) else { return };
    let link = profile_dir.join(soname);
    if fs::read_link(&link).is_ok_and(|target| target == Path::new("libinflight.so")) {
        return;
    }
    let _ = fs::remove_file(&link);
    #[cfg(unix)]
    if let Err(error) = std::os::unix::fs::symlink("libinflight.so", &link) {
        println!("cargo:warning=cannot make {}: {error}", link.display());
    }
}
