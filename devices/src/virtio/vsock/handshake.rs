//! The line with which a host program asks for a port of the guest: `CONNECT <port>\n`, as
//! clients of Firecracker and Cloud Hypervisor send it. The answer is `OK <host port>\n`.

/// The longest line taken, with its newline.
pub(super) const MAX_LINE: usize = 32;

/// What has come in of the line.
#[derive(Default)]
pub(super) struct Line {
    bytes: [u8; MAX_LINE],
    len: usize,
}

/// What came in is no such line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadLine;

impl Line {
    /// How many more bytes may belong to the line.
    pub fn room(&self) -> usize {
        MAX_LINE - self.len
    }

    /// Adds what came in, at most up to the newline; the port once the line is complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<u32>, BadLine> {
        let end = self.len + bytes.len();
        let place = self.bytes.get_mut(self.len..end).ok_or(BadLine)?;
        place.copy_from_slice(bytes);
        self.len = end;
        match self.bytes[..end].strip_suffix(b"\n") {
            Some(line) => parse(line).map(Some).ok_or(BadLine),
            None if end == MAX_LINE => Err(BadLine),
            None => Ok(None),
        }
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let verb = words.next()?;
    let port = words.next()?.parse().ok()?;
    (verb.eq_ignore_ascii_case("connect") && words.next().is_none()).then_some(port)
}

/// The answer to a client whose connection the guest accepted.
pub(super) fn accepted(host_port: u32) -> String {
    format!("OK {host_port}\n")
}

#[cfg(test)]
#[path = "handshake_test.rs"]
mod tests;
