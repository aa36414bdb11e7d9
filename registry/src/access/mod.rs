//! [`AccessRules`]: users with passwords, and who of them may do what where. The authorizer of a registry that a team
//! shares.

mod accounts;
mod loan;
mod pattern;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::token::{Checked, Claims, Holder, Kind, Scope, Tokens};
use crate::{
    Access, Action, Authorizer, Catalog, Challenge, Credentials, Decision, StorageError, TokenAnswer, TokenRequest,
};
use accounts::{Accounts, Busy};
pub use loan::{Grant, Loan, LoanRequest};
pub use pattern::check_pattern;
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
    /// Patterns of repositories: `*` stands for anything within one component of the name, `**` for anything. None is all of
    /// them for what needs no repository.
    #[serde(default)]
    pub repositories: Vec<String>,
    /// What they may do.
    pub actions: Vec<Permission>,
}

/// What a rule allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// Read manifests, blobs, tags and referrers.
    Pull,
    /// Write manifests and blobs.
    Push,
    /// Delete tags, manifests and blobs.
    Delete,
    /// List repositories: those of the rule, or all where it names none.
    Catalog,
    /// Have garbage collected.
    Collect,
    /// Read the registry's metrics.
    Metrics,
}

/// Who may do what.
pub struct AccessRules {
    accounts: Accounts,
    rules: Vec<Rule>,
    tokens: Option<Arc<Tokens>>,
}

/// Makes passwords that expire, for a registry whose rules believe them.
#[derive(Clone)]
pub struct Minter(Arc<Tokens>);

impl Minter {
    /// A password for the user `name`, good for `permissions` in every repository, whatever the rules say, for
    /// `lifetime`. An upload that began within it may be finished later.
    pub fn mint(&self, name: &str, permissions: &[Permission], lifetime: Duration) -> String {
        self.lend(name, Grant::everywhere(permissions.to_vec()), lifetime).password
    }

    /// The same, with what it is taken back by.
    pub(crate) fn lend(&self, name: &str, grant: Grant, lifetime: Duration) -> Loan {
        self.0.lend(name, grant, lifetime)
    }
}

impl AccessRules {
    /// The users of an htpasswd file with bcrypt hashes (`htpasswd -B`), which is read again when it has changed. Without
    /// rules every user may do everything, and nobody else anything.
    pub fn new(htpasswd: &Path, rules: Vec<Rule>) -> Result<AccessRules, StorageError> {
        Ok(AccessRules { accounts: Accounts::open(htpasswd)?, rules, tokens: None })
    }

    /// Has clients get tokens, signed with the key in the file `key`, which is made where it is not there. Passwords go
    /// on being good by themselves.
    pub fn with_tokens(mut self, key: &Path) -> Result<AccessRules, StorageError> {
        self.tokens = Some(Arc::new(Tokens::open(key)?));
        Ok(self)
    }

    /// As [`with_tokens`](Self::with_tokens), signed with a key of 64 hexadecimal digits that several registries share.
    pub fn with_shared_tokens(mut self, key: &str) -> Result<AccessRules, StorageError> {
        self.tokens = Some(Arc::new(Tokens::shared(key)?));
        Ok(self)
    }

    /// What makes passwords that expire; `None` without tokens.
    pub fn minter(&self) -> Option<Minter> {
        self.tokens.clone().map(Minter)
    }

    /// Whether the file has any user, as it is now.
    pub fn has_users(&self) -> bool {
        self.accounts.has_any()
    }

    /// Names of users in the rules that the file does not have, as it is now: each once, sorted.
    pub fn unknown_users(&self) -> BTreeSet<&str> {
        let names = self.rules.iter().flat_map(|rule| &rule.users).map(String::as_str);
        let names = names.filter(|name| ![EVERYBODY, EVERY_USER].contains(name));
        names.filter(|name| self.accounts.hash(name).is_none()).collect()
    }

    fn allows(&self, user: &User, access: &Access) -> bool {
        let enough = enough(access.action);
        if let User::Guest { grant, .. } = user {
            return enough.is_empty() || grant.allows(enough, access);
        }
        if self.rules.is_empty() && *user != User::Nobody {
            return true;
        }
        if enough.is_empty() {
            return *user != User::Nobody;
        }
        self.rules.iter().any(|rule| enough.iter().any(|permission| rule.allows(user, *permission, access)))
    }

    /// What is listed for a user who may list something.
    fn catalog_of(&self, user: &User) -> Catalog {
        match user {
            User::Guest { grant, .. } if grant.repositories.is_empty() || grant.is_everywhere() => {
                return Catalog::Whole;
            }
            User::Guest { grant, .. } => return Catalog::Matching(grant.repositories.clone()),
            _ if self.rules.is_empty() => return Catalog::Whole,
            _ => {}
        }
        let access = Access { action: Action::Catalog, repository: None };
        let rules = self.rules.iter().filter(|rule| rule.allows(user, Permission::Catalog, &access));
        let places: Vec<&[String]> = rules.map(|rule| rule.repositories.as_slice()).collect();
        match places.iter().any(|patterns| patterns.is_empty()) {
            true => Catalog::Whole,
            false => Catalog::Matching(places.concat()),
        }
    }

