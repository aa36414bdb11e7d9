//! Whether what the clients of one instance have seen can have happened one after another.
//!
//! Each operation takes effect at one moment between its call and its answer. The checker looks for an order of those
//! moments in which every answer is right (Wing and Gong's algorithm, with the states remembered that led nowhere). An
//! instance is a register: absent, at rest, or alive in one launch. Two live processes fit no order.

use std::collections::HashSet;
use std::time::Instant;

use crate::Test;

pub const TESTS: &[Test] = &[("the_checker_tells_good_histories_from_bad_ones", checker)];

/// What was asked for, and what was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Created,
    /// Refused: it exists.
    CreateExists,
    /// Its process runs; the first number is of its launch, where that is known.
    Started,
    /// Refused: it runs already, or is just ending.
    StartLive,
    /// Refused: there is no such instance.
    StartAbsent,
    /// The end of a process that was started, whoever ended it: between its start and when a wait returned.
    Ended,
    Removed,
    RemoveAbsent,
}

/// An operation and when it was under way.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub called: Instant,
    pub answered: Instant,
    pub operation: Operation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Absent,
    Resting,
    Alive,
}

fn apply(state: State, operation: Operation) -> Option<State> {
    use Operation::*;
    use State::*;
    match (operation, state) {
        (Created, Absent) => Some(Resting),
        (CreateExists, Resting | Alive) => Some(state),
        (Started, Resting) => Some(Alive),
        (StartLive, Alive) => Some(state),
        (StartAbsent | RemoveAbsent, Absent) => Some(state),
        (Ended, Alive) => Some(Resting),
        // Two that remove it together have both removed it.
        (Removed, Resting | Absent) => Some(Absent),
        _ => None,
    }
}

/// Whether the operations on one instance, which was absent before, can have happened one after another.
pub fn is_linearizable(events: &[Event]) -> bool {
    let mut events = events.to_vec();
    events.sort_by_key(|event| event.called);
    let mut dead_ends = HashSet::new();
    search(&events, &mut vec![false; events.len()], 0, State::Absent, &mut dead_ends)
}

/// `first` is the first event that has not taken effect.
fn search(
    events: &[Event],
    done: &mut Vec<bool>,
    first: usize,
    state: State,
    dead_ends: &mut HashSet<(usize, Vec<bool>, State)>,
) -> bool {
    let Some(open) = events.get(first) else { return true };
    // Whatever is called after the earliest answer among the open ones must wait for it.
    let mut horizon = open.answered;
    let mut candidates = Vec::new();
    for (index, event) in events.iter().enumerate().skip(first) {
        if event.called > horizon {
            break;
        }
        if !done[index] {
            horizon = horizon.min(event.answered);
            candidates.push(index);
        }
    }
    let last = candidates.last().copied().unwrap_or(first);
    let key = (first, done[first..=last].to_vec(), state);
    if dead_ends.contains(&key) {
        return false;
    }
    for index in candidates.into_iter().filter(|index| events[*index].called <= horizon) {
        let Some(next) = apply(state, events[index].operation) else { continue };
        done[index] = true;
        let next_first = (first..events.len()).find(|index| !done[*index]).unwrap_or(events.len());
        if search(events, done, next_first, next, dead_ends) {
            return true;
        }
        done[index] = false;
    }
    dead_ends.insert(key);
    false
}

fn checker() {
    use Operation::*;
    let start = Instant::now();
    let history = |events: &[(u64, u64, Operation)]| {
        let at = |ms| start + std::time::Duration::from_millis(ms);
        let event = |(called, answered, operation): &(u64, u64, Operation)| Event {
            called: at(*called),
            answered: at(*answered),
            operation: *operation,
        };
        is_linearizable(&events.iter().map(event).collect::<Vec<_>>())
    };
    assert!(history(&[(0, 1, Created), (2, 3, Started), (3, 9, Ended), (10, 11, Started), (11, 20, Ended)]));
    assert!(history(&[(0, 9, Started), (0, 9, Created), (3, 20, Ended), (1, 19, Removed), (18, 20, RemoveAbsent)]));
    assert!(!history(&[(0, 1, Created), (2, 3, Started), (4, 5, Started)]), "it lives twice");
    let twice = [(0, 1, Created), (2, 5, Started), (3, 6, Started), (7, 9, Ended), (7, 9, Ended)];
    assert!(!history(&twice), "two live at once, though both end");
    assert!(history(&[(0, 1, Created), (2, 5, Started), (3, 6, Started), (2, 9, Ended), (7, 9, Ended)]));
    assert!(!history(&[(0, 1, Created), (2, 3, Removed), (4, 5, Started)]), "it was removed");
    assert!(!history(&[(0, 1, Created), (2, 3, Started), (4, 5, Removed)]), "it was removed alive");
}
