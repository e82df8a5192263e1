//! The API: HTTP on a Unix socket, on a thread of its own that knows the monitor only as a place
//! to send requests to.

mod server;

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use server::serve;

/// Why the API socket could not be opened.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum SocketError {
    #[error("API socket {0} is in use by a running monitor: give another path, or stop that one")]
    InUse(PathBuf),
    #[error("API socket {0} is a file of another kind: give another path, or remove it")]
    NotASocket(PathBuf),
    #[error("cannot listen on API socket {path}")]
    Listen { path: PathBuf, source: io::Error },
}

/// A listening API socket, whose file goes away with it.
pub struct ApiSocket {
    listener: UnixListener,
    _file: SocketFile,
}

struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl ApiSocket {
    /// Listens on `path`. A socket that a dead monitor left there is replaced.
    pub fn listen(path: &Path) -> Result<ApiSocket, SocketError> {
        let error = |source| SocketError::Listen {
            path: path.to_owned(),
            source,
        };
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) if UnixStream::connect(path).is_ok() => {
                return Err(SocketError::InUse(path.to_owned()));
            }
            Ok(_) => std::fs::remove_file(path).map_err(error)?,
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(error)?;
        listener.set_nonblocking(true).map_err(error)?;
        Ok(ApiSocket {
            listener,
            _file: SocketFile(path.to_owned()),
        })
    }

    /// The listener, for the server's thread.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}
