//! [`Publisher`]: puts finished layers into the store beside the next step, which needs the directory and not the blob.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};

/// Work that goes on beside the build, and that the build's end waits for.
pub(crate) struct Publisher<'scope, 'env, E> {
    scope: &'scope Scope<'scope, 'env>,
    begun: Mutex<Vec<ScopedJoinHandle<'scope, ()>>>,
    failures: Arc<Failures<'scope, E>>,
}

struct Failures<'scope, E> {
    /// The first, until somebody takes it.
    first: Mutex<Option<E>>,
    stop: Box<dyn Fn() + Send + Sync + 'scope>,
}

impl<'scope, 'env, E: Send + 'scope> Publisher<'scope, 'env, E> {
    /// `stop` is called after each failure: the build is to end.
    pub(crate) fn new(
        scope: &'scope Scope<'scope, 'env>,
        stop: impl Fn() + Send + Sync + 'scope,
    ) -> Publisher<'scope, 'env, E> {
        let failures = Failures { first: Mutex::new(None), stop: Box::new(stop) };
        Publisher { scope, begun: Mutex::new(Vec::new()), failures: Arc::new(failures) }
    }

    /// What has failed first.
    pub(crate) fn take_failure(&self) -> Option<E> {
        self.failures.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Begins `work`.
    ///
    /// # Errors
    /// When there is no thread for it. It is undone then.
    pub(crate) fn begin(&self, work: impl FnOnce() -> Result<(), E> + Send + 'scope) -> std::io::Result<()> {
        let failures = self.failures.clone();
        let work = move || {
            if let Err(error) = work() {
                failures.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                (failures.stop)();
            }
        };
        let thread = Builder::new().name("cfc-publish".into()).spawn_scoped(self.scope, work)?;
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

    /// Waits for all that was begun. The first failure is returned, if nobody has taken it.
    pub(crate) fn finish(&self) -> Result<(), E> {
        let begun = std::mem::take(&mut *self.begun.lock().unwrap_or_else(PoisonError::into_inner));
        // All are waited for, whatever becomes of one.
        let outcomes: Vec<_> = begun.into_iter().map(ScopedJoinHandle::join).collect();
        outcomes.into_iter().for_each(|outcome| outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        self.take_failure().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn work_goes_on_beside_and_all_of_it_is_waited_for() {
        let (barrier, done, stopped) = (Barrier::new(2), AtomicUsize::new(0), AtomicUsize::new(0));
        let outcome = std::thread::scope(|scope| {
            let (barrier, done, stopped) = (&barrier, &done, &stopped);
            let publisher = Publisher::new(scope, || {
                stopped.fetch_add(1, Ordering::Relaxed);
            });
            for failure in [None, Some("only"), None] {
                let work = move || {
                    barrier.wait();
                    done.fetch_add(1, Ordering::Relaxed);
                    failure.map_or(Ok(()), Err)
                };
                publisher.begin(work).expect("a thread");
                // It would wait for ever, were it not beside us.
                barrier.wait();
            }
            publisher.finish()
        });
        assert_eq!((outcome, done.into_inner(), stopped.into_inner()), (Err("only"), 3, 1));
    }
}
