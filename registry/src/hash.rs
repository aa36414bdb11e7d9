//! [`ResumableHasher`]: a digest in the making that can be written down and taken up again by another process.

use cfc_oci::{Algorithm, Digest};
use sha2::Digest as _;
use sha2::digest::common::hazmat::{SerializableState, SerializedState};

/// Names the layout below and the version of sha2 whose state it holds; a state with another name is not read, and
/// its bytes are hashed again.
const MAGIC: &[u8] = b"cfc hash 1, sha2 0.11\n";
const CHECKSUM_LENGTH: usize = 32;

/// Hashes a growing upload.
#[derive(Clone)]
pub(crate) struct ResumableHasher {
    state: State,
    hashed: u64,
}

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl ResumableHasher {
    /// A hasher that has seen nothing yet.
    pub(crate) fn new(algorithm: Algorithm) -> ResumableHasher {
        let state = match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
        };
        ResumableHasher { state, hashed: 0 }
    }

    pub(crate) fn algorithm(&self) -> Algorithm {
        match self.state {
            State::Sha256(_) => Algorithm::Sha256,
            State::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// How many bytes were hashed.
    pub(crate) fn hashed(&self) -> u64 {
        self.hashed
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Sha256(hasher) => hasher.update(bytes),
            State::Sha512(hasher) => hasher.update(bytes),
        }
        self.hashed += bytes.len() as u64;
    }

    /// The digest of everything seen.
    pub(crate) fn finish(self) -> Digest {
        let (algorithm, hash) = match self.state {
            State::Sha256(hasher) => (Algorithm::Sha256, hasher.finalize().to_vec()),
            State::Sha512(hasher) => (Algorithm::Sha512, hasher.finalize().to_vec()),
        };
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}:{hex}", algorithm.as_str()).parse().expect("a hash in lower-case hexadecimal is a digest")
    }

    /// The state as bytes: magic, number of bytes hashed, state, and a checksum of all that, since the bytes are not
    /// synced and may be torn by a power cut.
    pub(crate) fn save(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&self.hashed.to_le_bytes());
        match &self.state {
            State::Sha256(hasher) => bytes.extend_from_slice(&hasher.serialize()),
            State::Sha512(hasher) => bytes.extend_from_slice(&hasher.serialize()),
        }
        let checksum = sha2::Sha256::digest(&bytes);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    /// The hasher that [`save`](Self::save) wrote down; `None` when the bytes are torn or of another kind.
    pub(crate) fn restore(algorithm: Algorithm, bytes: &[u8]) -> Option<ResumableHasher> {
        let (content, checksum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM_LENGTH)?)?;
        if sha2::Sha256::digest(content).as_slice() != checksum {
            return None;
        }
        let (hashed, state) = content.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
        let state = match algorithm {
            Algorithm::Sha256 => State::Sha256(deserialize(state)?),
            Algorithm::Sha512 => State::Sha512(deserialize(state)?),
        };
        Some(ResumableHasher { state, hashed: u64::from_le_bytes(*hashed) })
    }
}

fn deserialize<H: SerializableState>(bytes: &[u8]) -> Option<H> {
    let state = SerializedState::<H>::try_from(bytes).ok()?;
    H::deserialize(&state).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_state_goes_on_in_the_middle_of_a_block() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let mut whole = ResumableHasher::new(algorithm);
            whole.update(&[7; 1000]);
            let mut first = ResumableHasher::new(algorithm);
            first.update(&[7; 333]);
            let mut second = ResumableHasher::restore(algorithm, &first.save()).expect("just saved");
            assert_eq!(second.hashed(), 333);
            second.update(&[7; 667]);
            assert_eq!(second.finish(), whole.finish());
        }
    }

    #[test]
    fn a_torn_state_is_not_believed() {
        let saved = ResumableHasher::new(Algorithm::Sha256).save();
        for length in 0..saved.len() {
            assert!(ResumableHasher::restore(Algorithm::Sha256, &saved[..length]).is_none());
        }
        assert!(ResumableHasher::restore(Algorithm::Sha512, &saved).is_none());
        let mut flipped = saved;
        flipped[40] ^= 1;
        assert!(ResumableHasher::restore(Algorithm::Sha256, &flipped).is_none());
    }

    #[test]
    fn the_digest_is_the_published_one() {
        assert_eq!(ResumableHasher::new(Algorithm::Sha256).finish(), Digest::of(b""));
    }
}
