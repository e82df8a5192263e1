//! Where the other side is.

use std::fmt;
use std::path::PathBuf;

use crate::LinkError;

/// Where the other side is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// A host and a port.
    Tcp(String),
}

impl Address {
    /// Reads `unix:PATH` or `tcp:HOST:PORT`.
    pub fn parse(url: &str) -> Result<Address, LinkError> {
        let bad = || LinkError::Address(url.to_owned());
        match url.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Address::Unix(path.into())),
            Some(("tcp", at)) => {
                let at = at.trim_start_matches("//");
                let port = at
                    .rsplit_once(':')
                    .and_then(|(_, port)| port.parse::<u16>().ok());
                port.map(|_| Address::Tcp(at.to_owned())).ok_or_else(bad)
            }
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(at) => write!(f, "tcp:{at}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_said_whole() {
        assert_eq!(
            Address::parse("unix:/run/m.sock").unwrap(),
            Address::Unix("/run/m.sock".into())
        );
        for url in ["tcp:host:7000", "tcp://host:7000", "tcp:[::1]:7000"] {
            assert!(matches!(Address::parse(url), Ok(Address::Tcp(_))), "{url}");
        }
        for url in [
            "",
            "unix:",
            "tcp:",
            "tcp:host",
            "tcp:host:port",
            "tcp:host:70000",
            "http://h:1",
            "/a",
        ] {
            assert!(Address::parse(url).is_err(), "{url}");
        }
    }
}
