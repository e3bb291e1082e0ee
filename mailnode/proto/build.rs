//! Compiles the contracts without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = protox::compile(["proto/admin.proto", "proto/peer.proto"], ["proto"])?;
    tonic_prost_build::configure().bytes(".quorumail.peer.v1").compile_fds(files)?;
    println!("cargo::rerun-if-changed=proto");
    Ok(())
}
