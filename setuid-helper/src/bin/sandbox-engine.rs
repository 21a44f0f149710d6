//! The native engine, without the part that may be setuid.
#![deny(unsafe_code)]

fn main() {
    sandbox_native::main(sandbox_native::Program::Engine);
}
