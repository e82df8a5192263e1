//! What a workload says, as it is in its file, and as it goes on.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::Stream;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::error::ApiError;
use crate::model::Object;

/// Bytes of a piece.
const PIECE: usize = 64 << 10;
/// How often is looked for more.
const LOOK: Duration = Duration::from_millis(100);

/// Knows where workloads' logs are.
pub trait Logs: Send + Sync {
    /// The file of an object's log, if objects of its kind have one here.
    fn log(&self, object: &Object) -> Option<PathBuf>;
}

/// An object's log; `follow` goes on as long as the client listens.
pub async fn answer(logs: &dyn Logs, object: &Object, follow: bool) -> Result<Response, ApiError> {
    let path = logs
        .log(object)
        .ok_or_else(|| ApiError::Method(format!("a {} says nothing", object.kind.singular)))?;
    let file = match File::open(&path).await {
        Ok(file) => Some(file),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(ApiError::Request(format!("its log cannot be read: {e}"))),
    };
    let body = Body::from_stream(pieces(path, file, follow));
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

/// Goes to the beginning where a full log was begun anew: the same file, made empty, or another of its name.
async fn begin_anew(path: &Path, file: &mut Option<File>) {
    let Some(open) = file else {
        return;
    };
    let (here, there) = (open.metadata().await, tokio::fs::metadata(path).await);
    let (Ok(here), Ok(at)) = (here, open.stream_position().await) else {
        return;
    };
    if here.len() < at {
        // It fails for what is no file, which has no end either.
        let _ = open.rewind().await;
    } else if there.is_ok_and(|there| (there.dev(), there.ino()) != (here.dev(), here.ino())) {
        *file = None;
    }
}

fn pieces(
    path: PathBuf,
    file: Option<File>,
    follow: bool,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    futures_util::stream::unfold((path, file), move |(path, mut file)| async move {
        let mut buffer = vec![0; PIECE];
        loop {
            if file.is_none() && follow {
                // It may not have said anything yet.
                file = File::open(&path).await.ok();
            }
            let read = match &mut file {
                Some(file) => file.read(&mut buffer).await,
                None => Ok(0),
            };
            match read {
                Ok(0) if follow => {
                    begin_anew(&path, &mut file).await;
                    tokio::time::sleep(LOOK).await;
                }
                Ok(0) => return None,
                Ok(n) => {
                    buffer.truncate(n);
                    return Some((Ok(buffer.into()), (path, file)));
                }
                Err(e) => return Some((Err(e), (path, None))),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_log_that_begins_anew_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "the first one ").unwrap();
        let file = File::open(&path).await.ok();
        let pieces = pieces(path.clone(), file, true);
        tokio::pin!(pieces);
        let mut next = async || pieces.next().await.unwrap().unwrap();
        assert_eq!(next().await, "the first one ");
        // The same file, made empty.
        std::fs::write(&path, "the second").unwrap();
        assert_eq!(next().await, "the second");
        // Another of its name, after what was still said to the old one.
        let mut old = std::fs::File::options().append(true).open(&path).unwrap();
        std::io::Write::write_all(&mut old, b" ends").unwrap();
        std::fs::rename(&path, folder.path().join("log.1")).unwrap();
        std::fs::write(&path, "the third").unwrap();
        assert_eq!(next().await, " ends");
        assert_eq!(next().await, "the third");
    }
}
