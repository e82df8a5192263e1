//! The socket, its connections, and who is behind each: the workload whose address it comes from. Ports let nothing
//! through that comes from another workload's address.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::pages::About;
use super::tokens::{LONGEST, Tokens};
use crate::api::{ApiError, Objects, rest};
use crate::firstboot::Seed;
use crate::model::{Container, Kind, MicroVM, Object, kind_of};
use crate::network::METADATA;

/// The port.
const PORT: u16 = 80;
/// Between attempts to listen, as long as somebody else does.
const AGAIN: Duration = Duration::from_secs(5);
/// A request is over within this.
const PATIENCE: Duration = Duration::from_secs(10);
/// Who has which address is looked up no more often than this.
const FRESH: Duration = Duration::from_millis(500);
/// Connections at a time, and those of one workload.
const MOST: usize = 256;
const MOST_OF_ONE: usize = 16;
/// Bytes of a request's head.
const HEAD: usize = 16 << 10;

const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const SECONDS: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A workload: its kind, namespace and name.
type Key = (&'static Kind, String, String);

/// The service.
pub struct Metadata {
    objects: Objects,
    host: String,
    tokens: Mutex<Tokens>,
    known: Mutex<(Option<Instant>, HashMap<IpAddr, Key>)>,
    connections: Mutex<HashMap<IpAddr, usize>>,
}

impl Metadata {
    /// That of a host's workloads.
    pub fn new(objects: Objects, host: &str) -> Arc<Metadata> {
        Arc::new(Metadata {
            objects,
            host: host.to_owned(),
            tokens: Mutex::default(),
            known: Mutex::default(),
            connections: Mutex::default(),
        })
    }

    /// Serves for ever, as soon as nobody else has the address.
    pub async fn run(self: Arc<Metadata>) {
        let mut told = false;
        loop {
            let failed = match listen() {
                Ok(listener) => {
                    told = false;
                    self.serve(&listener).await
                }
                Err(e) => e,
            };
            if !told {
                log::warn!(
                    "the metadata service is not at {METADATA}:{PORT}, which is tried again: {failed}"
                );
                told = true;
            }
            sleep(AGAIN).await;
        }
    }

    /// Accepts until that fails.
    async fn serve(self: &Arc<Metadata>, listener: &TcpListener) -> io::Error {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) => return e,
            };
            let address = peer.ip();
            if !self.enter(address) {
                continue;
            }
            let service = self.clone();
            tokio::spawn(async move {
                // Whoever is slow, or goes away, has its reasons.
                let _ = timeout(PATIENCE, service.connection(stream, peer)).await;
                service.leave(address);
            });
        }
    }

    /// Counts one more connection; false if there are too many.
    fn enter(&self, address: IpAddr) -> bool {
        let mut connections = self.connections.lock();
        let all: usize = connections.values().sum();
        let own = connections.entry(address).or_default();
        let room = all < MOST && *own < MOST_OF_ONE;
        if room {
            *own += 1;
        }
        connections.retain(|_, count| *count > 0);
        room
    }

    fn leave(&self, address: IpAddr) {
        let mut connections = self.connections.lock();
        if let Some(count) = connections.get_mut(&address) {
            *count -= 1;
        }
        connections.retain(|_, count| *count > 0);
    }

    async fn connection(&self, stream: TcpStream, peer: SocketAddr) {
        let answer =
            |request| async move { Ok::<_, Infallible>(self.answer(request, peer.ip()).await) };
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_buf_size(HEAD)
            .keep_alive(false)
            // Plain tools say that they have said all.
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service_fn(answer));
        let _ = served.await;
    }

    async fn answer(&self, request: Request<Incoming>, from: IpAddr) -> Response<Full<Bytes>> {
        let about = match self.about(from).await {
            Ok(Some(about)) => about,
            Ok(None) => return say(StatusCode::NOT_FOUND, "no workload has this address"),
            Err(e) => {
                log::warn!("the metadata of {from} cannot be read: {e}");
                return say(StatusCode::SERVICE_UNAVAILABLE, "try again");
            }
        };
        let (path, headers) = (request.uri().path(), request.headers());
        if (request.method(), path) == (&Method::PUT, "/latest/api/token") {
            return self.token(
                &about,
                headers.get(SECONDS),
                headers.contains_key(FORWARDED),
            );
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return say(StatusCode::METHOD_NOT_ALLOWED, "GET, and PUT for a token");
        }
        let token = headers.get(TOKEN).and_then(|token| token.to_str().ok());
        let good = |token| self.tokens.lock().is_good(&about.seed.instance_id, token);
        if !token.is_some_and(good) {
            let what = "give a token in X-aws-ec2-metadata-token: PUT /latest/api/token has one";
            return say(StatusCode::UNAUTHORIZED, what);
        }
        match about.page(path) {
            Some(page) => say(StatusCode::OK, &page),
            None => say(StatusCode::NOT_FOUND, "there is nothing at this path"),
        }
    }

    /// A token, for whoever asks for one by itself and not for somebody behind it.
    fn token(
        &self,
        about: &About,
        seconds: Option<&HeaderValue>,
        forwarded: bool,
    ) -> Response<Full<Bytes>> {
        if forwarded {
            return say(
                StatusCode::FORBIDDEN,
                "tokens are given to nobody behind a proxy",
            );
        }
        let seconds = seconds.and_then(|text| text.to_str().ok()?.parse::<u64>().ok());
        let Some(seconds) = seconds.filter(|n| (1..=LONGEST).contains(n)) else {
            let what = "say in X-aws-ec2-metadata-token-ttl-seconds for how long, 1 to 21600";
            return say(StatusCode::BAD_REQUEST, what);
        };
        match self.tokens.lock().issue(&about.seed.instance_id, seconds) {
            Ok(token) => say(StatusCode::OK, &token),
            Err(_) => say(StatusCode::SERVICE_UNAVAILABLE, "try again"),
        }
    }

    /// What is told of whoever has an address; none if nobody has.
    async fn about(&self, from: IpAddr) -> Result<Option<About>, ApiError> {
        let Some((kind, namespace, name)) = self.who(from).await? else {
            return Ok(None);
        };
        let object = match self.objects.get(kind, &namespace, &name).await {
            Ok(object) => object,
            Err(ApiError::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(e),
        };
        let first = match kind == kind_of::<Container>() {
            true => rest::<Container>(&object)?.spec.first_boot,
            false => rest::<MicroVM>(&object)?.spec.first_boot,
        };
        // Somebody else may have it by now.
        if !addresses(&object).any(|address| address == from) {
            return Ok(None);
        }
        Ok(Some(About {
            seed: Seed::of(&object, &first.unwrap_or_default(), Vec::new()),
            address: from.to_string(),
            host: self.host.clone(),
        }))
    }

    async fn who(&self, from: IpAddr) -> Result<Option<Key>, ApiError> {
        {
            let known = self.known.lock();
            let found = known.1.get(&from);
            let fresh = known.0.is_some_and(|at| at.elapsed() < FRESH);
            if found.is_some() && fresh {
                return Ok(found.cloned());
            }
            if fresh {
                return Ok(None);
            }
        }
        let mut all = HashMap::new();
        let (vms, _) = self.objects.all::<MicroVM>().await?;
        let (containers, _) = self.objects.all::<Container>().await?;
        for object in vms.into_iter().chain(containers) {
            let (namespace, name) = (&object.meta.namespace, &object.meta.name);
            for address in addresses(&object) {
                all.insert(address, (object.kind, namespace.clone(), name.clone()));
            }
        }
        let found = all.get(&from).cloned();
        *self.known.lock() = (Some(Instant::now()), all);
        Ok(found)
    }
}

/// A workload's addresses, as its status has them.
fn addresses(object: &Object) -> impl Iterator<Item = IpAddr> {
    let status = object.body.get("status");
    let all = status.and_then(|status| status.get("addresses")?.as_array());
    let texts = all.into_iter().flatten().filter_map(|one| one.as_str());
    texts.filter_map(|text| text.parse().ok())
}

/// Listens at the address, also before a bridge has it. Answers go no further than one hop: not through a workload to
/// somebody behind it.
fn listen() -> io::Result<TcpListener> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_ip_freebind(&socket, true)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_ip_ttl(&socket, 1)?;
    let address: Ipv4Addr = METADATA;
    rustix::net::bind(&socket, &SocketAddr::from((address, PORT)))?;
    rustix::net::listen(&socket, 128)?;
    TcpListener::from_std(socket.into())
}

fn say(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text.to_owned()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain");
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, kind);
    response
}
