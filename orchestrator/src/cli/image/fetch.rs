//! Getting things by HTTP, with another attempt where the last one broke off.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use skerry_images::chain::live::Progress;
use ureq::http::Response;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

/// How long a server may take to be connected to, and to answer.
const CONNECT: Duration = Duration::from_secs(15);
const ANSWER: Duration = Duration::from_secs(60);
/// How long one request's body may take: what comes after that is asked for anew.
const BODY: Duration = Duration::from_secs(600);
/// Attempts in a row that bring nothing.
const ATTEMPTS: u32 = 3;
/// Bytes of the longest document.
const DOCUMENT: u64 = 4 << 20;

/// Why something cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// There is no answer.
    #[error("{url} does not answer")]
    Silent {
        /// What was asked for.
        url: String,
        /// Why not.
        source: Box<ureq::Error>,
    },
    /// The answer is no.
    #[error("{url} answers {status}{hint}")]
    Refused {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
        /// What to do.
        hint: &'static str,
    },
    /// The answer breaks off, again and again.
    #[error("{url} breaks off after {got} bytes; do it again to go on from there")]
    Broken {
        /// What was asked for.
        url: String,
        /// What came.
        got: u64,
        /// How.
        source: std::io::Error,
    },
    /// The answer is not what it should be.
    #[error("{url} gives {what}")]
    Odd {
        /// What was asked for.
        url: String,
        /// What is odd.
        what: String,
    },
    /// It cannot be written.
    #[error("cannot write {path}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The user asked for an end.
    #[error("cancelled")]
    Cancelled,
}

/// A client.
pub struct Fetcher {
    agent: Agent,
}

/// A header that is sent.
pub type Header = (&'static str, String);

impl Fetcher {
    /// A new one. Certificates are judged by what this system trusts.
    pub fn new() -> Fetcher {
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER))
            .timeout_recv_body(Some(BODY))
            .user_agent("skerry")
            .build();
        Fetcher {
            agent: Agent::new_with_config(config),
        }
    }

    /// Asks, whatever the answer is.
    pub fn ask(&self, url: &str, headers: &[Header]) -> Result<Response<Body>, FetchError> {
        let mut request = self.agent.get(url);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        request.call().map_err(|e| FetchError::Silent {
            url: url.to_owned(),
            source: Box::new(e),
        })
    }

    /// A document of bounded length, of an answer that is good.
    pub fn document(url: &str, answer: Response<Body>) -> Result<Vec<u8>, FetchError> {
        let mut answer = good(url, answer)?;
        let mut bytes = Vec::new();
        let read = answer.body_mut().as_reader().take(DOCUMENT + 1);
        let mut read = read;
        read.read_to_end(&mut bytes)
            .map_err(|source| FetchError::Broken {
                url: url.to_owned(),
                got: 0,
                source,
            })?;
        match bytes.len() as u64 > DOCUMENT {
            true => Err(FetchError::Odd {
                url: url.to_owned(),
                what: format!("more than {DOCUMENT} bytes where a document should be"),
            }),
            false => Ok(bytes),
        }
    }

    /// Gets a file of `expected` bytes, if that is known, from where it stands at `path`.
    pub fn download(
        &self,
        url: &str,
        headers: &[Header],
        path: &Path,
        expected: Option<u64>,
        progress: &Progress,
    ) -> Result<(), FetchError> {
        let failed = |source| FetchError::Write {
            path: path.to_owned(),
            source,
        };
        let mut options = File::options();
        let mut file = options
            .create(true)
            .append(true)
            .open(path)
            .map_err(failed)?;
        let mut have = file.metadata().map_err(failed)?.len();
        progress.step(have).map_err(|_| FetchError::Cancelled)?;
        let mut failures = 0;
        loop {
            if expected == Some(have) {
                return file.sync_all().map_err(failed);
            }
            let before = have;
            let mut all = headers.to_vec();
            if have > 0 {
                all.push(("Range", format!("bytes={have}-")));
            }
            let answer = self.ask(url, &all)?;
            let status = answer.status().as_u16();
            // It was whole already, and its length was not known.
            if status == 416 && have > 0 && expected.is_none() {
                return file.sync_all().map_err(failed);
            }
            if status == 200 && have > 0 {
                // It does not know ranges: from the beginning.
                file.set_len(0).map_err(failed)?;
                have = 0;
            }
            let answer = good(url, answer)?;
            let length = answer.headers().get("content-length");
            let length = length.and_then(|text| text.to_str().ok()?.parse::<u64>().ok());
            if expected.is_none() && have == 0 {
                progress.expect(length.unwrap_or(0));
            }
            let end = expected.or(length.map(|length| have + length));
            let mut body = answer.into_body();
            match copy(
                &mut body.as_reader(),
                &mut file,
                path,
                &mut have,
                end,
                progress,
            )? {
                None if end.is_none_or(|end| have == end) => {
                    return file.sync_all().map_err(failed);
                }
                ended => {
                    failures = if have > before { 0 } else { failures + 1 };
                    if failures >= ATTEMPTS {
                        return Err(FetchError::Broken {
                            url: url.to_owned(),
                            got: have,
                            source: ended
                                .unwrap_or_else(|| std::io::ErrorKind::UnexpectedEof.into()),
                        });
                    }
                }
            }
        }
    }
}

/// Copies a body to a file; how it broke off, if it did.
fn copy(
    body: &mut impl Read,
    file: &mut File,
    path: &Path,
    have: &mut u64,
    end: Option<u64>,
    progress: &Progress,
) -> Result<Option<std::io::Error>, FetchError> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = match body.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(n) => n,
            Err(e) => return Ok(Some(e)),
        };
        if end.is_some_and(|end| *have + n as u64 > end) {
            return Err(FetchError::Odd {
                url: path.display().to_string(),
                what: "more bytes than were announced".to_owned(),
            });
        }
        let written = file.write_all(&buffer[..n]);
        written.map_err(|source| FetchError::Write {
            path: path.to_owned(),
            source,
        })?;
        *have += n as u64;
        progress.step(n as u64).map_err(|_| FetchError::Cancelled)?;
    }
}

/// Refuses an answer that is not good.
fn good(url: &str, answer: Response<Body>) -> Result<Response<Body>, FetchError> {
    let status = answer.status();
    match status.is_success() {
        true => Ok(answer),
        false => Err(FetchError::Refused {
            url: url.to_owned(),
            status: status.as_u16(),
            hint: match status.as_u16() {
                401 | 403 => {
                    ": give --user and --password-stdin, or log in with a tool that writes ~/.docker/config.json"
                }
                404 => ": there is no such thing there",
                429 => ": too many requests; wait a while",
                _ => "",
            },
        }),
    }
}
