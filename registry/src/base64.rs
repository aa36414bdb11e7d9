//! Base64 (RFC 4648): the standard alphabet, which `Authorization: Basic` has, and the one for URLs, which tokens have.

const STANDARD: [u8; 2] = *b"+/";
const URL: [u8; 2] = *b"-_";

/// Decodes the standard alphabet, padded or not.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    decode_with(text.trim_end_matches('='), STANDARD)
}

/// Decodes the alphabet for URLs, without padding. Only what [`encode_url`] gives for the bytes is accepted, so that
/// there is one text for them.
pub(crate) fn decode_url(text: &str) -> Option<Vec<u8>> {
    decode_with(text, URL).filter(|bytes| encode_url(bytes) == text)
}

/// Encodes with the alphabet for URLs, without padding.
pub(crate) fn encode_url(bytes: &[u8]) -> String {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for position in 0..=chunk.len() {
            text.push(char::from(alphabet[(bits >> (18 - 6 * position) & 63) as usize]));
        }
    }
    text
}

fn decode_with(text: &str, last: [u8; 2]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            byte if byte == last[0] => 62,
            byte if byte == last[1] => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_have_one_text() {
        for length in 0..20_u8 {
            let bytes: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(37) ^ 0xf3).collect();
            assert_eq!(decode_url(&encode_url(&bytes)), Some(bytes));
        }
        assert_eq!(encode_url(&[0xff, 0xef]), "_-8");
        // The last two bits mean nothing.
        assert_eq!(decode_url("_-9"), None);
        assert_eq!(decode_url("_-8="), None);
        assert_eq!(decode("dTpwOnE="), Some(b"u:p:q".to_vec()));
    }
}
