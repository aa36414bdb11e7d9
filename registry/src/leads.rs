//! [`Leads`]: which manifest of a repository leads to which others.

use std::collections::{HashMap, HashSet};

use cfc_oci::Digest;

use crate::manifest::ManifestFacts;

/// An index leads to its entries, and a subject to whatever refers to it.
pub(crate) struct Leads(HashMap<Digest, Vec<Digest>>);

impl Leads {
    pub(crate) fn of(manifests: &HashMap<Digest, ManifestFacts>) -> Leads {
        let mut leads: HashMap<Digest, Vec<Digest>> = HashMap::new();
        for (digest, facts) in manifests {
            if let Some(subject) = &facts.subject {
                leads.entry(subject.clone()).or_default().push(digest.clone());
            }
            if !facts.manifests.is_empty() {
                leads.entry(digest.clone()).or_default().extend_from_slice(&facts.manifests);
            }
        }
        Leads(leads)
    }

    /// Adds `root` and everything it leads to.
    pub(crate) fn follow(&self, root: &Digest, reached: &mut HashSet<Digest>) {
        let mut pending = vec![root];
        while let Some(digest) = pending.pop() {
            if reached.insert(digest.clone()) {
                pending.extend(self.next(digest));
            }
        }
    }

    /// `digests` so that each comes before what it leads to, as far as they do not lead to each other.
    pub(crate) fn in_order<'a>(&'a self, digests: impl IntoIterator<Item = &'a Digest>) -> Vec<Digest> {
        let wanted: HashSet<&Digest> = digests.into_iter().collect();
        let mut seen = HashSet::new();
        let mut last_first = Vec::new();
        let mut pending: Vec<(&Digest, bool)> = wanted.iter().map(|digest| (*digest, false)).collect();
        while let Some((digest, is_followed)) = pending.pop() {
            if is_followed {
                last_first.push(digest);
            } else if seen.insert(digest) {
                pending.push((digest, true));
                pending.extend(self.next(digest).iter().map(|next| (next, false)));
            }
        }
        last_first.into_iter().rev().filter(|digest| wanted.contains(digest)).cloned().collect()
    }

    fn next(&self, digest: &Digest) -> &[Digest] {
        self.0.get(digest).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leads(pairs: &[(&str, &str)]) -> Leads {
        let mut leads: HashMap<Digest, Vec<Digest>> = HashMap::new();
        for (from, to) in pairs {
            leads.entry(digest(from)).or_default().push(digest(to));
        }
        Leads(leads)
    }

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    #[test]
    fn everything_comes_before_what_it_leads_to() {
        let pairs = [("outer", "inner"), ("inner", "image"), ("outer", "image"), ("image", "signature")];
        let leads = leads(&pairs);
        let all = ["signature", "image", "inner", "outer"].map(digest);
        let order = leads.in_order(&all);
        assert_eq!(order.len(), all.len());
        let place = |name: &str| order.iter().position(|found| *found == digest(name)).expect("in the list");
        for (from, to) in pairs {
            assert!(place(from) < place(to), "{from} {to}");
        }
        // What is in between may be missing from the list.
        assert_eq!(leads.in_order(&[digest("signature"), digest("outer")]), [digest("outer"), digest("signature")]);
    }

    #[test]
    fn a_circle_is_followed_once() {
        let leads = leads(&[("subject", "index"), ("index", "subject")]);
        let both = ["subject", "index"].map(digest);
        assert_eq!(leads.in_order(&both).len(), 2);
        let mut reached = HashSet::new();
        leads.follow(&both[0], &mut reached);
        assert_eq!(reached, both.into());
    }
}
