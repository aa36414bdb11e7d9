//! [`Isolations`]: which application runs how, by configuration file and flags.

use std::collections::BTreeMap;
use std::path::Path;

use cfc_runtime::Isolation;
use cfc_sandbox::{Grant, OciRuntime};

use crate::failure::Failure;
use crate::images::build::sandbox_failure;
use crate::settings::Settings;

/// The name of cfc's own sandbox among the runtimes.
const OWN: &str = "cfc";

/// How the instances of each application are kept apart from the machine.
#[derive(Debug, Clone, Default)]
pub struct Isolations {
    default: Isolation,
    applications: BTreeMap<String, Isolation>,
}

impl Isolations {
    /// Finds every runtime that the configuration file or `flag` names; one that is missing is an error. The flag is
    /// stronger than the file's `runtime`, and what the file says of an application is stronger than both.
    pub fn resolve(settings: &Settings, flag: Option<&str>) -> Result<Isolations, Failure> {
        let runtime = find_runtime(settings, flag.or(settings.file.runtime.as_deref()), "`runtime`")?;
        let default = Isolation { runtime, grants: Vec::new() };
        let mut applications = BTreeMap::new();
        for (name, entry) in &settings.file.applications {
            let place = format!("`applications.{name}`");
            let runtime = match entry.runtime.as_deref() {
                Some(named) => find_runtime(settings, Some(named), &place)?,
                None => default.runtime.clone(),
            };
            applications.insert(name.clone(), Isolation { runtime, grants: grants(&entry.grants, &place)? });
        }
        Ok(Isolations { default, applications })
    }

    /// What holds for an application.
    pub fn of(&self, application: &str) -> Isolation {
        self.applications.get(application).unwrap_or(&self.default).clone()
    }

    /// The same in words for a person: `runsc`, `cfc's own sandbox with fuse`.
    pub fn describe(&self, application: &str) -> String {
        let isolation = self.of(application);
        let runtime = isolation.runtime.as_ref().map_or("cfc's own sandbox", OciRuntime::name);
        let is_granted = |name: &&str| Grant::named(name).is_some_and(|grant| isolation.grants.contains(&grant));
        let grants: Vec<&str> = Grant::NAMES.into_iter().filter(is_granted).collect();
        match grants.is_empty() {
            true => runtime.to_string(),
            false => format!("{runtime} with {}", grants.join(" and ")),
        }
    }
}

/// What holds for `cfc run` with these flags.
pub fn of_run(settings: &Settings, flag: Option<&str>, grant_flags: &[String]) -> Result<Isolation, Failure> {
    let runtime = find_runtime(settings, flag.or(settings.file.runtime.as_deref()), "`runtime`")?;
    Ok(Isolation { runtime, grants: grants(grant_flags, "--grant")? })
}

/// The runtimes that the configuration file names, and what is found of each.
pub fn configured(settings: &Settings) -> Vec<(String, Result<OciRuntime, Failure>)> {
    let of_applications = settings.file.applications.values().filter_map(|entry| entry.runtime.as_ref());
    let named = settings.file.runtimes.keys().chain(&settings.file.runtime).chain(of_applications);
    let names: std::collections::BTreeSet<&String> = named.filter(|name| *name != OWN).collect();
    let find = |name: &String| find_runtime(settings, Some(name), "`runtimes`").transpose();
    names.into_iter().filter_map(|name| Some((name.clone(), find(name)?))).collect()
}

fn find_runtime(settings: &Settings, name: Option<&str>, place: &str) -> Result<Option<OciRuntime>, Failure> {
    let Some(name) = name.filter(|name| *name != OWN) else { return Ok(None) };
    let path = std::env::var("PATH").ok();
    let found = match settings.file.runtimes.get(name) {
        Some(entry) => OciRuntime::find(name, &entry.path, &entry.args, path.as_deref()),
        None => OciRuntime::find(name, Path::new(name), &[], path.as_deref()),
    };
    let hint = format!(
        "install it, or correct {place} in the configuration file; `{OWN}` is the sandbox that needs no other program"
    );
    found.map(Some).map_err(|error| sandbox_failure(error).hint(hint))
}

fn grants(names: &[String], place: &str) -> Result<Vec<Grant>, Failure> {
    let known = || Grant::NAMES.map(|name| format!("`{name}`")).join(" and ");
    let named = |name: &String| {
        Grant::named(name).ok_or_else(|| {
            Failure::new(format!("{place}: there is no grant `{name}`")).hint(format!("there are {}", known()))
        })
    };
    names.iter().map(named).collect()
}
