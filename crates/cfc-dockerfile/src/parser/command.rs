//! An instruction's text into name, flags and the rest.

/// The three parts of an instruction.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) name: String,
    pub(super) flags: Vec<String>,
    pub(super) arguments: String,
}

/// The blanks that part the words of an instruction. Not all that Unicode calls white space.
pub(super) const BLANKS: [char; 5] = ['\t', '\u{b}', '\u{c}', '\r', ' '];

pub(super) fn split_command(text: &str, escape: char) -> Command {
    let text = text.trim();
    let Some((name, rest)) = text.split_once(BLANKS) else {
        return Command { name: text.to_owned(), ..Command::default() };
    };
    let (flags, arguments) = take_flags(rest.trim_start_matches(BLANKS), escape);
    Command { name: name.to_owned(), flags, arguments: arguments.trim().to_owned() }
}

/// The leading words that begin with `--`, and what follows them. A bare `--` ends the flags and is dropped.
fn take_flags(text: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = text.trim_start();
    while rest.starts_with("--") {
        let (flag, after) = take_flag(rest, escape);
        rest = after.trim_start();
        if flag == "--" {
            break;
        }
        flags.push(flag);
    }
    (flags, rest)
}

/// One word, quotes and escapes removed, and what follows it.
fn take_flag(text: &str, escape: char) -> (String, &str) {
    let mut word = String::new();
    let mut quote = None;
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match (quote, character) {
            (None, blank) if blank.is_whitespace() => return (word, &text[at..]),
            (None, '\'' | '"') => quote = Some(character),
            (Some(open), _) if character == open => quote = None,
            // An escape at the end of the line is dropped.
            _ if character == escape => word.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => word.push(character),
        }
    }
    (word, "")
}