    /// Who has this name and password.
    async fn user(&self, name: &str, password: &str, access: Option<&Access>) -> Result<Option<User>, Busy> {
        let tokens = self.tokens.as_ref();
        match tokens.map_or(Checked::Bad, |tokens| tokens.check(password, Kind::Credential)) {
            Checked::Good(claims) => Ok(guest(claims, name)),
            Checked::Expired(claims) if claims.is_late() && access.is_some_and(is_under_way) => Ok(guest(claims, name)),
            Checked::Expired(_) => Ok(None),
            Checked::Bad => self.accounts.user(name, password).await,
        }
    }

    /// Whose a token is, as long as the rules still know its holder.
    fn holder(&self, claims: &Claims) -> Option<User> {
        match &claims.holder {
            Holder::Nobody => Some(User::Nobody),
            Holder::User => self.accounts.hash(&claims.sub).map(|_| User::Named(claims.sub.clone())),
            Holder::Credential(_) | Holder::Placed(_) => guest(claims.clone(), &claims.sub),
        }
    }

    fn authorize_token(&self, token: &str, access: &Access) -> Decision {
        let Some(tokens) = &self.tokens else { return self.challenge(None) };
        let claims = match tokens.check(token, Kind::Access) {
            Checked::Good(claims) => claims,
            Checked::Expired(claims) if claims.is_late() && is_under_way(access) => claims,
            _ => return self.challenge(Some("invalid_token")),
        };
        // Rules that have changed since count at once.
        let Some(user) = self.holder(&claims) else { return self.challenge(Some("invalid_token")) };
        if access.action == Action::Ping {
            return Decision::Allow;
        }
        match self.allows(&user, access) {
            false if user != User::Nobody || access.action == Action::Mount => Decision::Deny,
            true if claims.covers(access) => Decision::Allow,
            _ => self.challenge(Some("insufficient_scope")),
        }
    }

    fn challenge(&self, error: Option<&'static str>) -> Decision {
        Decision::Challenge(match self.tokens {
            None => Challenge::Basic { realm: "cfc registry".to_string() },
            Some(_) => Challenge::own(error),
        })
    }

    /// Those of the scopes' actions that the user has.
    fn granted(&self, user: &User, request: &TokenRequest) -> Vec<Scope> {
        let scopes = request.scopes.iter().flat_map(|text| Scope::parse_all(text));
        let granted = scopes.map(|scope| {
            let allowed = scope.accesses().into_iter().filter(|(_, access)| self.allows(user, access));
            Scope { actions: allowed.map(|(text, _)| text.to_string()).collect(), ..scope }
        });
        granted.filter(|scope| !scope.actions.is_empty()).collect()
    }
}

/// Whether an upload that began while its client could show who it is may go on.
fn is_under_way(access: &Access) -> bool {
    access.action == Action::Continue
}

fn guest(claims: Claims, name: &str) -> Option<User> {
    let (until, loan) = (claims.until(), claims.loan().unwrap_or_default().to_string());
    let grant = claims.holder.grant().filter(|_| claims.sub == name)?;
    Some(User::Guest { name: claims.sub, grant, until, loan })
}

/// Who asks.
#[derive(Clone, Debug, PartialEq)]
enum User {
    Nobody,
    Named(String),
    /// Whoever has a password that was made for a while, until when in seconds since 1970, and its id.
    Guest {
        name: String,
        grant: Grant,
        until: u64,
        loan: String,
    },
}

impl Rule {
    fn allows(&self, user: &User, permission: Permission, access: &Access) -> bool {
        let is_meant = |name: &String| match user {
            _ if name == EVERYBODY => true,
            User::Nobody => false,
            User::Named(own) => name == EVERY_USER || name == own,
            User::Guest { .. } => false,
        };
        // Listing repositories and collecting garbage are nowhere in particular.
        let is_there = |name: &str| self.repositories.iter().any(|pattern| matches(pattern, name));
        let is_place = access.repository.as_ref().is_none_or(|name| is_there(name.as_str()));
        self.users.iter().any(is_meant) && self.actions.contains(&permission) && is_place
    }
}

/// Each of these is enough; none is needed for what every user may.
fn enough(action: Action) -> &'static [Permission] {
    match action {
        Action::Ping => &[],
        Action::Pull | Action::Mount => &[Permission::Pull],
        Action::Look => &[Permission::Pull, Permission::Push],
        Action::Push | Action::Continue => &[Permission::Push],
        Action::Delete => &[Permission::Delete],
        Action::Catalog => &[Permission::Catalog],
        Action::Collect => &[Permission::Collect],
        Action::Metrics => &[Permission::Metrics],
    }
}

