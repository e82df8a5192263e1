//! Tests of asking a guest's agent, with monitors and agents that do as they like.

use tokio::net::UnixListener;

use super::*;

/// What comes of asking where `said` is answered to whatever is asked; nothing at all is a closed connection.
async fn asked(said: &'static [&'static [u8]]) -> Result<UnixStream, RuntimeError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    let monitor = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        for part in said {
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await.unwrap();
            stream.write_all(part).await.unwrap();
            if part.is_empty() {
                return None;
            }
        }
        Some(stream)
    };
    let spec = ExecSpec {
        args: vec!["true".to_owned()],
        ..ExecSpec::default()
    };
    let (_stays, found) = tokio::join!(monitor, exec(&path, spec));
    found
}

fn words(error: Result<UnixStream, RuntimeError>) -> String {
    let error = error.unwrap_err();
    let source = std::error::Error::source(&error).map(ToString::to_string);
    format!("{error} {}", source.unwrap_or_default())
}

#[tokio::test]
async fn an_agent_that_agrees_is_connected_to() {
    let mut stream = asked(&[b"OK 1073741824\n", b"a\0\0\0\x06\"done\"1\0\0\0\x02hi"])
        .await
        .unwrap();
    let mut rest = [0; 7];
    stream.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"1\0\0\0\x02hi");
}

#[tokio::test]
async fn what_stands_in_the_way_is_said() {
    let nobody = asked(&[b""]).await;
    let long = asked(&[b"OK 1\n", b"a\xff\xff\xff\xff"]).await;
    let other = asked(&[b"OK 1\n", b"SSH-2.0-OpenSSH\r\n"]).await;
    let refused = asked(&[b"OK 1\n", b"a\0\0\0\x17{\"refused\":\"no\\u001b7\"}"]).await;
    assert!(words(nobody).contains("no agent listens in its guest: run `skerry-guest`"));
    assert!(words(long).contains("too long"));
    assert!(words(other).contains("unknown kind"));
    assert_eq!(words(refused).trim(), "no 7");
    let missing = exec(Path::new("/nowhere/vsock"), ExecSpec::default()).await;
    assert!(words(missing).contains("set `vsock: true`"));
}
