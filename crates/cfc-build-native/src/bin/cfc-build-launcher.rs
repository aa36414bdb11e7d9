//! A launcher without the rest of `cfc`, for this crate's tests.

fn main() {
    cfc_sandbox::launcher_main(std::env::args_os())
}