#[async_trait]
impl Authorizer for AccessRules {
    async fn authorize(&self, credentials: &Credentials, access: &Access) -> Decision {
        let user = match credentials {
            Credentials::Basic { username, password } => match self.user(username, password, Some(access)).await {
                Ok(Some(user)) => user,
                Ok(None) => return self.challenge(None),
                Err(Busy) => return Decision::Busy,
            },
            Credentials::Bearer(token) => return self.authorize_token(token, access),
            Credentials::Anonymous => User::Nobody,
        };
        // Who may do something without a password is asked for one all the same when it only asks whether the registry
        // is there: clients decide by that whether to send theirs later.
        match self.allows(&user, access) {
            true => Decision::Allow,
            false if user == User::Nobody && access.action != Action::Mount => self.challenge(None),
            false => Decision::Deny,
        }
    }

    fn name(&self, credentials: &Credentials) -> Option<String> {
        let tokens = self.tokens.as_ref();
        let name = match credentials {
            Credentials::Anonymous => String::new(),
            Credentials::Basic { username, .. } => username.clone(),
            Credentials::Bearer(token) => match tokens.map(|tokens| tokens.check(token, Kind::Access)) {
                Some(Checked::Good(claims) | Checked::Expired(claims)) => claims.sub,
                _ => String::new(),
            },
        };
        Some(name).filter(|name| !name.is_empty())
    }

    async fn catalog(&self, credentials: &Credentials) -> Catalog {
        let user = match credentials {
            Credentials::Anonymous => Some(User::Nobody),
            Credentials::Basic { username, password } => self.user(username, password, None).await.unwrap_or_default(),
            Credentials::Bearer(token) => match self.tokens.as_ref().map(|tokens| tokens.check(token, Kind::Access)) {
                Some(Checked::Good(claims)) => self.holder(&claims),
                _ => None,
            },
        };
        user.map_or(Catalog::Matching(Vec::new()), |user| self.catalog_of(&user))
    }

    fn lend(&self, request: &LoanRequest) -> Result<Loan, String> {
        AccessRules::lend(self, request)
    }

    fn loan(&self, credentials: &Credentials) -> Option<String> {
        let tokens = self.tokens.as_ref()?;
        let (checked, name) = match credentials {
            Credentials::Anonymous => return None,
            Credentials::Basic { username, password } => (tokens.check(password, Kind::Credential), Some(username)),
            Credentials::Bearer(token) => (tokens.check(token, Kind::Access), None),
        };
        let (Checked::Good(claims) | Checked::Expired(claims)) = checked else { return None };
        let is_its_own = name.is_none_or(|name| *name == claims.sub);
        claims.loan().filter(|_| is_its_own).map(str::to_string)
    }

    async fn issue(&self, credentials: &Credentials, request: &TokenRequest) -> TokenAnswer {
        let Some(tokens) = &self.tokens else { return TokenAnswer::Unsupported };
        let user = match (&request.refresh_token, credentials) {
            (Some(token), _) => self.refreshed(tokens, token),
            (None, Credentials::Anonymous) => Some(User::Nobody),
            (None, Credentials::Bearer(_)) => None,
            (None, Credentials::Basic { username, password }) => match self.user(username, password, None).await {
                Ok(user) => user,
                Err(Busy) => return TokenAnswer::Busy,
            },
        };
        let Some(user) = user else { return TokenAnswer::Refused };
        let scopes = self.granted(&user, request);
        let scope = |scope: &Scope| format!("{}:{}:{}", scope.kind, scope.name, scope.actions.join(","));
        let scope = scopes.iter().map(scope).collect::<Vec<_>>().join(" ");
        let mut refresh_token = None;
        let holder = match &user {
            User::Nobody => None,
            User::Named(name) | User::Guest { name, .. } => Some(name.clone()),
        };
        let (token, seconds) = match user {
            User::Nobody => tokens.access("", Holder::Nobody, scopes),
            User::Named(name) => {
                let hash = self.accounts.hash(&name).filter(|_| request.wants_refresh);
                let new = hash.map(|hash| tokens.refresh(&name, &hash));
                refresh_token = request.refresh_token.clone().or(new);
                tokens.access(&name, Holder::User, scopes)
            }
            User::Guest { name, grant, until, loan } => tokens.access_of_loan(&name, grant.into(), scopes, until, loan),
        };
        let lifetime = Duration::from_secs(seconds);
        TokenAnswer::Issued { token, lifetime, scope, refresh_token, user: holder }
    }
}

impl AccessRules {
    /// Whose password a refresh token stands for, if that is still the password.
    fn refreshed(&self, tokens: &Tokens, token: &str) -> Option<User> {
        let Checked::Good(claims) = tokens.check(token, Kind::Refresh) else { return None };
        let stamp = tokens.stamp(&claims.sub, &self.accounts.hash(&claims.sub)?);
        crate::token::is_same(stamp.as_bytes(), claims.stamp.as_bytes()).then_some(User::Named(claims.sub))
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
        let guest = |permissions: &[Permission]| User::Guest {
            name: "v1".to_string(),
            grant: Grant::everywhere(permissions.to_vec()),
            until: 0,
            loan: String::new(),
        };
        assert!(check(&rules, guest(&[Push]), Action::Push, Some("a")));
        assert!(!check(&rules, guest(&[Push]), Action::Pull, Some("public/a")));
        assert!(check(&rules, guest(&[Pull]), Action::Ping, None));
    }
}
