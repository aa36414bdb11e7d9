//! [`Tokens`]: what the registry signs for its clients, and believes when it comes back. Nothing of it is kept: whoever
//! has the key can tell.
//!
//! Three kinds: an access token is for some actions in some repositories, for minutes; a refresh token stands for a
//! user's password until that changes; a credential is a password that was made for somebody, and expires.

mod endpoint;
mod key;
mod scope;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub(crate) use endpoint::answer;
pub(crate) use key::{hex, is_same, mac};
use scope::MAX_SCOPES;
pub(crate) use scope::Scope;

use crate::{Access, Grant, Loan, Permission, StorageError};
use key::Key;

/// Who signs, and for whom: this registry, both times.
pub(crate) const SERVICE: &str = "cfc-registry";

/// How long an access token lasts. Clients take 60 seconds for granted when they are not told.
pub(crate) const LIFETIME: Duration = Duration::from_secs(300);
const MIN_LIFETIME: Duration = Duration::from_secs(60);

/// How long a refresh token stands for a password that does not change.
const REFRESH_LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How much earlier than ours another replica's clock may be.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// How long after its token has expired a client may go on with an upload; uploads do not live longer by themselves.
const UPLOAD_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// Signs and checks.
pub(crate) struct Tokens {
    key: Key,
}

/// What a token says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Claims {
    iss: String,
    aud: String,
    /// The user's name; empty for nobody.
    pub sub: String,
    /// Seconds since 1970.
    exp: u64,
    nbf: u64,
    iat: u64,
    jti: String,
    pub kind: Kind,
    pub holder: Holder,
    /// What an access token is for.
    #[serde(default)]
    pub access: Vec<Scope>,
    /// What a refresh token stands for: a hash of the password's hash.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stamp: String,
    /// Which credential an access token was given for; empty where none was shown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    loan: String,
}

/// What a token is for. None of a kind is ever taken for another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Access,
    Refresh,
    Credential,
}

/// Whose a token is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Holder {
    Nobody,
    User,
    /// Whoever was given a credential, with what it allows everywhere.
    Credential(Vec<Permission>),
    /// Whoever was given one that is good in some places. A word of its own, so that a replica of an earlier version, which
    /// does not know of places, refuses it.
    Placed(Grant),
}

impl Holder {
    /// What a credential allows; `None` for whoever is no holder of one.
    pub(crate) fn grant(self) -> Option<Grant> {
        match self {
            Holder::Nobody | Holder::User => None,
            Holder::Credential(permissions) => Some(Grant::everywhere(permissions)),
            Holder::Placed(grant) => Some(grant),
        }
    }
}

impl From<Grant> for Holder {
    fn from(grant: Grant) -> Holder {
        match grant.is_everywhere() {
            true => Holder::Credential(grant.permissions),
            false => Holder::Placed(grant),
        }
    }
}

/// Whether a token is good.
pub(crate) enum Checked {
    Good(Claims),
    /// It was, and only its time is over.
    Expired(Claims),
    Bad,
}

impl Tokens {
    /// Signs with the key in `path`, which is made where it is not there.
    pub(crate) fn open(path: &Path) -> Result<Tokens, StorageError> {
        Ok(Tokens { key: Key::open(path)? })
    }

    /// Signs with a key of 64 hexadecimal digits.
    pub(crate) fn shared(key: &str) -> Result<Tokens, StorageError> {
        Ok(Tokens { key: Key::shared(key)? })
    }

    /// A token for `scopes`, which its holder was found to have, and how long it lasts.
    pub(crate) fn access(&self, name: &str, holder: Holder, scopes: Vec<Scope>) -> (String, u64) {
        let claims = Claims { access: scopes, ..claims(Kind::Access, holder, name, LIFETIME) };
        (self.key.sign(&claims), LIFETIME.as_secs())
    }

    /// The same for whoever has shown the credential `loan`, which is good until `until`.
    pub(crate) fn access_of_loan(
        &self,
        name: &str,
        holder: Holder,
        scopes: Vec<Scope>,
        until: u64,
        loan: String,
    ) -> (String, u64) {
        let left = Duration::from_secs(until.saturating_sub(now()));
        let lifetime = left.clamp(MIN_LIFETIME, LIFETIME);
        let claims = Claims { access: scopes, loan, ..claims(Kind::Access, holder, name, lifetime) };
        (self.key.sign(&claims), lifetime.as_secs())
    }

    /// A token that stands for the password whose hash is `hash`.
    pub(crate) fn refresh(&self, name: &str, hash: &str) -> String {
        let claims = claims(Kind::Refresh, Holder::User, name, REFRESH_LIFETIME);
        self.key.sign(&Claims { stamp: self.stamp(name, hash), ..claims })
    }

    /// What a refresh token for a password with this hash has to say.
    pub(crate) fn stamp(&self, name: &str, hash: &str) -> String {
        hex(&self.key.mac(&[b"stamp\0", name.as_bytes(), b"\0", hash.as_bytes()])[..16])
    }

