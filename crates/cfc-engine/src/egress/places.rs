//! [`Places`]: how many connections of containers may be on their way at once, so that they leave descriptors of this
//! process to the gateway, the registry and the control API.
//!
//! A connection has a place until a relay, another process, carries it. A container may have as many places as are free:
//! one that floods gets half of all, two get a third each, and there is always one for whoever has none.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

/// How much of the descriptors of this process connections on their way may have: a quarter.
const SHARE: u64 = 4;
/// A connection has one to the container and one to workerd.
const DESCRIPTORS: u64 = 2;
/// Where descriptors are plenty.
const PLACES_MAX: u64 = 16_384;
/// How many of them one container may have.
const CONTAINER_MAX: usize = 2_048;
/// How often it is looked for a place.
const PAUSE: Duration = Duration::from_millis(20);

/// Those of this process.
static ALL: LazyLock<Arc<Places>> = LazyLock::new(|| {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    Arc::new(Places::new((descriptors / SHARE / DESCRIPTORS).clamp(1, PLACES_MAX) as usize))
});

/// What all containers share.
#[derive(Debug)]
struct Places {
    most: usize,
    taken: Mutex<usize>,
}

/// The places of one container.
#[derive(Clone, Debug)]
pub(super) struct Share {
    places: Arc<Places>,
    own: Arc<AtomicUsize>,
}

/// A place that is taken, until it is dropped.
#[derive(Debug)]
pub(super) struct Place(Share);

impl Places {
    fn new(most: usize) -> Places {
        Places { most, taken: Mutex::new(0) }
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, usize> {
        // A number is whole whenever somebody panics.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// One of this process's places.
    pub fn new() -> Share {
        Share::of(&ALL)
    }

    fn of(places: &Arc<Places>) -> Share {
        Share { places: places.clone(), own: Arc::default() }
    }

    /// How many there are for all containers.
    pub fn of_all(&self) -> usize {
        self.places.most
    }

    /// A place, if the container may have another one.
    pub fn try_take(&self) -> Option<Place> {
        let mut taken = self.places.taken();
        let (own, free) = (self.own.load(Ordering::Relaxed), self.places.most - *taken);
        if own >= CONTAINER_MAX.min(free) {
            return None;
        }
        *taken += 1;
        self.own.fetch_add(1, Ordering::Relaxed);
        Some(Place(self.clone()))
    }

    /// A place, as soon as the container may have another one.
    pub async fn take(&self) -> Place {
        loop {
            if let Some(place) = self.try_take() {
                return place;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.places.taken() -= 1;
        self.0.own.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flood(share: &Share) -> Vec<Place> {
        std::iter::from_fn(|| share.try_take()).collect()
    }

    #[test]
    fn floods_leave_places_to_whoever_has_none() {
        let places = Arc::new(Places::new(120));
        let (first, second, neighbour) = (Share::of(&places), Share::of(&places), Share::of(&places));
        let mut firsts = flood(&first);
        assert_eq!(firsts.len(), 60, "half of all");
        assert_eq!(flood(&second).len(), 30, "as many as are left free");
        let seconds = flood(&second);
        assert_eq!(flood(&neighbour).len(), 15);
        firsts.truncate(20);
        assert!(first.try_take().is_some(), "what it gives back it may have again");
        assert!(firsts.len() + seconds.len() < places.most);
        drop((firsts, seconds));
        assert_eq!(*places.taken(), 0);
    }
}
