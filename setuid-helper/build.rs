//! Release builds for x86-64 need no C library (README.md); development and test builds are ordinary programs.

use std::env::var;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(freestanding, fuzzing)");
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| var(name).is_ok_and(|found| found == value);
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_ARCH", "x86_64") && is("CARGO_CFG_TARGET_OS", "linux") {
        println!("cargo::rustc-cfg=freestanding");
        println!("cargo::rustc-link-arg-bins=-nostartfiles");
        println!("cargo::rustc-link-arg-bins=-nodefaultlibs");
    }
}
