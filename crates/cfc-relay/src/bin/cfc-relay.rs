//! A relay without the rest of `cfc`, for this crate's tests.

fn main() {
    cfc_relay::relay_main()
}
