//! Link options of the shared library, and the CUDA kernels.

use std::env;

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
        println!("cargo:rustc-cdylib-link-arg={option}");
    }
}
