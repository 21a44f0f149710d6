//! The native engine, without the part that may be setuid; under any other name, the front.
#![cfg_attr(freestanding, no_std, no_main)]
#![deny(unsafe_code)]

use sandbox_native::{Start, front};

#[cfg(not(freestanding))]
fn main() {
    front::main(Start::hosted());
}

/// The name that the library's start code calls.
#[cfg(freestanding)]
#[allow(unsafe_code)] // for the name alone
#[unsafe(no_mangle)]
fn sandbox_program(start: Start) -> ! {
    front::main(start)
}
