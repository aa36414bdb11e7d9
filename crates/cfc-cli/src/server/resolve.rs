//! Which instance a person means.

use std::collections::BTreeSet;

use cfc_control::InstanceError;
use cfc_runtime::{InstanceView, Runtime};

use crate::server::views::object_id;

/// The full name of the instance that is meant by `given`: its name, the id of its Durable Object, or the beginning of
/// either. Those that live come before those that have ended.
pub fn resolve(runtime: &Runtime, given: &str) -> Result<String, InstanceError> {
    let (live, resting): (Vec<_>, Vec<_>) = runtime.list().into_iter().partition(|view| view.phase.is_live());
    let name = |view: InstanceView| view.spec.name;
    let removed = runtime.ended_instances().into_iter().map(|instance| instance.name);
    let ended: BTreeSet<String> = resting.into_iter().map(name).chain(removed).collect();
    find(given, live.into_iter().map(name).collect(), ended.into_iter().collect())
}

fn find(given: &str, live: Vec<String>, ended: Vec<String>) -> Result<String, InstanceError> {
    let is_exact = |name: &str| name == given || object_id(name) == given;
    // Everything begins with nothing, and nobody means that.
    let begins = |name: &str| !given.is_empty() && (name.starts_with(given) || object_id(name).starts_with(given));
    let given = || given.to_string();
    for names in [&live, &ended] {
        for fits in [&is_exact as &dyn Fn(&str) -> bool, &begins] {
            let fitting: Vec<String> = names.iter().filter(|name| fits(name)).cloned().collect();
            match fitting.as_slice() {
                [] => {}
                [one] => return Ok(one.clone()),
                _ => {
                    let fitting = fitting.iter().map(|name| object_id(name).to_string()).collect();
                    return Err(InstanceError::Ambiguous { given: given(), fitting });
                }
            }
        }
    }
    Err(InstanceError::NoSuchInstance { given: given() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_ids_and_unambiguous_beginnings_are_understood() {
        let live = || ["workerd-app-C-0af3", "workerd-app-C-0b11"].map(str::to_string).to_vec();
        let ended = || ["workerd-app-C-0af9".to_string()].to_vec();
        let found = |given: &str| find(given, live(), ended()).map_err(|error| error.to_string());
        for given in ["workerd-app-C-0af3", "0af3", "0af", "0a"] {
            assert_eq!(found(given).as_deref(), Ok("workerd-app-C-0af3"), "{given}");
        }
        assert_eq!(found("0af9").as_deref(), Ok("workerd-app-C-0af9"));
        assert_eq!(found("0"), Err("`0` is the beginning of 2 instances: 0af3, 0b11".to_string()));
        assert_eq!(found("x"), Err("there is no instance `x`".to_string()));
        let alone = find("", vec!["workerd-app-C-0af3".to_string()], Vec::new());
        assert!(alone.is_err(), "an empty name names nobody");
    }
}
