//! The HTTP server: routes by the table of `skerry-vmm-api`, parses bodies, passes requests on.

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::ext::ReasonPhrase;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::de::DeserializeOwned;
use skerry_vmm_api::endpoints::{ENDPOINTS, Endpoint, Operation, ROOT, openapi};
use skerry_vmm_api::requests::VmRemoveDevice;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::disks::{DiskError, DiskRequest};
use crate::migration::MigrationError;
use crate::monitor::{Answer, Event, MoveRequest, Request, RequestError, chain};
use crate::sandbox::{Sandbox, ThreadKind};
use crate::snapshot::SnapshotRequestError;
use crate::workers::{WorkerError, WorkerRequest};
use skerry_link::LinkError;
use skerry_snapshot::SnapshotError;

/// Bytes of a request's body.
const MAX_BODY: usize = 1 << 20;
/// Clients at a time; more wait.
const MAX_CONNECTIONS: u32 = 64;
/// A client that starts a request finishes its head within this.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// And its body within this.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Answers under way when the monitor ends reach their clients within this.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of an oversized body that are read all the same, so that its sender sees the refusal.
const MAX_DISCARD: usize = 16 << 20;

/// A running server.
pub struct Server {
    ending: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Stops accepting and lets answers under way reach their clients, for at most a second.
    pub fn end(self) {
        let _ = self.ending.send(true);
        let _ = self.thread.join();
    }
}

/// Serves the API on a thread of its own.
pub fn serve(
    listener: StdListener,
    monitor: Sender<Event>,
    sandbox: Sandbox,
) -> io::Result<Server> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (ending, ended) = watch::channel(false);
    let thread = std::thread::Builder::new()
        .name("api".into())
        .spawn(move || {
            if let Err(e) = sandbox.enter(ThreadKind::Api) {
                log::error!("the API cannot enter the sandbox: {e}");
                return;
            }
            runtime.block_on(async move {
                match UnixListener::from_std(listener) {
                    Ok(listener) => accept(listener, monitor, ended).await,
                    Err(e) => log::error!("API socket: {e}"),
                }
            });
        })?;
    Ok(Server { ending, thread })
}

async fn accept(listener: UnixListener, monitor: Sender<Event>, mut ended: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS as usize));
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! {
            next = next => next,
            _ = ended.changed() => break,
        };
        match (place, stream) {
            (Ok(place), Ok((stream, _))) => {
                tokio::spawn(connection(stream, monitor.clone(), ended.clone(), place));
            }
            (_, Err(e)) => {
                // Out of descriptors, say: clients come and go.
                log::warn!("API socket: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            (Err(_), _) => return,
        }
    }
    // Every place is free again when every connection has ended.
    let _ = tokio::time::timeout(END_TIMEOUT, places.acquire_many(MAX_CONNECTIONS)).await;
}

async fn connection(
    stream: UnixStream,
    monitor: Sender<Event>,
    mut ended: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
) {
    let service = service_fn(|request| {
        let monitor = monitor.clone();
        async move { Ok::<_, Infallible>(handle(request, &monitor).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // Cloud Hypervisor's own client looks for `Content-Length` as it is spelled here.
        .title_case_headers(true)
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = &mut connection => served,
        _ = ended.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = served {
        log::debug!("API client: {e}");
    }
}

/// A refusal before the request reached the monitor.
struct Refusal(StatusCode, Vec<String>);

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Refusal {
        Refusal(status, vec![message.into()])
    }
}

async fn handle(
    request: hyper::Request<Incoming>,
    monitor: &Sender<Event>,
) -> Response<Full<Bytes>> {
    let mut response = match answer(request, monitor).await {
        Ok(Some(body)) => respond(StatusCode::OK, &body),
        Ok(None) => {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        Err(Refusal(status, messages)) => {
            let mut response = respond(status, &messages);
            if status == StatusCode::METHOD_NOT_ALLOWED {
                response
                    .headers_mut()
                    .insert(ALLOW, hyper::header::HeaderValue::from_static("GET, PUT"));
            }
            response
        }
    };
    // And it takes the rest of the status line for the code, so there is no phrase behind it.
    let phrase = ReasonPhrase::from_static(b"");
    response.extensions_mut().insert(phrase);
    response
}

fn respond(status: StatusCode, body: &impl serde::Serialize) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        hyper::header::HeaderValue::from_static("application/json"),
    );
    response
}

async fn answer(
    request: hyper::Request<Incoming>,
    monitor: &Sender<Event>,
) -> Result<Option<serde_json::Value>, Refusal> {
    let endpoint = route(request.method(), request.uri().path())?;
    let body = tokio::time::timeout(BODY_TIMEOUT, read_body(request.into_body())).await;
    let body = body.map_err(|_| {
        Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            "the request's body did not arrive in time",
        )
    })??;
    if endpoint.operation == Operation::OpenApi {
        return Ok(Some(openapi()));
    }
    let request = parse(endpoint.operation, &body)?;
    let (reply, answer) = oneshot::channel::<Answer>();
    let reply = Box::new(move |answer| drop(reply.send(answer)));
    let gone = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the monitor is ending");
    monitor
        .send(Event::Request(request, reply))
        .map_err(|_| gone())?;
    answer
        .await
        .map_err(|_| gone())?
        .map_err(|e| Refusal(status(&e), chain(&e)))
}

async fn read_body(mut body: Incoming) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    let mut total = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                format!("the request's body cannot be read: {e}"),
            )
        })?;
        let data = frame.data_ref().map(Bytes::as_ref).unwrap_or_default();
        total += data.len();
        if total <= MAX_BODY {
            bytes.extend_from_slice(data);
        } else if total > MAX_DISCARD {
            break;
        }
    }
    if total > MAX_BODY {
        let message = format!("the request's body is longer than {MAX_BODY} bytes");
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    Ok(bytes)
}

