//! Splitting at blanks while text of different standing (plain, protected, expanded) is appended.

/// The words found so far and the one being built.
#[derive(Default)]
pub(super) struct WordList {
    word: String,
    words: Vec<String>,
    in_word: bool,
}

impl WordList {
    /// Appends a character at which the text may split.
    pub(super) fn add(&mut self, character: char) {
        if !character.is_whitespace() {
            self.add_protected(character);
        } else if self.in_word && !self.word.is_empty() {
            self.words.push(std::mem::take(&mut self.word));
            self.in_word = false;
        }
    }

    /// Appends a character as part of a word, blank or not.
    pub(super) fn add_protected(&mut self, character: char) {
        self.word.push(character);
        self.in_word = true;
    }

    /// Appends a text at whose blanks the text may split.
    pub(super) fn add_text(&mut self, text: &str) {
        text.chars().for_each(|character| self.add(character));
    }

    /// Appends a text as part of a word, blanks included.
    pub(super) fn add_protected_text(&mut self, text: &str) {
        self.word.push_str(text);
        self.in_word = true;
    }

    /// All words. An empty one does not count.
    pub(super) fn finish(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.words.push(self.word);
        }
        self.words
    }
}
