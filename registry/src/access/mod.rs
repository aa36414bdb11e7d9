//! [`AccessRules`]: users with passwords, and who of them may do what where. The authorizer of a registry that a team
//! shares.

mod accounts;
mod pattern;

use std::path::Path;

use async_trait::async_trait;
use serde::Deserialize;

use crate::{Access, Action, Authorizer, Challenge, Credentials, Decision, StorageError};
use accounts::{Accounts, Busy};
pub(crate) use pattern::matches;

/// Everybody, whether they have a password or not.
const EVERYBODY: &str = "anonymous";
/// Everybody who has a password.
const EVERY_USER: &str = "*";

/// Lets some users do some things in some repositories. What no rule allows is refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Names of users; `*` is every user, `anonymous` everybody.
    pub users: Vec<String>,
    /// Patterns of repositories: `*` stands for anything within one component of the name, `**` for anything.
    #[serde(default)]
    pub repositories: Vec<String>,
    /// What they may do.
    pub actions: Vec<Permission>,
}

/// What a rule allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// Read manifests, blobs, tags and referrers.
    Pull,
    /// Write manifests and blobs.
    Push,
    /// Delete tags, manifests and blobs.
    Delete,
    /// List all repositories.
    Catalog,
    /// Have garbage collected.
    Collect,
}

/// Who may do what.
pub struct AccessRules {
    accounts: Accounts,
    rules: Vec<Rule>,
}

impl AccessRules {
    /// The users of an htpasswd file with bcrypt hashes (`htpasswd -B`), which is read again when it has changed. Without
    /// rules every user may do everything, and nobody else anything.
    pub fn new(htpasswd: &Path, rules: Vec<Rule>) -> Result<AccessRules, StorageError> {
        Ok(AccessRules { accounts: Accounts::open(htpasswd)?, rules })
    }

    /// Adds a user whom no rule limits.
    pub fn with_trusted(mut self, name: &str, password: &str) -> AccessRules {
        self.accounts.trust(name, password);
        self
    }

    fn allows(&self, user: &User, access: &Access) -> bool {
        if *user == User::Trusted || (self.rules.is_empty() && *user != User::Nobody) {
            return true;
        }
        let Some(permission) = permission(access.action) else { return *user != User::Nobody };
        self.rules.iter().any(|rule| rule.allows(user, permission, access))
    }
}

/// Who asks.
#[derive(Debug, PartialEq)]
enum User {
    Nobody,
    Named(String),
    Trusted,
}

impl Rule {
    fn allows(&self, user: &User, permission: Permission, access: &Access) -> bool {
        let is_meant = |name: &String| match user {
            _ if name == EVERYBODY => true,
            User::Nobody => false,
            User::Named(own) => name == EVERY_USER || name == own,
            User::Trusted => true,
        };
        // Listing all repositories and collecting garbage are nowhere in particular.
        let is_there = |name: &str| self.repositories.iter().any(|pattern| matches(pattern, name));
        let is_place = access.repository.as_ref().is_none_or(|name| is_there(name.as_str()));
        self.users.iter().any(is_meant) && self.actions.contains(&permission) && is_place
    }
}

/// `None` for what every user may.
fn permission(action: Action) -> Option<Permission> {
    match action {
        Action::Ping => None,
        Action::Pull => Some(Permission::Pull),
        Action::Push => Some(Permission::Push),
        Action::Delete => Some(Permission::Delete),
        Action::Catalog => Some(Permission::Catalog),
        Action::Collect => Some(Permission::Collect),
    }
}

#[async_trait]
impl Authorizer for AccessRules {
    async fn authorize(&self, credentials: &Credentials, access: &Access) -> Decision {
        let challenge = || Decision::Challenge(Challenge::Basic { realm: "cfc registry".to_string() });
        let user = match credentials {
            Credentials::Basic { username, password } => match self.accounts.user(username, password).await {
                Ok(Some(user)) => user,
                Ok(None) => return challenge(),
                Err(Busy) => return Decision::Busy,
            },
            // Not ours; whoever has one gets to know how to ask.
            Credentials::Bearer(_) => return challenge(),
            Credentials::Anonymous => User::Nobody,
        };
        // Who may do something without a password is asked for one all the same when it only asks whether the registry
        // is there: clients decide by that whether to send theirs later.
        match self.allows(&user, access) {
            true => Decision::Allow,
            false if user == User::Nobody => challenge(),
            false => Decision::Deny,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(users: &[&str], repositories: &[&str], actions: &[Permission]) -> Rule {
        let owned = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect();
        Rule { users: owned(users), repositories: owned(repositories), actions: actions.to_vec() }
    }

    fn check(rules: &[Rule], user: User, action: Action, repository: Option<&str>) -> bool {
        let directory = tempfile::TempDir::new().expect("directory");
        let file = directory.path().join("htpasswd");
        std::fs::write(&file, "").expect("writes");
        let rules = AccessRules::new(&file, rules.to_vec()).expect("opens");
        let repository = repository.map(|name| name.parse().expect("a name"));
        rules.allows(&user, &Access { action, repository })
    }

    #[test]
    fn without_rules_users_do_everything_and_others_nothing() {
        let ann = || User::Named("ann".to_string());
        assert!(check(&[], ann(), Action::Delete, Some("a")));
        assert!(!check(&[], User::Nobody, Action::Pull, Some("a")));
        assert!(!check(&[], User::Nobody, Action::Ping, None));
    }

    #[test]
    fn a_rule_holds_for_its_users_places_and_actions_only() {
        use Permission::{Catalog, Pull, Push};
        let rules = [
            rule(&["anonymous"], &["public/**"], &[Pull]),
            rule(&["*"], &["team/*"], &[Pull]),
            rule(&["ann"], &["team/app"], &[Push]),
            rule(&["ann"], &[], &[Catalog]),
        ];
        let user = |name: &str| User::Named(name.to_string());
        for (name, action, repository, expected) in [
            (None, Action::Pull, "public/a/b", true),
            (None, Action::Pull, "public", false),
            (None, Action::Pull, "publicity/a", false),
            (None, Action::Push, "public/a", false),
            (None, Action::Pull, "team/app", false),
            (Some("bob"), Action::Pull, "team/app", true),
            (Some("bob"), Action::Pull, "team/app/sub", false),
            (Some("bob"), Action::Push, "team/app", false),
            (Some("bob"), Action::Pull, "public/a", true),
            (Some("ann"), Action::Push, "team/app", true),
            (Some("ann"), Action::Push, "team/app/sub", false),
            (Some("ann"), Action::Push, "team/apple", false),
            (Some("ann"), Action::Delete, "team/app", false),
            (Some("an"), Action::Push, "team/app", false),
        ] {
            let who = name.map_or(User::Nobody, user);
            assert_eq!(check(&rules, who, action, Some(repository)), expected, "{name:?} {action:?} {repository}");
        }
        assert!(check(&rules, user("ann"), Action::Catalog, None));
        assert!(!check(&rules, user("bob"), Action::Catalog, None));
        assert!(!check(&rules, user("ann"), Action::Collect, None));
        assert!(check(&rules, User::Trusted, Action::Collect, None));
    }
}
