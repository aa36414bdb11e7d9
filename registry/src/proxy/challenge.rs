//! [`Challenge`]: how an upstream wants to be told who we are.

pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    /// Reads a `WWW-Authenticate`.
    pub(super) fn parse(header: &str) -> Option<Challenge> {
        let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        let value = |key: &str| {
            let start = rest.find(&format!("{key}=\""))? + key.len() + 2;
            rest[start..].split_once('"').map(|(value, _)| value.to_string())
        };
        let is_bearer = scheme.eq_ignore_ascii_case("bearer");
        is_bearer.then(|| value("realm")).flatten().map(|realm| Challenge::Bearer { realm, service: value("service") })
    }
}
