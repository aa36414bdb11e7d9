//! The ports of `EXPOSE`.

/// The ports that `spec` (`4000`, `53/udp`, `7000-7005`) stands for, each as `4000/tcp`.
pub(crate) fn parse(spec: &str) -> Result<Vec<String>, String> {
    // `host:container` is accepted for Docker's sake; an image has no host ports.
    let container = spec.rsplit(':').next().unwrap_or(spec);
    let (range, protocol) = container.split_once('/').unwrap_or((container, ""));
    let protocol = protocol.to_ascii_lowercase();
    let protocol = match protocol.as_str() {
        "" => "tcp",
        "tcp" | "udp" | "sctp" => protocol.as_str(),
        other => return Err(format!("invalid protocol `{other}` in `{spec}`, expected tcp, udp or sctp")),
    };
    let port = |text: &str| {
        let digits = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let number = digits.and_then(|digits| digits.parse::<u16>().ok());
        number.ok_or_else(|| format!("invalid port `{spec}`, expected a number from 0 to 65535"))
    };
    let (first, last) = match range.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(range)?, port(range)?),
    };
    if last < first {
        return Err(format!("invalid port range `{spec}`: it ends before it starts"));
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn ports_get_a_protocol_and_ranges_are_unrolled() {
        assert_eq!(parse("4000"), Ok(vec!["4000/tcp".to_string()]));
        assert_eq!(parse("8080:80"), Ok(vec!["80/tcp".to_string()]));
        assert_eq!(parse("53/UDP"), Ok(vec!["53/udp".to_string()]));
        assert_eq!(parse("1-3").map(|ports| ports.len()), Ok(3));
    }

    #[test]
    fn anything_else_is_refused() {
        for spec in ["", "http", "80/http", "65536", "3-1", "1-2-3", "+80"] {
            assert!(parse(spec).is_err(), "{spec} was accepted");
        }
    }
}
