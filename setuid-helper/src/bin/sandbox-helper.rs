//! The native engine that may be installed setuid-root.
#![deny(unsafe_code)]

fn main() {
    sandbox_native::main(sandbox_native::Program::Helper);
}
