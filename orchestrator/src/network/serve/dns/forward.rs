//! Questions that others are asked: this host's own name servers, in their order, each for a bounded time. What they
//! say is passed on as it is.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Where this host says who they are (resolv.conf(5)).
const RESOLVERS: &str = "/etc/resolv.conf";
/// Bytes of that file that are looked at, and name servers that are asked.
const FILE: u64 = 64 << 10;
const SERVERS: usize = 3;
/// How long one may take, and how often all are asked.
const PATIENCE: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;
const PORT: u16 = 53;
/// Bytes of an answer by UDP.
const ANSWER: usize = 4096;
/// Bytes of a message's head.
const HEAD: usize = 12;

/// Asks by UDP; none if nobody answers.
pub async fn datagram(question: &[u8], but: &[IpAddr]) -> Option<Vec<u8>> {
    let servers = servers(but).await;
    ask_by_datagram(question, &servers, PATIENCE).await
}

async fn ask_by_datagram(
    question: &[u8],
    servers: &[SocketAddr],
    patience: Duration,
) -> Option<Vec<u8>> {
    for _ in 0..ROUNDS {
        for server in servers {
            let asked = timeout(patience, exchange(question, *server)).await;
            match asked {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(e)) => log::debug!("name server {server}: {e}"),
                Err(_) => log::debug!("name server {server} does not answer"),
            }
        }
    }
    None
}

/// Asks by TCP.
pub async fn stream(question: &[u8], but: &[IpAddr]) -> Option<Vec<u8>> {
    for server in servers(but).await {
        let asked = timeout(2 * PATIENCE, converse(question, server)).await;
        if let Ok(Ok(answer)) = asked {
            return Some(answer);
        }
    }
    None
}

/// Asks one under a number that nobody can guess, from a port that nobody can guess, and waits for its answer.
async fn exchange(question: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => ([0; 4], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let (own, sent) = renumbered(question)?;
    socket.send(&sent).await?;
    let mut bytes = [0; ANSWER];
    loop {
        let n = socket.recv(&mut bytes).await?;
        let answer = bytes.get(..n).unwrap_or_default();
        if answers(answer, &sent) {
            return Ok(named(answer, own));
        }
    }
}

async fn converse(question: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let (own, sent) = renumbered(question)?;
    let mut all = u16::try_from(sent.len())
        .unwrap_or(0)
        .to_be_bytes()
        .to_vec();
    all.extend(&sent);
    stream.write_all(&all).await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; len.into()];
    stream.read_exact(&mut answer).await?;
    match answers(&answer, &sent) {
        true => Ok(named(&answer, own)),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The number of a question, and the question under another.
fn renumbered(question: &[u8]) -> io::Result<([u8; 2], Vec<u8>)> {
    let own = *question.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
    let mut number = [0; 2];
    rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty())?;
    let mut sent = question.to_vec();
    sent.splice(..2, number);
    Ok((own, sent))
}

/// An answer under the number of whoever asked first.
fn named(answer: &[u8], own: [u8; 2]) -> Vec<u8> {
    let mut answer = answer.to_vec();
    answer.splice(..2, own);
    answer
}

/// Whether it is an answer to what was sent: under its number, and about what was asked, if it says that.
fn answers(answer: &[u8], sent: &[u8]) -> bool {
    let (Some(head), Some(asked)) = (answer.get(..HEAD), sent.get(..HEAD)) else {
        return false;
    };
    let is_answer = head[2] & 0x80 != 0;
    let questions = u16::from_be_bytes([head[4], head[5]]);
    let about = match questions {
        0 => true,
        _ => {
            let end = question_end(sent).unwrap_or(sent.len());
            let (one, other) = (answer.get(HEAD..end), sent.get(HEAD..end));
            one.zip(other)
                .is_some_and(|(one, other)| one.eq_ignore_ascii_case(other))
        }
    };
    head[..2] == asked[..2] && is_answer && about
}

/// Where the first question ends: labels, each behind its length, then a type and a class.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEAD;
    loop {
        match *message.get(at)? {
            0 => return Some(at + 5),
            len => at += usize::from(len) + 1,
        }
    }
}

/// This host's name servers, as they are now, but those that are ours.
async fn servers(but: &[IpAddr]) -> Vec<SocketAddr> {
    let mut text = String::new();
    if let Ok(file) = tokio::fs::File::open(RESOLVERS).await {
        // What is no text has no servers.
        let _ = file.take(FILE).read_to_string(&mut text).await;
    }
    let all = read(&text).into_iter();
    all.filter(|address| !but.contains(address))
        .take(SERVERS)
        .map(|address| SocketAddr::from((address, PORT)))
        .collect()
}

/// The name servers that a file names.
fn read(text: &str) -> Vec<IpAddr> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then(|| words.next()?.parse().ok())?
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A question for `a.` of type A.
    const QUESTION: [u8; 19] = [7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1];

    #[test]
    fn name_servers_are_read_from_the_hosts_file() {
        let text = "# nameserver 1.1.1.1\nsearch a\nnameserver 10.0.0.1\nnameserver x\n nameserver ::1 # b\n";
        let all: Vec<IpAddr> = ["10.0.0.1", "::1"].map(|a| a.parse().expect("one")).into();
        assert_eq!(read(text), all);
    }

    #[test]
    fn an_answer_has_the_number_and_the_question() {
        let mut answer = QUESTION.to_vec();
        answer[2] |= 0x80;
        answer.extend([1, 2, 3]);
        assert!(answers(&answer, &QUESTION));
        // Whoever asks may write letters as it likes.
        answer[13] = b'A';
        assert!(answers(&answer, &QUESTION));
        for (at, byte) in [(0, 8), (2, 1), (13, b'b'), (16, 28)] {
            let mut other = answer.clone();
            other[at] = byte;
            assert!(!answers(&other, &QUESTION), "{at}");
        }
        assert!(!answers(&answer[..11], &QUESTION));
        assert!(!answers(&answer[..14], &QUESTION));
    }

    #[tokio::test]
    async fn the_next_is_asked_where_one_is_silent_and_answers_keep_their_number() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let server = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let at = [&silent, &server].map(|socket| socket.local_addr().expect("an address"));
        let serving = tokio::spawn(async move {
            let mut bytes = [0; 64];
            let (n, from) = server.recv_from(&mut bytes).await.expect("a question");
            bytes[2] |= 0x80;
            // Somebody guesses first.
            let mut guess = bytes;
            guess[0] ^= 1;
            for answer in [guess, bytes] {
                server.send_to(&answer[..n], from).await.expect("an answer");
            }
        });
        let answer = ask_by_datagram(&QUESTION, &at, Duration::from_secs(5)).await;
        let answer = answer.expect("an answer");
        assert_eq!(
            (answer[..2].to_vec(), answer.len()),
            (vec![7, 9], QUESTION.len())
        );
        serving.await.expect("it ends");
    }
}
