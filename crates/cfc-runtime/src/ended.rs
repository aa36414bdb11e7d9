//! [`EndedInstance`]: what is remembered of an instance that was removed, beside its log.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use cfc_oci::Descriptor;
use serde::{Deserialize, Serialize};

use crate::instance::{ExitReport, Phase};
use crate::runtime::Record;
use crate::trial::is_trial;

/// How many are remembered: as many as logs are kept.
const ENDED_KEPT: usize = 200;
/// What the name of a file ends with that holds one.
const SUFFIX: &str = ".ended";

/// An instance that was removed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndedInstance {
    /// Its name.
    pub name: String,
    /// The application that it belonged to.
    pub application: String,
    /// What it was started from.
    pub image: Descriptor,
    /// When it was created.
    pub created: SystemTime,
    /// When it was last started.
    pub started: SystemTime,
    /// When its process ended.
    pub ended: SystemTime,
    /// How.
    pub exit: ExitReport,
}

impl EndedInstance {
    /// What is worth remembering of an instance that goes; nothing of one that never ran.
    pub(crate) fn of(record: &Record) -> Option<EndedInstance> {
        let exit = match &*record.phase.borrow() {
            Phase::Stopped(report) => report.clone(),
            _ => return None,
        };
        let spec = &record.journal.spec;
        let is_remembered = !is_trial(&spec.name);
        is_remembered.then(|| EndedInstance {
            name: spec.name.clone(),
            application: spec.application.clone(),
            image: spec.image.clone(),
            created: record.journal.created,
            started: record.started.unwrap_or(record.journal.created),
            ended: record.since,
            exit,
        })
    }
}

/// The instances that were removed lately, each also as a file, for the next start of the platform.
#[derive(Debug, Default)]
pub(crate) struct EndedInstances {
    newest_last: VecDeque<EndedInstance>,
}

impl EndedInstances {
    /// Reads what is remembered in `directory`.
    pub fn read(directory: &Path) -> EndedInstances {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let files = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(SUFFIX));
        let read = files.filter_map(|entry| serde_json::from_slice(&fs::read(entry.path()).ok()?).ok());
        let mut all: Vec<EndedInstance> = read.collect();
        all.sort_by_key(|instance| instance.ended);
        EndedInstances { newest_last: all.into() }
    }

    /// Remembers one more, in place of an earlier one of its name.
    pub fn push(&mut self, directory: &Path, instance: EndedInstance) {
        self.newest_last.retain(|other| other.name != instance.name);
        let path = file(directory, &instance.name);
        // Only somebody who looks for it misses it: nothing is lost that runs or could run.
        let written =
            serde_json::to_vec(&instance).map_err(std::io::Error::from).and_then(|bytes| fs::write(&path, bytes));
        if let Err(error) = written {
            tracing::debug!(path = %path.display(), %error, "cannot remember an ended instance");
            // Half of it is of no use to anybody.
            let _ = fs::remove_file(&path);
        }
        self.newest_last.push_back(instance);
        while self.newest_last.len() > ENDED_KEPT {
            if let Some(oldest) = self.newest_last.pop_front() {
                let _ = fs::remove_file(file(directory, &oldest.name));
            }
        }
    }

    /// Whether an instance of this name is remembered.
    pub fn has(&self, name: &str) -> bool {
        self.newest_last.iter().any(|instance| instance.name == name)
    }

    pub fn all(&self) -> Vec<EndedInstance> {
        self.newest_last.iter().cloned().collect()
    }
}

fn file(directory: &Path, name: &str) -> std::path::PathBuf {
    directory.join(format!("{name}{SUFFIX}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cfc_oci::Digest;

    use super::*;

    fn ended(number: u64) -> EndedInstance {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(number);
        EndedInstance {
            name: format!("i{number}"),
            application: "app".to_string(),
            image: Descriptor::new("type", Digest::of(b"image"), 1),
            created: time,
            started: time,
            ended: time,
            exit: ExitReport { code: 3, ..ExitReport::default() },
        }
    }

    #[test]
    fn the_newest_are_remembered_also_by_the_next_that_reads() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut instances = EndedInstances::read(directory.path());
        for number in 0..ENDED_KEPT as u64 + 3 {
            instances.push(directory.path(), ended(number));
        }
        instances.push(directory.path(), EndedInstance { exit: ExitReport::default(), ..ended(50) });
        let all = instances.all();
        assert_eq!((all.len(), all[0].name.as_str()), (ENDED_KEPT, "i3"));
        assert_eq!(all.iter().filter(|instance| instance.name == "i50").count(), 1);
        let again = EndedInstances::read(directory.path()).all();
        assert_eq!(again.len(), ENDED_KEPT);
        assert_eq!(again.iter().find(|instance| instance.name == "i50").expect("is there").exit.code, 0);
    }
}