    /// A password for `grant`, good for `lifetime`.
    pub(crate) fn lend(&self, name: &str, grant: Grant, lifetime: Duration) -> Loan {
        let claims = claims(Kind::Credential, grant.into(), name, lifetime);
        let password = self.key.sign(&claims);
        let expires = cfc_oci::rfc3339(claims.exp as i64);
        Loan { id: claims.jti, username: claims.sub, password, expires, until: claims.exp }
    }

    /// What a token of `kind` says.
    pub(crate) fn check(&self, token: &str, kind: Kind) -> Checked {
        let Some(claims) = self.key.verify::<Claims>(token) else { return Checked::Bad };
        let is_ours = claims.iss == SERVICE && claims.aud == SERVICE && claims.kind == kind;
        let now = now();
        match is_ours && claims.nbf <= now {
            false => Checked::Bad,
            true if claims.exp > now => Checked::Good(claims),
            true => Checked::Expired(claims),
        }
    }
}

impl Claims {
    /// Whether an access token is for `access`.
    pub(crate) fn covers(&self, access: &Access) -> bool {
        self.access.iter().any(|scope| scope.covers(access))
    }

    /// Whether the token expired so lately that an upload may go on.
    pub(crate) fn is_late(&self) -> bool {
        self.exp + UPLOAD_GRACE.as_secs() > now()
    }

    /// Which credential it is, or was given for.
    pub(crate) fn loan(&self) -> Option<&str> {
        match self.kind {
            Kind::Credential => Some(&self.jti),
            Kind::Access => Some(self.loan.as_str()).filter(|loan| !loan.is_empty()),
            Kind::Refresh => None,
        }
    }

    /// When it expires, in seconds since 1970.
    pub(crate) fn until(&self) -> u64 {
        self.exp
    }
}

fn claims(kind: Kind, holder: Holder, name: &str, lifetime: Duration) -> Claims {
    let now = now();
    Claims {
        iss: SERVICE.to_string(),
        aud: SERVICE.to_string(),
        sub: name.to_string(),
        exp: now.saturating_add(lifetime.as_secs()),
        nbf: now.saturating_sub(CLOCK_SKEW.as_secs()),
        iat: now,
        jti: uuid::Uuid::new_v4().simple().to_string(),
        kind,
        holder,
        access: Vec::new(),
        stamp: String::new(),
        loan: String::new(),
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn tokens() -> (tempfile::TempDir, Tokens) {
        let directory = tempfile::TempDir::new().expect("directory");
        let tokens = Tokens::open(&directory.path().join("key")).expect("opens");
        (directory, tokens)
    }

    /// A rightly signed access token whose claims are changed by `change`.
    fn changed(tokens: &Tokens, change: impl FnOnce(&mut Value)) -> String {
        let claims = claims(Kind::Access, Holder::User, "ann", LIFETIME);
        let mut value = serde_json::to_value(claims).expect("JSON");
        change(&mut value);
        tokens.key.sign(&value)
    }

    #[test]
    fn a_token_is_good_for_its_kind_its_registry_and_its_time() {
        let (_directory, tokens) = tokens();
        let good = changed(&tokens, |_| {});
        assert!(matches!(tokens.check(&good, Kind::Access), Checked::Good(claims) if claims.sub == "ann"));
        assert!(matches!(tokens.check(&good, Kind::Refresh), Checked::Bad));
        assert!(matches!(tokens.check(&good, Kind::Credential), Checked::Bad));
        for (claim, value) in [("iss", json!("other")), ("aud", json!("other")), ("nbf", json!(now() + 1000))] {
            let token = changed(&tokens, |claims| claims[claim] = value);
            assert!(matches!(tokens.check(&token, Kind::Access), Checked::Bad), "{claim}");
        }
        for claim in ["iss", "aud", "sub", "exp", "nbf", "kind", "holder"] {
            let token = changed(&tokens, |claims| drop(claims.as_object_mut().expect("an object").remove(claim)));
            assert!(matches!(tokens.check(&token, Kind::Access), Checked::Bad), "without {claim}");
        }
        let old = changed(&tokens, |claims| claims["exp"] = json!(now() - 1));
        assert!(matches!(tokens.check(&old, Kind::Access), Checked::Expired(claims) if claims.is_late()));
        let older = changed(&tokens, |claims| claims["exp"] = json!(now() - 90_000));
        assert!(matches!(tokens.check(&older, Kind::Access), Checked::Expired(claims) if !claims.is_late()));
    }

    #[test]
    fn an_access_token_does_not_outlast_the_credential_by_much() {
        let (_directory, tokens) = tokens();
        let lasts = |until| tokens.access_of_loan("v1", Holder::Nobody, Vec::new(), until, String::new()).1;
        assert_eq!(tokens.access("v1", Holder::Nobody, Vec::new()).1, 300);
        assert_eq!(lasts(now() + 1000), 300);
        assert!(lasts(now() + 100) <= 100);
        assert_eq!(lasts(now()), 60);
    }
}
