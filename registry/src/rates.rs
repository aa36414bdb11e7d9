//! [`Rates`]: how often one address or one user may ask.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Askers that are remembered; among more, those that did not ask lately are forgotten.
const REMEMBERED: usize = 100_000;

/// Requests a minute. Each asker may save up those of one minute.
#[derive(Clone, Copy, Debug, Default)]
pub struct RateLimits {
    /// Of one address; an IPv6 network of 64 bits counts as one.
    pub by_address: Option<u32>,
    /// Of one user, wherever from.
    pub by_user: Option<u32>,
}

/// How much everybody has left.
#[derive(Default)]
pub(crate) struct Rates {
    addresses: Buckets<IpAddr>,
    users: Buckets<String>,
}

impl Rates {
    /// Counts a request of an address; the error is how long it has to wait until the next one.
    pub(crate) fn of_address(&self, limits: RateLimits, address: IpAddr) -> Result<(), Duration> {
        let Some(limit) = limits.by_address else { return Ok(()) };
        let address = match address {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
            address => address,
        };
        self.addresses.take(address, limit, Instant::now())
    }

    /// Counts a request of a user who was found to be that.
    pub(crate) fn of_user(&self, limits: RateLimits, user: &str) -> Result<(), Duration> {
        let Some(limit) = limits.by_user else { return Ok(()) };
        self.users.take(user.to_string(), limit, Instant::now())
    }
}

/// Requests that are left to each, and as of when.
struct Buckets<Key>(Mutex<HashMap<Key, (f64, Instant)>>);

impl<Key> Default for Buckets<Key> {
    fn default() -> Buckets<Key> {
        Buckets(Mutex::default())
    }
}

impl<Key: Hash + Eq> Buckets<Key> {
    fn take(&self, key: Key, limit: u32, now: Instant) -> Result<(), Duration> {
        let (full, second) = (f64::from(limit), f64::from(limit) / 60.0);
        let left =
            |(left, since): &(f64, Instant)| (left + now.duration_since(*since).as_secs_f64() * second).min(full);
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= REMEMBERED && !buckets.contains_key(&key) {
            buckets.retain(|_, bucket| left(bucket) < full);
            if buckets.len() >= REMEMBERED {
                buckets.clear();
            }
        }
        let bucket = buckets.entry(key).or_insert((full, now));
        *bucket = (left(bucket), now);
        if bucket.0 < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.0) / second));
        }
        bucket.0 -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_up_is_spent_and_comes_back() {
        let (buckets, start) = (Buckets::default(), Instant::now());
        for _ in 0..60 {
            assert_eq!(buckets.take("a", 60, start), Ok(()));
        }
        assert_eq!(buckets.take("a", 60, start), Err(Duration::from_secs(1)));
        assert_eq!(buckets.take("b", 60, start), Ok(()));
        let later = start + Duration::from_millis(1500);
        assert_eq!(buckets.take("a", 60, later), Ok(()));
        assert_eq!(buckets.take("a", 60, later), Err(Duration::from_millis(500)));
        let much_later = start + Duration::from_secs(10_000);
        assert_eq!((0..100).filter(|_| buckets.take("a", 60, much_later).is_ok()).count(), 60);
    }

    #[test]
    fn a_crowd_does_not_take_more_and_more_memory() {
        let (buckets, start) = (Buckets::default(), Instant::now());
        for number in 0..2 * REMEMBERED {
            assert_eq!(buckets.take(number, 10, start), Ok(()));
        }
        assert!(buckets.0.lock().expect("one thread").len() <= REMEMBERED);
    }

    #[test]
    fn a_network_of_ipv6_is_one_asker() {
        let (rates, limits) = (Rates::default(), RateLimits { by_address: Some(1), by_user: None });
        let address = |text: &str| text.parse().expect("an address");
        assert!(rates.of_address(limits, address("2001:db8::1")).is_ok());
        assert!(rates.of_address(limits, address("2001:db8::2")).is_err());
        assert!(rates.of_address(limits, address("2001:db8:0:1::1")).is_ok());
        assert!(rates.of_address(limits, address("10.0.0.1")).is_ok());
        assert!(rates.of_address(limits, address("10.0.0.2")).is_ok());
        assert!(rates.of_user(limits, "ann").is_ok() && rates.of_user(limits, "ann").is_ok());
    }
}
