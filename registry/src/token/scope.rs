//! [`Scope`]: what a client asks a token for, as distribution's token documentation has it:
//! `repository:team/app:pull,push`, `registry:catalog:*`.

use cfc_oci::RepositoryName;
use serde::{Deserialize, Serialize};

use crate::{Access, Action};

/// Scopes that one token may be asked for; more are refused.
pub(crate) const MAX_SCOPES: usize = 50;

/// Actions in one place, both as they are asked for and as they are granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scope {
    /// `repository` or `registry`.
    #[serde(rename = "type")]
    pub kind: String,
    /// A repository, or `catalog`, `collection`, `metrics`.
    pub name: String,
    /// `pull`, `push`, `delete`, `*`.
    pub actions: Vec<String>,
}

impl Scope {
    /// Reads scopes; several in one text are separated by spaces. What cannot be read grants nothing, and is left out.
    pub(crate) fn parse_all(text: &str) -> impl Iterator<Item = Scope> {
        text.split(' ').filter_map(|text| {
            let (kind, rest) = text.split_once(':')?;
            let (name, actions) = rest.rsplit_once(':')?;
            let actions = actions.split(',').filter(|action| !action.is_empty()).map(str::to_string).collect();
            Some(Scope { kind: kind.to_string(), name: name.to_string(), actions })
        })
    }

    /// The accesses that the scope names.
    pub(crate) fn accesses(&self) -> Vec<(&'static str, Access)> {
        let asks = |action: &str| self.actions.iter().any(|asked| asked == action || asked == "*");
        if self.kind == "repository" {
            let Ok(name) = self.name.parse::<RepositoryName>() else { return Vec::new() };
            let actions = [("pull", Action::Pull), ("push", Action::Push), ("delete", Action::Delete)];
            let asked = actions.into_iter().filter(|(text, _)| asks(text));
            return asked.map(|(text, action)| (text, Access { action, repository: Some(name.clone()) })).collect();
        }
        let whole = [("catalog", Action::Catalog), ("collection", Action::Collect), ("metrics", Action::Metrics)];
        let whole = whole.into_iter().filter(|(name, _)| self.kind == "registry" && self.name == *name && asks("*"));
        whole.map(|(_, action)| ("*", Access { action, repository: None })).collect()
    }

    /// Whether the scope, as it was granted, covers `access`.
    pub(crate) fn covers(&self, access: &Access) -> bool {
        let (kind, name, action) = match (access.action, &access.repository) {
            (Action::Look, Some(_)) => {
                let either = [Action::Pull, Action::Push].map(|action| Access { action, ..access.clone() });
                return either.iter().any(|access| self.covers(access));
            }
            (Action::Pull | Action::Mount, Some(name)) => ("repository", name.as_str(), "pull"),
            (Action::Push | Action::Continue, Some(name)) => ("repository", name.as_str(), "push"),
            (Action::Delete, Some(name)) => ("repository", name.as_str(), "delete"),
            (Action::Catalog, _) => ("registry", "catalog", "*"),
            (Action::Collect, _) => ("registry", "collection", "*"),
            (Action::Metrics, _) => ("registry", "metrics", "*"),
            _ => return false,
        };
        self.kind == kind && self.name == name && self.actions.iter().any(|granted| granted == action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, Option<&str>)]) {
        let scopes: Vec<Scope> = Scope::parse_all(text).collect();
        let found: Vec<_> = scopes.iter().flat_map(Scope::accesses).collect();
        let found: Vec<_> = found.iter().map(|(text, a)| (*text, a.repository.as_ref().map(|n| n.as_str()))).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn scopes_are_read() {
        check("repository:a/b:pull,push", &[("pull", Some("a/b")), ("push", Some("a/b"))]);
        check("repository:a:*", &[("pull", Some("a")), ("push", Some("a")), ("delete", Some("a"))]);
        check("repository:a:pull repository:b:push", &[("pull", Some("a")), ("push", Some("b"))]);
        check("registry:catalog:* repository:a:", &[("*", None)]);
        for nothing in ["", "repository", "repository:a", "Repository:a:pull", "repository:A:pull", "x:catalog:*"] {
            check(nothing, &[]);
        }
        check("repository:host:5000/a:pull repository:../a:pull repository(plugin):a:pull", &[]);
    }

    #[test]
    fn a_grant_covers_its_own_place_only() {
        let scope = Scope::parse_all("repository:a:pull,push").next().expect("a scope");
        let access = |action, name: &str| Access { action, repository: name.parse().ok() };
        assert!(scope.covers(&access(Action::Pull, "a")) && scope.covers(&access(Action::Continue, "a")));
        assert!(!scope.covers(&access(Action::Delete, "a")));
        let push = Scope { actions: vec!["push".to_string()], ..scope.clone() };
        assert!(push.covers(&access(Action::Look, "a")) && !push.covers(&access(Action::Pull, "a")));
        assert!(!push.covers(&access(Action::Look, "b")));
        assert!(!scope.covers(&access(Action::Pull, "a/b")) && !scope.covers(&access(Action::Pull, "b")));
        assert!(!scope.covers(&Access { action: Action::Catalog, repository: None }));
    }
}
