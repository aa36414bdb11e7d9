//! [`Challenge`]: what a registry asks for in `WWW-Authenticate` (RFC 9110, section 11; distribution's token spec).

use reqwest::Url;

/// How to prove who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User name and password, with every request.
    Basic,
    /// A token from a token service.
    Bearer {
        /// The token service.
        realm: Url,
        /// What to call the registry there.
        service: Option<String>,
    },
}

impl Challenge {
    /// Reads the values of the `WWW-Authenticate` headers; a token is preferred to a password.
    pub fn parse<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
        let mut challenges: Vec<Challenge> = headers.into_iter().filter_map(parse_one).collect();
        let bearer = challenges.iter().position(|challenge| *challenge != Challenge::Basic);
        match bearer {
            Some(position) => Some(challenges.swap_remove(position)),
            None => challenges.pop(),
        }
    }
}

fn parse_one(header: &str) -> Option<Challenge> {
    let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let parameters = parameters(rest);
    let find = |name: &str| parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone());
    Some(Challenge::Bearer { realm: Url::parse(&find("realm")?).ok()?, service: find("service") })
}

/// `key="value", key=value`
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut parameters = Vec::new();
    let mut rest = text.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = value(after);
        parameters.push((key.trim().to_string(), value));
        rest = after.trim_start().trim_start_matches(',').trim_start();
    }
    parameters
}

fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_string(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => value.push(character),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        let realm = Url::parse(realm).expect("well-formed");
        Some(Challenge::Bearer { realm, service: service.map(str::to_string) })
    }

    #[test]
    fn challenges_are_read() {
        let text = r#"Bearer realm="https://auth.example/token",service="r,\"x\"",scope="repository:a:pull,push""#;
        assert_eq!(Challenge::parse([text]), bearer("https://auth.example/token", Some("r,\"x\"")));
        assert_eq!(Challenge::parse(["bearer realm=https://a.example/t"]), bearer("https://a.example/t", None));
        assert_eq!(Challenge::parse([r#"Basic realm="x""#]), Some(Challenge::Basic));
        let both = [r#"Basic realm="x""#, r#"Bearer realm="https://a.example/""#];
        assert_eq!(Challenge::parse(both), bearer("https://a.example/", None));
    }

    #[test]
    fn nonsense_is_no_challenge() {
        for text in ["", "Negotiate", "Bearer", "Bearer realm=\"not a url\"", "Bearer realm=\"", "Bearer service=x"] {
            assert_eq!(Challenge::parse([text]), None, "{text}");
        }
    }
}
