//! Forms of the state: what an older program wrote is understood, and what is not understood is refused by name.

use std::os::fd::AsRawFd;

use serde_json::{Value, json};

use super::state::{OLDEST, VERSION};
use super::*;

/// What programs have written since version 1, with something in every field.
const FIRST: &str = include_str!("state-1.json");

/// The forms that are to be read, with their versions.
const FORMS: [(u32, &str); 1] = [(1, FIRST)];

fn value(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn the_form_of_this_version_is_as_it_was() {
    let state = State::decode(FIRST.as_bytes()).expect("it is understood");
    let again = String::from_utf8(state.encode().expect("is written")).expect("text");
    // A field more or less changes the form: then VERSION rises, a file with the new form comes beside this one, and this
    // one must still be read.
    assert_eq!((VERSION, value(&again)), (1, value(FIRST)));
}

#[test]
fn every_form_since_the_oldest_is_read() {
    for (version, text) in FORMS {
        assert!(version >= OLDEST);
        State::decode(text.as_bytes()).unwrap_or_else(|error| panic!("version {version}: {error}"));
    }
    let mut later = value(FIRST);
    later["something_later"] = json!([1]);
    later["sandboxes"][0]["something_later"] = json!({});
    State::decode(later.to_string().as_bytes()).expect("what is only more is no harm");
}

#[test]
fn a_form_too_new_or_too_old_or_broken_is_refused_by_name() {
    for version in [VERSION + 1, OLDEST - 1] {
        let mut other = value(FIRST);
        (other["version"], other["program"]) = (json!(version), json!("9.8.7"));
        // The rest may be as it likes.
        other["sandboxes"] = json!("all different");
        let said = State::decode(other.to_string().as_bytes()).expect_err("it is not understood");
        assert!(said.contains("9.8.7") && said.contains(&format!("version {version}")), "{said}");
    }
    let mut broken = value(FIRST);
    broken["sandboxes"][1]["phase"] = json!("Dreaming");
    let said = State::decode(broken.to_string().as_bytes()).expect_err("nobody knows that");
    assert!(said.contains("Dreaming") && said.contains("0.1.0"), "{said}");
    assert!(State::decode(b"{").is_err() && State::decode(b"").is_err());
}

#[test]
fn what_is_passed_stays_open_and_is_closed_again_otherwise() {
    let file: OwnedFd = File::open("/dev/null").expect("opens").into();
    let flags = || rustix::io::fcntl_getfd(&file).expect("is open");
    let passing = Passing::default();
    let passed = passing.pass(&file);
    assert!(flags().contains(rustix::io::FdFlags::CLOEXEC));
    passing.keep_open(true).expect("is open");
    assert!(flags().is_empty());
    passing.keep_open(false).expect("is open");
    assert!(flags().contains(rustix::io::FdFlags::CLOEXEC));
    assert_eq!(serde_json::to_value(passed).expect("a number"), json!(file.as_raw_fd()));
}
