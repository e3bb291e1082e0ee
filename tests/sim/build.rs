//! Declares the configuration that lets tokio's scheduler take a seed; `make sim` sets it.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(tokio_unstable)");
    println!("cargo::rerun-if-changed=build.rs");
}
