//! Compiles process 1 of the sandboxes (`init/main.rs`), a program without `std`, so that the launcher can carry it.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=init");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    let output = PathBuf::from(env::var("OUT_DIR")?).join("cfc-init");
    let mut rustc = Command::new(env::var("RUSTC")?);
    rustc.args(["init/main.rs", "--crate-name=cfc_init", "--crate-type=bin", "--edition=2024"]);
    rustc.arg("--target").arg(env::var("TARGET")?).arg("-o").arg(&output);
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={linker}"));
    }
    for option in
        ["opt-level=z", "panic=abort", "strip=symbols", "relocation-model=static", "target-feature=+crt-static"]
    {
        rustc.args(["-C", option]);
    }
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-Wl,--build-id=none", "-Wl,-z,noseparate-code"] {
        rustc.arg("-C").arg(format!("link-arg={argument}"));
    }
    let status = rustc.status()?;
    if !status.success() {
        return Err(format!("process 1 of the sandboxes does not compile: {status}").into());
    }
    Ok(())
}
