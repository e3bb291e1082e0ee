//! Compiles the contracts without `protoc`.

/// Messages with credentials: what they print is written by hand (`src/secret.rs`).
const SECRET: [&str; 3] = ["BackupRepository", "S3Location", "DkimKey"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = protox::compile(["proto/admin.proto", "proto/peer.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".quorumail.peer.v1")
        .skip_debug(SECRET.map(|name| format!(".quorumail.admin.v1.{name}")))
        .compile_fds(files)?;
    println!("cargo::rerun-if-changed=proto");
    Ok(())
}
