//! [`run_graph`]: independent nodes at the same time, dependent ones after each other.

use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// The results of nodes, as far as they are done.
pub(crate) type Results<T> = [OnceLock<T>];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Waiting,
    Running,
    Done,
}

struct State<E> {
    progress: Vec<Progress>,
    failure: Option<E>,
    /// A node panicked; nobody may wait for it.
    is_broken: bool,
}

/// Tells the other threads when this one panics.
struct PanicGuard<'a, E>(&'a Mutex<State<E>>, &'a Condvar);

impl<E> Drop for PanicGuard<'_, E> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            lock(self.0).is_broken = true;
            self.1.notify_all();
        }
    }
}

/// Calls `work` for the nodes `0..n_nodes`, each after the nodes that `inputs` names, on up to `n_threads` threads.
/// After the first failure nothing is begun any more, `stop` is called once, and that failure is returned when the
/// nodes under way have ended.
pub(crate) fn run_graph<T: Send + Sync, E: Send>(
    n_nodes: usize,
    n_threads: usize,
    inputs: impl Fn(usize) -> Vec<usize> + Sync,
    work: impl Fn(usize, &Results<T>) -> Result<T, E> + Sync,
    stop: impl Fn() + Sync,
) -> Result<Vec<T>, E> {
    let results: Vec<OnceLock<T>> = (0..n_nodes).map(|_| OnceLock::new()).collect();
    let state = Mutex::new(State { progress: vec![Progress::Waiting; n_nodes], failure: None, is_broken: false });
    let changed = Condvar::new();
    let worker = || {
        let _guard = PanicGuard(&state, &changed);
        while let Some(node) = next(&state, &changed, &inputs) {
            let result = work(node, &results);
            let mut state = lock(&state);
            state.progress[node] = Progress::Done;
            match result {
                Ok(result) => drop(results[node].set(result)),
                Err(error) if state.failure.is_none() => {
                    state.failure = Some(error);
                    stop();
                }
                // It was most likely stopped by us.
                Err(_) => {}
            }
            changed.notify_all();
        }
    };
    std::thread::scope(|scope| {
        (1..n_threads.min(n_nodes)).for_each(|_| drop(scope.spawn(worker)));
        worker();
    });
    let state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    match state.failure {
        Some(failure) => Err(failure),
        None => Ok(results.into_iter().filter_map(OnceLock::into_inner).collect()),
    }
}

/// The next node that can begin, waiting for one; none when there will be none for this thread.
fn next<E>(state: &Mutex<State<E>>, changed: &Condvar, inputs: &impl Fn(usize) -> Vec<usize>) -> Option<usize> {
    let mut state = lock(state);
    loop {
        if state.failure.is_some() || state.is_broken {
            return None;
        }
        let is_ready = |node: &usize| {
            state.progress[*node] == Progress::Waiting
                && inputs(*node).into_iter().all(|input| state.progress[input] == Progress::Done)
        };
        if let Some(node) = (0..state.progress.len()).find(is_ready) {
            state.progress[node] = Progress::Running;
            return Some(node);
        }
        if !state.progress.contains(&Progress::Waiting) {
            return None;
        }
        state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

fn lock<E>(state: &Mutex<State<E>>) -> MutexGuard<'_, State<E>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn inputs_come_first() {
        let inputs = |node: usize| if node < 2 { vec![] } else { vec![node - 1, node - 2] };
        let sums = run_graph(
            10,
            3,
            inputs,
            |node, results: &Results<usize>| {
                let input = |node: usize| *results[node].get().expect("its inputs are done");
                Ok::<_, ()>(if node < 2 { 1 } else { input(node - 1) + input(node - 2) })
            },
            || {},
        );
        assert_eq!(sums, Ok(vec![1, 1, 2, 3, 5, 8, 13, 21, 34, 55]));
    }

    #[test]
    fn independent_nodes_run_at_the_same_time() {
        let both = Barrier::new(2);
        let work = |_, _: &Results<()>| {
            both.wait();
            Ok::<_, ()>(())
        };
        assert!(run_graph(2, 2, |_| vec![], work, || {}).is_ok());
    }

    #[test]
    fn the_first_failure_ends_it() {
        let (begun, stopped) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = |node, _: &Results<()>| {
            begun.fetch_add(1, Ordering::Relaxed);
            if node == 3 { Err(node) } else { Ok(()) }
        };
        let inputs = |node: usize| if node == 0 { vec![] } else { vec![node - 1] };
        let stop = || {
            stopped.fetch_add(1, Ordering::Relaxed);
        };
        assert_eq!(run_graph(10, 4, inputs, work, stop).map(|done| done.len()), Err(3));
        assert_eq!((begun.into_inner(), stopped.into_inner()), (4, 1));
    }
}
