//! Base64 (RFC 4648): the standard alphabet, which `Authorization: Basic`, Docker's credentials and Go's JSON have, and
//! the one for URLs, which tokens have.

use base64::Engine;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

const PADDED_OR_NOT: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// `bytes` in the standard alphabet, padded (section 4).
pub fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// What is written in the standard alphabet, padded or not; `None` if it is something else.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    PADDED_OR_NOT.decode(text).ok()
}

/// `bytes` in the alphabet for URLs, without padding (section 5).
pub fn encode_url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// What is written in the alphabet for URLs. There is one text for the same bytes: padding is refused, and so are bits
/// that mean nothing.
pub fn decode_url(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_the_rfc_writes_them() {
        let vectors =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("abcd", "YWJjZA==")];
        for (bytes, text) in vectors {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text).as_deref(), Some(bytes.as_bytes()));
            assert_eq!(decode(text.trim_end_matches('=')).as_deref(), Some(bytes.as_bytes()));
            assert_eq!(encode_url(bytes.as_bytes()), text.trim_end_matches('='));
        }
        assert_eq!((encode(&[0xfb, 0xff]).as_str(), encode_url(&[0xfb, 0xff]).as_str()), ("+/8=", "-_8"));
    }

    #[test]
    fn one_text_is_accepted_for_the_bytes_of_a_token() {
        assert_eq!(decode_url("-_8").as_deref(), Some(&[0xfb, 0xff][..]));
        for other in ["-_8=", "-_9", "+/8", "-_8 ", "A"] {
            assert_eq!(decode_url(other), None, "{other}");
        }
        assert_eq!((decode("-_"), decode("a b")), (None, None));
    }
}
