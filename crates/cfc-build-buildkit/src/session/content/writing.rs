//! [`Writing`]: a blob that the daemon writes, message by message.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use cfc_oci::Digest;
use cfc_store::{LayoutBlobWriter, open_layout_blob};
use tonic::Status;

use super::proto::{WriteAction, WriteContentRequest, WriteContentResponse};
use super::{Blobs, failed};
use crate::arrivals::{Arrivals, Arriving};
use crate::session::export::NOBODY_TAKES_IT;

/// The blob that was asked to be there last, of all that a daemon writes into a directory. A cache's manifest comes after
/// all that it names.
pub(crate) type Last = Arc<Mutex<Option<Digest>>>;

/// One blob on its way.
pub(super) struct Writing {
    target: Target,
    expected: Option<Digest>,
}

/// Where it goes.
enum Target {
    Layout(Option<Box<LayoutBlobWriter>>, Last),
    Image { arrivals: Arrivals, arriving: Option<Arriving>, written: i64 },
}

impl Writing {
    /// What `first` begins. A blob that is there already is not written again.
    pub(super) fn begin(blobs: &Blobs, first: &WriteContentRequest) -> Result<Writing, Status> {
        let expected = digest(&first.expected)?;
        let there = |digest: &Digest| Status::already_exists(format!("content `{digest}`: already exists"));
        let target = match blobs {
            Blobs::Images(..) | Blobs::Layout(_) => {
                return Err(Status::permission_denied("this content store can only be read"));
            }
            Blobs::Made(directory, last) => {
                if let Some(expected) =
                    expected.as_ref().filter(|expected| open_layout_blob(directory, expected).is_ok())
                {
                    note(last, expected);
                    return Err(there(expected));
                }
                Target::Layout(
                    Some(Box::new(LayoutBlobWriter::new(directory).map_err(|error| failed(&error))?)),
                    last.clone(),
                )
            }
            Blobs::Image(arrivals) => {
                let unnamed = || Status::invalid_argument("the blob of an image has a digest");
                let expected = expected.as_ref().ok_or_else(unnamed)?;
                if arrivals.has(expected) {
                    return Err(there(expected));
                }
                let arriving = arrivals.begin(expected, u64::try_from(first.total).unwrap_or_default());
                Target::Image { arrivals: arrivals.clone(), arriving: Some(arriving), written: 0 }
            }
        };
        Ok(Writing { target, expected })
    }

    /// What is answered to `request`, and whether that was the end.
    pub(super) fn take(&mut self, request: WriteContentRequest) -> Result<(WriteContentResponse, bool), Status> {
        let action = request.action();
        let offset = self.position()?;
        let has_data = action == WriteAction::Write || !request.data.is_empty();
        if has_data && request.offset != offset {
            return Err(Status::out_of_range(format!("expected offset {offset}, found {}", request.offset)));
        }
        self.append(request.data)?;
        let offset = self.position()?;
        let (total, is_over) = (request.total, action == WriteAction::Commit);
        let digest = if is_over { self.commit(&request.expected, total, offset)? } else { request.expected };
        Ok((WriteContentResponse { action: action.into(), offset, total, digest }, is_over))
    }

    fn position(&self) -> Result<i64, Status> {
        match &self.target {
            Target::Layout(Some(writer), _) => Ok(position(writer)),
            Target::Image { arriving: Some(_), written, .. } => Ok(*written),
            _ => Err(Status::failed_precondition("it is there already")),
        }
    }

    fn append(&mut self, data: Vec<u8>) -> Result<(), Status> {
        match &mut self.target {
            Target::Layout(Some(writer), _) => {
                writer.write_all(&data).map_err(|error| Status::internal(format!("cannot write a blob: {error}")))
            }
            Target::Image { arriving: Some(arriving), written, .. } => {
                *written += i64::try_from(data.len()).unwrap_or_default();
                // What went wrong is found out at the end.
                arriving.append(data);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Ends it; its digest.
    fn commit(&mut self, promised: &str, total: i64, written: i64) -> Result<String, Status> {
        if total > 0 && total != written {
            return Err(Status::failed_precondition(format!("expected {total} bytes, found {written}")));
        }
        let expected = digest(promised)?.or(self.expected.take());
        match (&mut self.target, expected) {
            (Target::Layout(writer, last), expected) => {
                let committed = writer.take().map(|writer| writer.commit(expected.as_ref()));
                let digest = committed.transpose().map_err(|error| failed(&error))?;
                digest.iter().for_each(|digest| note(last, digest));
                Ok(digest.map(|digest| digest.to_string()).unwrap_or_default())
            }
            (Target::Image { arrivals, arriving, .. }, Some(expected)) => {
                match arriving.take().is_some_and(|arriving| arrivals.end(&expected, arriving)) {
                    true => Ok(expected.to_string()),
                    false => Err(Status::cancelled(NOBODY_TAKES_IT)),
                }
            }
            (Target::Image { .. }, None) => Err(Status::invalid_argument("the blob of an image has a digest")),
        }
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
        let begin = |last: &Last| {
            let blobs = Blobs::Made(home.path().to_path_buf(), last.clone());
            Writing::begin(&blobs, &request(WriteAction::Stat, 0, b"", &promised))
        };
        let mut writing = begin(&last).expect("it is not there");
        writing.take(request(WriteAction::Write, 0, b"con", "")).expect("writes");
        let gap = writing.take(request(WriteAction::Write, 4, b"ent", "")).expect_err("there is a gap");
        assert_eq!(gap.code(), tonic::Code::OutOfRange);
        let short = writing.take(request(WriteAction::Commit, 3, b"", "")).expect_err("it is not whole");
        assert!(short.message().contains("cannot write a blob"), "{short}");
        assert!(!is_there() && last.lock().expect("no panic").is_none());
        let mut writing = begin(&last).expect("it is not there");
        writing.take(request(WriteAction::Write, 0, b"con", "")).expect("writes");
        let (answer, is_over) = writing.take(request(WriteAction::Commit, 3, b"tent", "")).expect("commits");
        assert!(is_over && answer.digest == promised && is_there());
        assert_eq!(last.lock().expect("no panic").take(), Some(digest.clone()));
        let again = begin(&last).err().expect("it is there");
        assert_eq!(again.code(), tonic::Code::AlreadyExists);
        assert_eq!(last.lock().expect("no panic").take(), Some(digest.clone()), "it is known all the same");
        let leftover = std::fs::read_dir(home.path().join("blobs")).expect("lists").count();
        assert_eq!(leftover, 1, "nothing unfinished is left");
    }
}
