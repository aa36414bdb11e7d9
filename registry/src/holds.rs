//! [`Holds`]: what requests under way rely on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cfc_oci::Digest;

/// Digests that garbage collection leaves alone because a request that has not ended yet relies on them. A request
/// takes its hold before it looks whether they are there.
#[derive(Default)]
pub(crate) struct Holds(Mutex<HashMap<Digest, usize>>);

/// Given back when it goes out of scope.
pub(crate) struct Hold {
    holds: Arc<Holds>,
    digests: Vec<Digest>,
}

impl Holds {
    pub(crate) fn hold(self: &Arc<Self>, digests: impl IntoIterator<Item = Digest>) -> Hold {
        let digests: Vec<Digest> = digests.into_iter().collect();
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        digests.iter().for_each(|digest| *counts.entry(digest.clone()).or_default() += 1);
        Hold { holds: self.clone(), digests }
    }

    pub(crate) fn is_held(&self, digest: &Digest) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(digest)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut counts = self.holds.0.lock().unwrap_or_else(PoisonError::into_inner);
        for digest in &self.digests {
            match counts.get_mut(digest) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(counts.remove(digest)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_held_until_the_last_hold_is_given_back() {
        let holds = Arc::new(Holds::default());
        let digest = Digest::of(b"x");
        let (one, two) = (holds.hold([digest.clone()]), holds.hold([digest.clone(), digest.clone()]));
        drop(two);
        assert!(holds.is_held(&digest));
        drop(one);
        assert!(!holds.is_held(&digest) && holds.0.lock().expect("free").is_empty());
    }
}
