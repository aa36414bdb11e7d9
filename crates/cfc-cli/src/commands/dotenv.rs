//! Files in the form of `.env`: a variable a line.

use std::collections::BTreeMap;

/// The variables of `text`: `NAME=VALUE`, `export NAME=VALUE`, `NAME="VALUE"` in which `\n` ends a line, `NAME='VALUE'` as it
/// stands. Lines that begin with `#` are comments, and so is what follows ` #` outside of quotes.
///
/// # Errors
/// The number of the line, from 1, that is none of this. Never what stands in it.
pub fn parse(text: &str) -> Result<BTreeMap<String, String>, usize> {
    let mut variables = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = variable(line).ok_or(index + 1)?;
        variables.insert(name.to_string(), value);
    }
    Ok(variables)
}

fn variable(line: &str) -> Option<(&str, String)> {
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (name, value) = line.split_once('=')?;
    let (name, value) = (name.trim(), value.trim());
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    let value = match value.chars().next() {
        Some(quote @ ('"' | '\'' | '`')) => {
            let (inside, after) = value[1..].rsplit_once(quote)?;
            let after = after.trim();
            let is_over = after.is_empty() || after.starts_with('#');
            let inside =
                if quote == '"' { inside.replace("\\n", "\n").replace("\\r", "\r") } else { inside.to_string() };
            is_over.then_some(inside)?
        }
        _ => value.split(" #").next().unwrap_or_default().trim().to_string(),
    };
    is_name.then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_variables_is_read() {
        let text =
            "# none\nA=1\nexport B = two words # said so\nC=\"x\\ny\" # quoted\nD='it is # \\n'\n\nE=\nF=a=b#c\n";
        let read = parse(text).expect("well-formed");
        let expected = [("A", "1"), ("B", "two words"), ("C", "x\ny"), ("D", "it is # \\n"), ("E", ""), ("F", "a=b#c")];
        assert_eq!(read, expected.map(|(name, value)| (name.to_string(), value.to_string())).into());
    }

    #[test]
    fn a_line_that_is_none_is_named_by_its_number() {
        for text in ["A=1\nnothing", "\n=value", "# x\nA=\"open", "\nA='x' y", "x\ny=1"] {
            let line = if text.starts_with("x") { 1 } else { 2 };
            assert_eq!(parse(text), Err(line), "{text}");
        }
    }
}
