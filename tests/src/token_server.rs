//! A mock of the servers that give tokens to users of registries, as the registry's token authentication specification
//! has them: JSON web tokens (RFC 7519) for who has the right login. Others get one that allows nothing, as nobody does.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair, SigningKey};
use serde_json::{Value, json};

/// What it calls itself.
pub const ISSUER: &str = "tests";
/// Whom its tokens are for.
pub const SERVICE: &str = "the registry of tests";
/// The login that it knows: `tester` with the password `secret`.
const LOGIN: &str = "Basic dGVzdGVyOnNlY3JldA==";
/// Seconds that a token is good for.
const GOOD: u64 = 300;

/// One that listens as long as the process runs.
#[derive(Clone)]
pub struct TokenServer {
    signer: Arc<Signer>,
    /// Where it gives tokens.
    pub realm: String,
}

struct Signer {
    key: KeyPair,
    certificate: rcgen::Certificate,
    given: AtomicU64,
}

impl Default for TokenServer {
    fn default() -> TokenServer {
        TokenServer::new()
    }
}

impl TokenServer {
    /// Starts one.
    pub fn new() -> TokenServer {
        let key = KeyPair::generate().expect("a key");
        let parameters = CertificateParams::new(Vec::new()).expect("no names are good names");
        let certificate = parameters.self_signed(&key).expect("a certificate");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = TokenServer {
            signer: Arc::new(Signer {
                key,
                certificate,
                given: AtomicU64::new(0),
            }),
            realm: format!("http://{address}/token"),
        };
        let listens = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                listens.answer(stream);
            }
        });
        server
    }

    /// The certificate of its key, as PEM: what a registry must trust.
    pub fn certificate(&self) -> String {
        self.signer.certificate.pem()
    }

    /// Tokens that were given to who had the right login.
    pub fn given(&self) -> u64 {
        self.signer.given.load(Ordering::Relaxed)
    }

    /// A token that allows some actions on a repository; on none, if its name is empty.
    pub fn token(&self, repository: &str, actions: &[&str]) -> String {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = since.expect("it is after 1970").as_secs();
        let access = match repository {
            "" => json!([]),
            name => json!([{"type": "repository", "name": name, "actions": actions}]),
        };
        let head = json!({
            "typ": "JWT",
            "alg": "ES256",
            "x5c": [STANDARD.encode(self.signer.certificate.der())],
        });
        let claims = json!({
            "iss": ISSUER,
            "sub": "tester",
            "aud": SERVICE,
            "iat": now,
            "nbf": now - 60,
            "exp": now + GOOD,
            "jti": now.to_string(),
            "access": access,
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&head), part(&claims));
        let signature = self.signer.key.sign(signed.as_bytes()).expect("signed");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(plain(&signature)))
    }

    fn answer(&self, mut stream: TcpStream) {
        let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
        let request = lines.next().unwrap_or_default();
        let fields: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        let login = fields.iter().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("authorization").then_some(value)
        });
        let scope = request.split(['?', '&', ' ']);
        let scope = scope.filter_map(|part| part.strip_prefix("scope=repository:"));
        let repository = scope.filter_map(|part| part.rsplit_once(':')).next();
        let (status, body) = match (login, repository) {
            (Some(LOGIN), Some((name, "pull"))) => {
                self.signer.given.fetch_add(1, Ordering::Relaxed);
                ("200 OK", json!({"token": self.token(name, &["pull"])}))
            }
            (None, _) => ("200 OK", json!({"token": self.token("", &[])})),
            _ => ("401 Unauthorized", json!({})),
        };
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        // Who asked may have gone.
        let _ = stream.write_all(format!("{head}{body}").as_bytes());
    }
}

/// The two numbers of a signature by P-256 (ASN.1, DER) as JSON web tokens have them: 32 bytes each (RFC 7518, 3.4).
fn plain(signature: &[u8]) -> Vec<u8> {
    let mut numbers = Vec::new();
    // A sequence of less than 128 bytes; in it two integers, with a zero before those whose first bit is set.
    let mut rest = &signature[2..];
    while let [2, len, after @ ..] = rest {
        let (number, next) = after.split_at(usize::from(*len));
        let first = number.iter().position(|byte| *byte != 0);
        let digits = &number[first.unwrap_or(number.len())..];
        numbers.extend(vec![0; 32 - digits.len()]);
        numbers.extend_from_slice(digits);
        rest = next;
    }
    numbers
}
