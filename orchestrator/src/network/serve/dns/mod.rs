//! The name server of a network, at its gateway's address, by UDP and TCP. It knows the names of workloads and asks
//! this host's own name servers for all others.

mod answer;
mod forward;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::answer::{Answer, answer, failure};
use super::super::{Net, Registry};

const PORT: u16 = 53;
/// Bytes of a question: more have none of those that are asked.
const QUESTION: usize = 4096;
/// Questions of a network's workloads that wait for other name servers.
const WAITING: usize = 128;
/// Connections to a network's name server, and questions of one.
const CONNECTIONS: usize = 32;
const QUESTIONS: usize = 64;
/// A connection on which nothing is asked is closed.
const IDLE: Duration = Duration::from_secs(10);

/// A network, and who may wait.
#[derive(Clone)]
struct Server {
    registry: Arc<Registry>,
    net: Net,
    waiting: Arc<Semaphore>,
}

/// Serves a network, until something fails.
pub async fn serve(registry: Arc<Registry>, net: Net) -> io::Result<()> {
    let at = SocketAddr::from((net.subnet.gateway(), PORT));
    let udp = Arc::new(UdpSocket::bind(at).await?);
    let tcp = TcpListener::bind(at).await?;
    let server = Server {
        registry,
        net,
        waiting: Arc::new(Semaphore::new(WAITING)),
    };
    tokio::select! {
        ended = server.datagrams(udp) => ended,
        ended = server.connections(tcp) => ended,
    }
}

impl Server {
    async fn datagrams(&self, socket: Arc<UdpSocket>) -> io::Result<()> {
        let mut bytes = [0; QUESTION];
        // Those who wait end with us.
        let mut asking = JoinSet::new();
        loop {
            let (n, from) = tokio::select! {
                received = socket.recv_from(&mut bytes) => match received {
                    Ok(received) => received,
                    // What was sent before was not wanted.
                    Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => continue,
                    Err(e) => return Err(e),
                },
                Some(_) = asking.join_next() => continue,
            };
            let question = bytes.get(..n).unwrap_or_default();
            match self.look(question, from.ip()) {
                Some(Ok(said)) => drop(socket.send_to(&said, from).await),
                Some(Err(failed)) => {
                    let Ok(permit) = self.waiting.clone().try_acquire_owned() else {
                        drop(socket.send_to(&failed, from).await);
                        continue;
                    };
                    let (socket, question) = (socket.clone(), question.to_vec());
                    let ours = self.gateways();
                    asking.spawn(async move {
                        let said = forward::datagram(&question, &ours).await;
                        drop(socket.send_to(&said.unwrap_or(failed), from).await);
                        drop(permit);
                    });
                }
                None => {}
            }
        }
    }

    /// What is answered: it is known here, or somebody else is to be asked, and what is said if nobody knows. None
    /// if it is no question.
    fn look(&self, question: &[u8], from: IpAddr) -> Option<Result<Vec<u8>, Vec<u8>>> {
        let asked = Message::from_vec(question).ok()?;
        match answer(&self.registry, &self.net, from, &asked) {
            Answer::Known(said) => said.to_vec().ok().map(Ok),
            Answer::Elsewhere => failure(&asked).to_vec().ok().map(Err),
            Answer::Nothing => None,
        }
    }

    /// Our own name servers, which are not asked.
    fn gateways(&self) -> Vec<IpAddr> {
        let nets = self.registry.networks.all();
        nets.iter().map(|net| net.subnet.gateway().into()).collect()
    }

    async fn connections(&self, listener: TcpListener) -> io::Result<()> {
        let mut open = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if open.len() < CONNECTIONS => {
                    let (stream, from) = match accepted {
                        Ok(accepted) => accepted,
                        Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
                        Err(e) => return Err(e),
                    };
                    let server = self.clone();
                    open.spawn(async move {
                        // Whoever leaves has no use for an answer.
                        let _ = server.connection(stream, from.ip()).await;
                    });
                }
                Some(_) = open.join_next() => {}
            }
        }
    }

    /// Answers the questions of a connection, each behind its length (RFC 1035 §4.2.2).
    async fn connection(&self, mut stream: TcpStream, from: IpAddr) -> io::Result<()> {
        for _ in 0..QUESTIONS {
            let len = usize::from(timeout(IDLE, stream.read_u16()).await??);
            if len > QUESTION {
                return Ok(());
            }
            let mut question = vec![0; len];
            timeout(IDLE, stream.read_exact(&mut question)).await??;
            let said = match self.look(&question, from) {
                Some(Ok(said)) => said,
                Some(Err(failed)) => match self.waiting.clone().try_acquire_owned() {
                    Ok(_permit) => {
                        let said = forward::stream(&question, &self.gateways()).await;
                        said.unwrap_or(failed)
                    }
                    Err(_) => failed,
                },
                None => return Ok(()),
            };
            let mut all = u16::try_from(said.len())
                .unwrap_or(0)
                .to_be_bytes()
                .to_vec();
            all.extend(said);
            timeout(IDLE, stream.write_all(&all)).await??;
        }
        Ok(())
    }
}