fn route(method: &Method, path: &str) -> Result<&'static Endpoint, Refusal> {
    let name = path.strip_prefix(ROOT).unwrap_or_default();
    let Some(endpoint) = ENDPOINTS.iter().find(|e| e.path == name) else {
        let message = format!("there is no {path}: see {ROOT}/openapi.json for what there is");
        return Err(Refusal::new(StatusCode::NOT_FOUND, message));
    };
    if method.as_str() != endpoint.method {
        let message = format!("{path} takes {}, not {method}", endpoint.method);
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, message));
    }
    Ok(endpoint)
}

fn parse(operation: Operation, body: &[u8]) -> Result<Request, Refusal> {
    Ok(match operation {
        // Answered before it comes here.
        Operation::OpenApi | Operation::VmmPing => Request::Ping,
        Operation::VmmShutdown => Request::Exit,
        Operation::VmCreate => Request::Create(from_json(body)?),
        Operation::VmDelete => Request::Delete,
        Operation::VmBoot => Request::Boot,
        Operation::VmInfo => Request::Info,
        Operation::VmCounters => Request::Counters,
        Operation::VmUsage => Request::Usage,
        Operation::VmPause => Request::Pause,
        Operation::VmResume => Request::Resume,
        Operation::VmShutdown => Request::Shutdown,
        Operation::VmReboot => Request::Reboot,
        Operation::VmPowerButton => Request::PowerButton,
        Operation::VmAddDisk => Request::AddDisk(from_json(body)?),
        Operation::VmAddNet => Request::AddNet(from_json(body)?),
        Operation::VmRemoveDevice => Request::RemoveDevice(from_json::<VmRemoveDevice>(body)?.id),
        Operation::VmResizeDisk => Request::Disk(DiskRequest::Resize(from_json(body)?)),
        Operation::VmDisks => Request::Disk(DiskRequest::List),
        Operation::VmDiskSnapshot => Request::Disk(DiskRequest::Snapshot(from_json(body)?)),
        Operation::VmDiskCommit => Request::Disk(DiskRequest::Commit(from_json(body)?)),
        Operation::VmDiskStream => Request::Disk(DiskRequest::Stream(from_json(body)?)),
        Operation::VmDiskBackup => Request::Disk(DiskRequest::Backup(from_json(body)?)),
        Operation::VmDiskJobs => Request::Disk(DiskRequest::Jobs),
        Operation::VmDiskCancel => Request::Disk(DiskRequest::Cancel(from_json(body)?)),
        Operation::VmDiskBitmapAdd => Request::Disk(DiskRequest::BitmapAdd(from_json(body)?)),
        Operation::VmDiskBitmapClear => Request::Disk(DiskRequest::BitmapClear(from_json(body)?)),
        Operation::VmSnapshot => Request::Move(MoveRequest::Snapshot(from_json(body)?)),
        Operation::VmRestore => Request::Restore(from_json(body)?),
        Operation::VmSendMigration => Request::Move(MoveRequest::Send(from_json(body)?)),
        Operation::VmReceiveMigration => Request::Move(MoveRequest::Receive(from_json(body)?)),
        Operation::VmCancelMigration => Request::CancelMigration,
        Operation::VmWorkingSet => Request::WorkingSet,
        Operation::VmPrepare => Request::Prepare(from_json(body)?),
        Operation::VmWorkers => Request::Worker(WorkerRequest::List),
        Operation::VmMoveQueues => Request::Worker(WorkerRequest::MoveQueues(from_json(body)?)),
        Operation::VmSetWorker => Request::Worker(WorkerRequest::Set(from_json(body)?)),
        Operation::VmDiskBitmapRemove => Request::Disk(DiskRequest::BitmapRemove(from_json(body)?)),
    })
}

fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|e| {
        let path = e.path().to_string();
        let cause = e.into_inner().to_string();
        let what = if path == "." {
            "the request's body is not valid".to_owned()
        } else {
            format!("`{path}` is not valid")
        };
        Refusal(StatusCode::BAD_REQUEST, vec![what, cause])
    })?;
    deserializer.end().map_err(|e| {
        let what = "something follows the request's JSON".to_owned();
        Refusal(StatusCode::BAD_REQUEST, vec![what, e.to_string()])
    })?;
    Ok(value)
}

/// Cloud Hypervisor's status codes, as its API documents them.
fn status(error: &RequestError) -> StatusCode {
    match error {
        RequestError::NoVm | RequestError::NoDevice(_) => StatusCode::NOT_FOUND,
        RequestError::Exists | RequestError::Duplicate(_) => StatusCode::CONFLICT,
        RequestError::State { .. } | RequestError::Stays(_) => StatusCode::METHOD_NOT_ALLOWED,
        RequestError::Config(_) => StatusCode::BAD_REQUEST,
        RequestError::Boot(_) | RequestError::Add { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        RequestError::Worker(e) => match e {
            WorkerError::NoWorker(..) | WorkerError::NoDevice(_) => StatusCode::NOT_FOUND,
            WorkerError::NoQueue { .. } => StatusCode::BAD_REQUEST,
            WorkerError::Start { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        },
        RequestError::Snapshot(e) => snapshot_status(e),
        RequestError::Migration(e) => match e {
            MigrationError::Bitmaps(_)
            | MigrationError::DataFile(_)
            | MigrationError::NoDiskDir
            | MigrationError::Refused(_) => StatusCode::BAD_REQUEST,
            MigrationError::UnderWay
            | MigrationError::None
            | MigrationError::Cancelled
            | MigrationError::Ended => StatusCode::CONFLICT,
            MigrationError::Snapshot(e) => snapshot_status(e),
            MigrationError::Connection(e) => link_status(e),
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        },
        RequestError::Disk(e) => disk_status(e),
    }
}

fn snapshot_status(error: &SnapshotRequestError) -> StatusCode {
    match error {
        SnapshotRequestError::Url(_)
        | SnapshotRequestError::Destination(_)
        | SnapshotRequestError::Device { .. }
        | SnapshotRequestError::NoParent
        | SnapshotRequestError::Elsewhere(_)
        | SnapshotRequestError::NotRestored
        | SnapshotRequestError::Problems(_) => StatusCode::BAD_REQUEST,
        SnapshotRequestError::UnderWay | SnapshotRequestError::Ended => StatusCode::CONFLICT,
        SnapshotRequestError::Snapshot(e) => match e {
            SnapshotError::Io { .. } | SnapshotError::Link { .. } => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            SnapshotError::Exists { .. } => StatusCode::CONFLICT,
            _ => StatusCode::BAD_REQUEST,
        },
        SnapshotRequestError::Disk(e) => disk_status(e),
        SnapshotRequestError::Connection(e) => link_status(e),
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn link_status(error: &LinkError) -> StatusCode {
    match error {
        LinkError::Address(_) | LinkError::Insecure => StatusCode::BAD_REQUEST,
        LinkError::Tls { .. } | LinkError::System { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn disk_status(error: &DiskError) -> StatusCode {
    match error {
        DiskError::NoDisk(_) | DiskError::NoJob(_) | DiskError::NoBitmap { .. } => {
            StatusCode::NOT_FOUND
        }
        DiskError::Busy { .. } | DiskError::BitmapExists { .. } => StatusCode::CONFLICT,
        DiskError::Invalid { .. } => StatusCode::BAD_REQUEST,
        DiskError::Image(_) | DiskError::System { .. } | DiskError::Size { .. } => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}
