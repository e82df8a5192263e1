//! A registry of Debian's package docker-registry, and images that are pushed to it by plain HTTP.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::eventually;
use crate::token_server::{ISSUER, SERVICE, TokenServer};

/// Who may ask it, if it asks who it is: `tester` with the password `secret`.
const USERS: &str = "tester:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
/// The same for HTTP.
const LOGIN: &str = "Basic dGVzdGVyOnNlY3JldA==";
const LIMIT: Duration = Duration::from_secs(30);
/// Ports that are tried: somebody else may take one between our look and its start.
const TRIES: u32 = 5;

/// A registry that wants a login.
pub struct Registry {
    folder: TempDir,
    program: Child,
    /// Who gives tokens for it.
    tokens: Option<TokenServer>,
    /// Where it is.
    pub address: String,
}

impl Default for Registry {
    fn default() -> Registry {
        Registry::new()
    }
}

impl Registry {
    /// Starts one that takes logins itself.
    pub fn new() -> Registry {
        let folder = TempDir::new().expect("a folder");
        let users = folder.path().join("users");
        fs::write(&users, USERS).expect("written");
        let auth = format!("htpasswd: {{realm: tests, path: {}}}", users.display());
        Registry::start(folder, &auth, None)
    }

    /// Starts one that sends its users to a server for tokens.
    pub fn with_tokens(tokens: &TokenServer) -> Registry {
        let folder = TempDir::new().expect("a folder");
        let trusted = folder.path().join("trusted.pem");
        fs::write(&trusted, tokens.certificate()).expect("written");
        let auth = format!(
            "token: {{realm: '{}', service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: {}}}",
            tokens.realm,
            trusted.display()
        );
        Registry::start(folder, &auth, Some(tokens.clone()))
    }

    fn start(folder: TempDir, auth: &str, tokens: Option<TokenServer>) -> Registry {
        let path = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "version: 0.1\n\
             log: {{level: error}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n\
             auth: {{{auth}}}\n",
            path("data"),
        );
        fs::write(folder.path().join("config.yml"), config).expect("written");
        for _ in 0..TRIES {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = listener.local_addr().expect("an address").to_string();
            drop(listener);
            let mut program = Command::new("docker-registry")
                .args(["serve", &path("config.yml")])
                .env("REGISTRY_HTTP_ADDR", &address)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("docker-registry, Debian's package of that name");
            let up = eventually("the registry answers or ends", LIMIT, || {
                match (TcpStream::connect(&address), program.try_wait()) {
                    (_, Ok(Some(_))) => Some(false),
                    (Ok(_), _) => Some(true),
                    _ => None,
                }
            });
            if up {
                return Registry {
                    folder,
                    program,
                    tokens,
                    address,
                };
            }
        }
        panic!("no registry within {TRIES} attempts");
    }

    /// Pushes the image of a layout as `name`:`tag`.
    pub fn push(&self, layout: &Path, name: &str, tag: &str) {
        let login = match &self.tokens {
            Some(tokens) => format!("Bearer {}", tokens.token(name, &["pull", "push"])),
            None => LOGIN.to_owned(),
        };
        let ask = |verb: &str, path: &str, fields: &str, body: &[u8]| {
            let fields = format!("Authorization: {login}\r\n{fields}");
            self.ask(verb, path, &fields, body)
        };
        let blob = |digest: &str| {
            let path = layout
                .join("blobs/sha256")
                .join(digest.trim_start_matches("sha256:"));
            fs::read(path).expect("a blob")
        };
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let index = fs::read(layout.join("index.json")).expect("an index");
        let index: Value = serde_json::from_slice(&index).expect("JSON");
        let manifest = blob(&text(&index["manifests"][0]["digest"]));
        let parsed: Value = serde_json::from_slice(&manifest).expect("JSON");
        let layers = parsed["layers"].as_array().expect("layers").iter();
        for one in layers.chain([&parsed["config"]]) {
            let digest = text(&one["digest"]);
            let begun = ask("POST", &format!("/v2/{name}/blobs/uploads/"), "", b"");
            let location = begun.lines().find_map(|line| {
                let (field, value) = line.split_once(": ")?;
                field
                    .eq_ignore_ascii_case("location")
                    .then(|| value.trim().to_owned())
            });
            let location = location.expect("a place to upload to");
            let place = location
                .split_once(&self.address)
                .map_or(&*location, |(_, path)| path);
            let mark = if place.contains('?') { '&' } else { '?' };
            let place = format!("{place}{mark}digest={digest}");
            let kind = "Content-Type: application/octet-stream\r\n";
            let said = ask("PUT", &place, kind, &blob(&digest));
            assert!(said.starts_with("HTTP/1.1 201"), "{said}");
        }
        let kind = format!("Content-Type: {}\r\n", text(&parsed["mediaType"]));
        let place = format!("/v2/{name}/manifests/{tag}");
        let said = ask("PUT", &place, &kind, &manifest);
        assert!(said.starts_with("HTTP/1.1 201"), "{said}");
    }

    /// The file of a blob of its.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let digits = digest.trim_start_matches("sha256:");
        let folder = "data/docker/registry/v2/blobs/sha256";
        self.folder
            .path()
            .join(folder)
            .join(&digits[..2])
            .join(digits)
            .join("data")
    }

    /// The head of its answer.
    fn ask(&self, verb: &str, path: &str, fields: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        let head = format!(
            "{verb} {path} HTTP/1.1\r\nHost: {}\r\n{fields}Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("it reads");
        stream.write_all(body).expect("it reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("it answers");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may be part of a failure, and must not be another one.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// Serves a file to whoever asks by HTTP, breaking off each answer after `most` bytes. Ends with the process.
pub fn served(bytes: Vec<u8>, most: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut buffer) {
                    Ok(n) if n > 0 => head.extend_from_slice(&buffer[..n]),
                    _ => break,
                }
            }
            let head = String::from_utf8_lossy(&head).to_lowercase();
            let from = head.split("range: bytes=").nth(1);
            let from = from.and_then(|rest| rest.split('-').next()?.parse::<usize>().ok());
            let rest = &bytes[from.unwrap_or(0).min(bytes.len())..];
            let status = if from.is_some() {
                "206 Partial Content"
            } else {
                "200 OK"
            };
            let length = rest.len();
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(&rest[..length.min(most)]);
        }
    });
    format!("http://{address}/image")
}
