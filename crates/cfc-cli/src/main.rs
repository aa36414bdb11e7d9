//! The `cfc` command: arguments, output, wiring.

fn main() {}
