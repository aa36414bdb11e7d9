//! [`Writing`]: a blob that the daemon writes, message by message.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use cfc_oci::Digest;
use cfc_store::{LayoutBlobWriter, open_layout_blob};
use tonic::Status;

use super::failed;
use super::proto::{WriteAction, WriteContentRequest, WriteContentResponse};

/// The blob that was asked to be there last, of all that a daemon writes into a directory. A cache's manifest comes after
/// all that it names.
pub(crate) type Last = Arc<Mutex<Option<Digest>>>;

/// One blob on its way into a directory.
pub(super) struct Writing {
    writer: Option<LayoutBlobWriter>,
    expected: Option<Digest>,
    last: Last,
}

impl Writing {
    /// What `first` begins. A blob that is there already is not written again.
    pub(super) fn begin(directory: &Path, first: &WriteContentRequest, last: Last) -> Result<Writing, Status> {
        let expected = digest(&first.expected)?;
        if let Some(expected) = expected.as_ref().filter(|expected| open_layout_blob(directory, expected).is_ok()) {
            note(&last, expected);
            return Err(Status::already_exists(format!("content `{expected}`: already exists")));
        }
        let writer = LayoutBlobWriter::new(directory).map_err(|error| failed(&error))?;
        Ok(Writing { writer: Some(writer), expected, last })
    }

    /// What is answered to `request`, and whether that was the end.
    pub(super) fn take(&mut self, request: &WriteContentRequest) -> Result<(WriteContentResponse, bool), Status> {
        let action = request.action();
        let Some(writer) = self.writer.as_mut() else { return Err(Status::failed_precondition("it is there already")) };
        let offset = position(writer);
        let has_data = action == WriteAction::Write || !request.data.is_empty();
        if has_data && request.offset != offset {
            return Err(Status::out_of_range(format!("expected offset {offset}, found {}", request.offset)));
        }
        writer.write_all(&request.data).map_err(|error| Status::internal(format!("cannot write a blob: {error}")))?;
        let offset = position(writer);
        let answer = WriteContentResponse {
            action: action.into(),
            offset,
            total: request.total,
            digest: request.expected.clone(),
        };
        if action != WriteAction::Commit {
            return Ok((answer, false));
        }
        if request.total > 0 && request.total != offset {
            return Err(Status::failed_precondition(format!("expected {} bytes, found {offset}", request.total)));
        }
        let expected = digest(&request.expected)?.or(self.expected.take());
        let written = self.writer.take().map(|writer| writer.commit(expected.as_ref()));
        let digest = written.transpose().map_err(|error| failed(&error))?;
        if let Some(digest) = &digest {
            note(&self.last, digest);
        }
        let digest = digest.map(|digest| digest.to_string()).unwrap_or_default();
        Ok((WriteContentResponse { digest, ..answer }, true))
    }
}

fn position(writer: &LayoutBlobWriter) -> i64 {
    i64::try_from(writer.written()).unwrap_or(i64::MAX)
}

fn note(last: &Last, digest: &Digest) {
    *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(digest.clone());
}

/// A digest that may be missing.
fn digest(text: &str) -> Result<Option<Digest>, Status> {
    let parsed = (!text.is_empty()).then(|| text.parse()).transpose();
    parsed.map_err(|error: cfc_oci::DigestError| Status::invalid_argument(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(action: WriteAction, offset: i64, data: &[u8], expected: &str) -> WriteContentRequest {
        let (expected, data) = (expected.to_string(), data.to_vec());
        WriteContentRequest { action: action.into(), offset, data, expected, ..WriteContentRequest::default() }
    }

    #[test]
    fn a_blob_is_there_when_it_is_whole_and_what_was_promised() {
        let home = tempfile::tempdir().expect("a directory");
        let (digest, last) = (Digest::of(b"content"), Last::default());
        let promised = digest.to_string();
        let is_there = || open_layout_blob(home.path(), &digest).is_ok();
        let begin =
            |last: &Last| Writing::begin(home.path(), &request(WriteAction::Stat, 0, b"", &promised), last.clone());
        let mut writing = begin(&last).expect("it is not there");
        writing.take(&request(WriteAction::Write, 0, b"con", "")).expect("writes");
        let gap = writing.take(&request(WriteAction::Write, 4, b"ent", "")).expect_err("there is a gap");
        assert_eq!(gap.code(), tonic::Code::OutOfRange);
        let short = writing.take(&request(WriteAction::Commit, 3, b"", "")).expect_err("it is not whole");
        assert!(short.message().contains("cannot write a blob"), "{short}");
        assert!(!is_there() && last.lock().expect("no panic").is_none());
        let mut writing = begin(&last).expect("it is not there");
        writing.take(&request(WriteAction::Write, 0, b"con", "")).expect("writes");
        let (answer, is_over) = writing.take(&request(WriteAction::Commit, 3, b"tent", "")).expect("commits");
        assert!(is_over && answer.digest == promised && is_there());
        assert_eq!(last.lock().expect("no panic").take(), Some(digest.clone()));
        let again = begin(&last).err().expect("it is there");
        assert_eq!(again.code(), tonic::Code::AlreadyExists);
        assert_eq!(last.lock().expect("no panic").take(), Some(digest.clone()), "it is known all the same");
        let leftover = std::fs::read_dir(home.path().join("blobs")).expect("lists").count();
        assert_eq!(leftover, 1, "nothing unfinished is left");
    }
}
