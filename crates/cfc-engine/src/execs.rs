//! [`Execs`]: the commands that were asked for over Docker's API, and what became of them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cfc_runtime::{ExecControl, ExecSpec};

use crate::exec_wrapper::Wrapped;

/// How many commands are remembered that do not run: whoever asks for the end of one asks soon.
const REMEMBERED_MAX: usize = 1_024;

/// One command.
#[derive(Clone, Debug)]
pub(crate) struct ExecRecord {
    pub container: String,
    pub spec: ExecSpec,
    pub wrapped: Wrapped,
    pub state: ExecState,
    /// Higher for later ones.
    number: u64,
}

/// Where in its life a command is.
#[derive(Clone, Debug)]
pub(crate) enum ExecState {
    Created,
    Starting,
    Running { pid: u32, control: ExecControl },
    Ended { pid: u32, code: i32 },
}

impl ExecRecord {
    pub fn new(container: String, spec: ExecSpec, wrapped: Wrapped) -> ExecRecord {
        ExecRecord { container, spec, wrapped, state: ExecState::Created, number: 0 }
    }

    fn is_idle(&self) -> bool {
        matches!(self.state, ExecState::Created | ExecState::Ended { .. })
    }
}

/// All commands of one engine, by id.
#[derive(Debug, Default)]
pub(crate) struct Execs {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    records: BTreeMap<String, ExecRecord>,
    next_number: u64,
}

impl Execs {
    /// Remembers a new command, and forgets the oldest that neither run nor ever will.
    pub fn insert(&self, id: String, record: ExecRecord) {
        let mut inner = self.lock();
        let number = inner.next_number;
        inner.next_number += 1;
        inner.records.insert(id, ExecRecord { number, ..record });
        if inner.records.values().filter(|record| record.is_idle()).count() > REMEMBERED_MAX {
            let idle = inner.records.iter().filter(|(_, record)| record.is_idle());
            let oldest = idle.min_by_key(|(_, record)| record.number).map(|(id, _)| id.clone());
            oldest.and_then(|id| inner.records.remove(&id));
        }
    }

    pub fn get(&self, id: &str) -> Option<ExecRecord> {
        self.lock().records.get(id).cloned()
    }

    /// The command, from now on starting; `None` when there is none, or it was started before.
    pub fn begin(&self, id: &str) -> Option<ExecRecord> {
        let mut inner = self.lock();
        let record = inner.records.get_mut(id).filter(|record| matches!(record.state, ExecState::Created))?;
        record.state = ExecState::Starting;
        Some(record.clone())
    }

    pub fn run(&self, id: &str, pid: u32, control: ExecControl) {
        self.change(id, |_| ExecState::Running { pid, control });
    }

    pub fn end(&self, id: &str, code: i32) {
        self.change(id, |state| match state {
            ExecState::Running { pid, .. } => ExecState::Ended { pid: *pid, code },
            _ => ExecState::Ended { pid: 0, code },
        });
    }

    fn change(&self, id: &str, change: impl FnOnce(&ExecState) -> ExecState) {
        if let Some(record) = self.lock().records.get_mut(id) {
            record.state = change(&record.state);
        }
    }

    /// The state of the container's command whose process id would be in `pid_file`.
    pub fn by_pid_file(&self, container: &str, pid_file: &str) -> Option<ExecState> {
        let inner = self.lock();
        let is_it = |record: &&ExecRecord| record.container == container && record.wrapped.pid_file() == Some(pid_file);
        inner.records.values().find(is_it).map(|record| record.state.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics halfway through a change; what a poisoned lock guards is whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
