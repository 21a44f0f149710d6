//! The native engine that may be installed setuid-root.
#![cfg_attr(freestanding, no_std, no_main)]
#![deny(unsafe_code)]

use sandbox_native::{Program, Start};

#[cfg(not(freestanding))]
fn main() {
    sandbox_native::main(Program::Helper, Start::hosted());
}

/// The name that the library's start code calls.
#[cfg(freestanding)]
#[allow(unsafe_code)] // for the name alone
#[unsafe(no_mangle)]
fn sandbox_program(start: Start) -> ! {
    sandbox_native::main(Program::Helper, start)
}
