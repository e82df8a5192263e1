//! A vhost-user back end that does nothing but what it is told: it answers requests, keeps note of them, and never
//! touches a queue.

use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// Requests of the protocol.
pub mod request {
    #![allow(missing_docs)]
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_DEVICE_STATE_FD: u32 = 42;
    pub const CHECK_DEVICE_STATE: u32 = 43;
}

/// VIRTIO_F_VERSION_1 and VHOST_USER_F_PROTOCOL_FEATURES.
pub const PLAIN: u64 = 1 << 32 | 1 << 30;
/// VHOST_USER_PROTOCOL_F_MQ and VHOST_USER_PROTOCOL_F_REPLY_ACK.
pub const ACKNOWLEDGING: u64 = 1 << 0 | 1 << 3;
/// VHOST_USER_PROTOCOL_F_DEVICE_STATE.
pub const WITH_STATE: u64 = 1 << 19;

const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
const HEADER: usize = 12;

/// What it offers and says.
#[derive(Clone)]
pub struct Script {
    /// Features.
    pub features: u64,
    /// Protocol features.
    pub protocol: u64,
    /// Where every queue stands when it is taken back, after where it was started.
    pub taken: u32,
}

/// A request and what came with it.
type Request = (u32, Vec<u8>);

/// The back end. It serves one connection after the other until the process ends.
pub struct Scripted(Arc<Mutex<Vec<Request>>>);

impl Scripted {
    /// Listens.
    pub fn start(socket: &Path, script: Script) -> Scripted {
        let listener = UnixListener::bind(socket).expect("a socket");
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let noted = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(stream, &script, &noted);
            }
        });
        Scripted(requests)
    }

    /// What was sent with all requests of a kind until now.
    pub fn sent(&self, request: u32) -> Vec<Vec<u8>> {
        let requests = self.0.lock().expect("not poisoned");
        let sent = requests.iter().filter(|(kind, _)| *kind == request);
        sent.map(|(_, payload)| payload.clone()).collect()
    }
}

fn serve(mut stream: UnixStream, script: &Script, noted: &Mutex<Vec<Request>>) {
    let mut bases = [0u32; 256];
    while let Some((kind, flags, payload)) = receive(&stream) {
        let word = |at: usize| {
            let bytes = payload.get(at..at + 4).unwrap_or(&[0; 4]);
            u32::from_le_bytes(bytes.try_into().expect("four bytes"))
        };
        noted
            .lock()
            .expect("not poisoned")
            .push((kind, payload.clone()));
        let reply = match kind {
            request::GET_FEATURES => Some(script.features.to_le_bytes().to_vec()),
            request::GET_PROTOCOL_FEATURES => Some(script.protocol.to_le_bytes().to_vec()),
            request::GET_QUEUE_NUM => Some(8u64.to_le_bytes().to_vec()),
            request::SET_VRING_BASE => {
                bases[word(0) as usize % bases.len()] = word(4);
                None
            }
            request::GET_VRING_BASE => {
                let base = bases[word(0) as usize % bases.len()] + script.taken;
                Some([word(0).to_le_bytes(), base.to_le_bytes()].concat())
            }
            // It fails at that.
            request::SET_DEVICE_STATE_FD | request::CHECK_DEVICE_STATE => {
                Some(1u64.to_le_bytes().to_vec())
            }
            _ => None,
        };
        let acknowledged = (flags & NEED_REPLY != 0).then(|| 0u64.to_le_bytes().to_vec());
        let Some(reply) = reply.or(acknowledged) else {
            continue;
        };
        let header = [kind, VERSION | REPLY, reply.len() as u32].map(u32::to_le_bytes);
        if stream
            .write_all(&[&header.concat(), &reply[..]].concat())
            .is_err()
        {
            return;
        }
    }
}

/// One request; its descriptors are closed.
fn receive(stream: &UnixStream) -> Option<(u32, u32, Vec<u8>)> {
    let header = receive_exact(stream, HEADER)?;
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let payload = receive_exact(stream, word(8) as usize)?;
    Some((word(0), word(4), payload))
}

fn receive_exact(stream: &UnixStream, len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut at = 0;
    while at < len {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes[at..])];
        let received = recvmsg(stream, &mut slices, &mut control, RecvFlags::empty()).ok()?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                fds.for_each(drop);
            }
        }
        if received.bytes == 0 {
            return None;
        }
        at += received.bytes;
    }
    Some(bytes)
}
