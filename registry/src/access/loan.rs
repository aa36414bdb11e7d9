//! [`Loan`]: a password that an operator has made for a while, as for a CI robot. It is signed as those are that the control
//! API makes ([`Minter`](super::Minter)), and checked as they are; besides, it is good in some repositories only.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::pattern::{check_pattern, matches};
use super::{AccessRules, EVERY_USER, EVERYBODY, Permission};
use crate::Access;

/// For how long a password may be good.
const LIFETIMES: std::ops::RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(24 * 60 * 60);

/// With more places, the password might not fit a header.
const MAX_PATTERNS: usize = 50;
const MAX_NAME_BYTES: usize = 64;

/// What a password is good for that was made for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// What its holder may do.
    pub permissions: Vec<Permission>,
    /// Where: patterns, as in a [`Rule`](super::Rule). None is all repositories for what needs none.
    pub repositories: Vec<String>,
}

impl Grant {
    /// In every repository.
    pub(crate) fn everywhere(permissions: Vec<Permission>) -> Grant {
        Grant { permissions, repositories: vec!["**".to_string()] }
    }

    pub(crate) fn is_everywhere(&self) -> bool {
        self.repositories == ["**"]
    }

    /// Whether it is for `access`, for which each of `enough` is enough.
    pub(crate) fn allows(&self, enough: &[Permission], access: &Access) -> bool {
        let is_there = |name: &str| self.repositories.iter().any(|pattern| matches(pattern, name));
        enough.iter().any(|permission| self.permissions.contains(permission))
            && access.repository.as_ref().is_none_or(|name| is_there(name.as_str()))
    }
}

/// What an operator wants to have made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoanRequest {
    /// The user name that goes with the password, and that logs have.
    pub username: String,
    /// What it is good for.
    #[serde(flatten)]
    pub grant: Grant,
    /// For how long, in seconds.
    pub seconds: u64,
}

/// A password that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loan {
    /// What it is taken back by; opens nothing.
    pub id: String,
    /// The user name that goes with it.
    pub username: String,
    /// The password itself.
    pub password: String,
    /// Until when it is good, as `2026-01-31T12:00:00Z`.
    pub expires: String,
    /// The same, in seconds since 1970.
    #[serde(skip)]
    pub(crate) until: u64,
}

impl AccessRules {
    /// Makes the password, or says why not.
    pub fn lend(&self, request: &LoanRequest) -> Result<Loan, String> {
        let tokens = self.tokens.as_ref().ok_or("the registry has no key to sign passwords with")?;
        let LoanRequest { username, grant, seconds } = request;
        request.check()?;
        if self.accounts.hash(username).is_some() {
            return Err(format!("`{username}` is a user with a password of its own: logs could not tell them apart"));
        }
        Ok(tokens.lend(username, grant.clone(), Duration::from_secs(*seconds)))
    }
}

impl LoanRequest {
    fn check(&self) -> Result<(), String> {
        let LoanRequest { username, grant: Grant { permissions, repositories }, seconds } = self;
        // A colon ends the name in Basic authentication (RFC 7617).
        let is_name = username.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
        if username.is_empty() || username.len() > MAX_NAME_BYTES || !is_name {
            return Err(format!(
                "`{username}` is no user name: expected 1 to {MAX_NAME_BYTES} visible ASCII characters, no colon"
            ));
        }
        if [EVERYBODY, EVERY_USER].contains(&username.as_str()) {
            return Err(format!("`{username}` stands for others in rules, and is no name for one"));
        }
        if !LIFETIMES.contains(&Duration::from_secs(*seconds)) {
            return Err(format!("a password may be good for a minute to 24 hours, not for {seconds} seconds"));
        }
        if permissions.is_empty() {
            return Err("it would be good for nothing".to_string());
        }
        let needs_place = [Permission::Pull, Permission::Push, Permission::Delete];
        if repositories.is_empty() && permissions.iter().any(|permission| needs_place.contains(permission)) {
            return Err("no repositories are named to pull from, push to or delete in; `**` is all of them".to_string());
        }
        if repositories.len() > MAX_PATTERNS {
            return Err(format!("a password is for at most {MAX_PATTERNS} patterns of repositories"));
        }
        repositories.iter().try_for_each(|pattern| check_pattern(pattern))
    }
}
