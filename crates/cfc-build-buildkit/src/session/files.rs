//! File sync: the daemon hears of every file, and asks for the content of those that it does not have.
//!
//! ```text
//! we      STAT STAT STAT … STAT(empty: that was all)
//! daemon  REQ(number) …                                   at any time
//! we      DATA(number) … DATA(number, empty: the end)
//! daemon  FIN
//! we      FIN
//! ```

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
use bollard_buildkit_proto::moby::filesync::v1::file_sync_server::FileSync;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::walk::{LocalFiles, Wanted};

/// How much of a file one packet carries.
const DATA_BYTES: usize = 32 << 10;
/// How many files are read at once.
const N_READERS: usize = 4;
/// How many packets wait to be sent.
const WAITING: usize = 128;

/// The build contexts that the daemon may have, by name.
pub(crate) struct Files(pub(crate) BTreeMap<String, LocalFiles>);

type Packets = mpsc::Sender<Result<Packet, Status>>;

#[tonic::async_trait]
impl FileSync for Files {
    type DiffCopyStream = ReceiverStream<Result<Packet, Status>>;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Self::DiffCopyStream>, Status> {
        let name = values(request.metadata(), "dir-name").into_iter().next().unwrap_or_default();
        let files = self.0.get(&name).cloned();
        let files = files.ok_or_else(|| Status::not_found(format!("there is no build context `{name}`")))?;
        let wanted = Wanted {
            follow: values(request.metadata(), "followpaths"),
            include: values(request.metadata(), "include-patterns"),
            exclude: values(request.metadata(), "exclude-patterns"),
        };
        let (packets, receiver) = mpsc::channel(WAITING);
        let transfer = Arc::new(Transfer { files, names: Mutex::new(Vec::new()), packets });
        tokio::spawn(transfer.serve(wanted, request.into_inner()));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type TarStreamStream = ReceiverStream<Result<Packet, Status>>;

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("ask with `DiffCopy`"))
    }
}

/// One context on its way.
struct Transfer {
    files: LocalFiles,
    /// What the daemon was told of, in order: it asks by number.
    names: Mutex<Vec<String>>,
    packets: Packets,
}

impl Transfer {
    async fn serve(self: Arc<Transfer>, wanted: Wanted, mut incoming: Streaming<Packet>) {
        let walker = self.clone();
        tokio::task::spawn_blocking(move || walker.walk(&wanted));
        let readers = Arc::new(Semaphore::new(N_READERS));
        while let Ok(Some(packet)) = incoming.message().await {
            match packet.r#type() {
                PacketType::PacketReq => {
                    let Ok(permit) = readers.clone().acquire_owned().await else { return };
                    let reader = self.clone();
                    tokio::task::spawn_blocking(move || {
                        let _permit = permit;
                        reader.send_file(packet.id);
                    });
                }
                PacketType::PacketFin => {
                    let _ = self.packets.send(Ok(of_type(PacketType::PacketFin))).await;
                    return;
                }
                PacketType::PacketErr => {
                    tracing::debug!(said = %String::from_utf8_lossy(&packet.data), "the daemon gave a context up");
                    return;
                }
                PacketType::PacketStat | PacketType::PacketData => {}
            }
        }
    }

    fn walk(&self, wanted: &Wanted) {
        let walked = self.files.walk(wanted, &mut |stat| {
            // Before the daemon can ask for it.
            self.names.lock().unwrap_or_else(PoisonError::into_inner).push(stat.path.clone());
            self.send(stat_packet(Some(stat)))
        });
        match walked {
            Ok(()) => drop(self.send(stat_packet(None))),
            Err(error) => self.fail(format!("cannot read the build context {error}")),
        }
    }

    fn send_file(&self, id: u32) {
        let name = self.names.lock().unwrap_or_else(PoisonError::into_inner).get(id as usize).cloned();
        let Some(name) = name else { return self.fail(format!("there is no file number {id}")) };
        let sent = self.files.open(&name).and_then(|mut file| {
            let mut buffer = vec![0; DATA_BYTES];
            loop {
                let length = file.read(&mut buffer)?;
                // The empty one is the end.
                if !self.send(data_packet(id, &buffer[..length])) || length == 0 {
                    return Ok(());
                }
            }
        });
        if let Err(error) = sent {
            self.fail(format!("cannot read `{name}` of the build context: {error}"));
        }
    }

    /// Whether there is still somebody who wants it.
    fn send(&self, packet: Packet) -> bool {
        self.packets.blocking_send(Ok(packet)).is_ok()
    }

    fn fail(&self, message: String) {
        let _ = self.packets.blocking_send(Err(Status::aborted(message)));
    }
}

fn of_type(kind: PacketType) -> Packet {
    Packet { r#type: kind.into(), ..Packet::default() }
}

fn stat_packet(stat: Option<Stat>) -> Packet {
    Packet { stat, ..of_type(PacketType::PacketStat) }
}

fn data_packet(id: u32, data: &[u8]) -> Packet {
    Packet { id, data: data.to_vec(), ..of_type(PacketType::PacketData) }
}

/// The values of a key. What is not ASCII was made so, and then another key says it.
fn values(metadata: &MetadataMap, key: &str) -> Vec<String> {
    let is_encoded = metadata.get(format!("{key}-encoded")).is_some_and(|value| value == "1");
    let values = metadata.get_all(key).iter().filter_map(|value| value.to_str().ok());
    values.map(|value| if is_encoded { decoded(value) } else { value.to_string() }).collect()
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let byte = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 3;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_ascii_arrive() {
        let mut metadata = MetadataMap::new();
        metadata.append("followpaths", "a%20b".parse().expect("ASCII"));
        metadata.append("followpaths", "%C3%BC%".parse().expect("ASCII"));
        assert_eq!(values(&metadata, "followpaths"), ["a%20b", "%C3%BC%"]);
        metadata.insert("followpaths-encoded", "1".parse().expect("ASCII"));
        assert_eq!(values(&metadata, "followpaths"), ["a b", "ü%"]);
    }
}
