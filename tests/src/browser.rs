//! Chromium without a window, driven as W3C's WebDriver says by chromedriver.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::eventually;

/// An answer comes within this.
const PATIENCE: Duration = Duration::from_secs(90);
/// Keys, as WebDriver names them (§17.4.2).
pub const TAB: &str = "\u{e004}";
/// The same.
pub const ENTER: &str = "\u{e007}";

/// A browser with one page. It ends when this is dropped.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    /// What it keeps.
    _profile: TempDir,
}

impl Browser {
    /// One that has never been anywhere.
    pub fn start() -> Browser {
        let profile = TempDir::new().expect("a folder");
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver, of Debian's chromium-driver");
        let mut lines = BufReader::new(driver.stdout.take().expect("a pipe")).lines();
        let port = loop {
            let line = lines.next().expect("it names its port").expect("text");
            // What it was asked for, which is none, it says before.
            let word = line.split("successfully on port ").nth(1);
            if let Some(Ok(port)) = word.map(|word| word.trim_end_matches('.').parse()) {
                break port;
            }
        };
        // It may say more, and nobody needs that.
        std::thread::spawn(move || lines.for_each(drop));
        let mut browser = Browser {
            driver,
            port,
            session: String::new(),
            _profile: profile,
        };
        let data = format!("--user-data-dir={}", browser._profile.path().display());
        let capabilities = json!({"alwaysMatch": {
            "acceptInsecureCerts": true,
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"args": [
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--disable-dev-shm-usage", "--window-size=1280,900", data,
            ]},
        }});
        let made = browser.ask("POST", "/session", &json!({"capabilities": capabilities}));
        browser.session = made["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    /// One request, and its answer's value, or an error's.
    fn answer(&self, method: &str, path: &str, body: &Value) -> std::io::Result<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let body = match method {
            "POST" => body.to_string(),
            _ => String::new(),
        };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost:{}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            self.port,
            body.len()
        )?;
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if line.trim().is_empty() {
                break;
            }
            let line = line.to_ascii_lowercase();
            if let Some(n) = line.strip_prefix("content-length:") {
                length = n.trim().parse().map_err(std::io::Error::other)?;
            }
        }
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes)?;
        let mut value: Value = serde_json::from_slice(&bytes)?;
        Ok(value["value"].take())
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let value = self.answer(method, path, body);
        let value = value.unwrap_or_else(|e| panic!("{method} {path}: {e}"));
        assert!(value["error"].is_null(), "{method} {path}: {value}");
        value
    }

    fn tell(&self, what: &str, body: &Value) -> Value {
        self.ask("POST", &format!("/session/{}/{what}", self.session), body)
    }

    /// Goes to an address.
    pub fn go(&self, url: &str) {
        self.tell("url", &json!({"url": url}));
    }

    /// What a script returns.
    pub fn script(&self, script: &str) -> Value {
        self.tell("execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until a script returns something true.
    pub fn until(&self, what: &str, limit: Duration, script: &str) {
        eventually(what, limit, || {
            (self.script(script) == Value::Bool(true)).then_some(())
        });
    }

    /// Presses keys, one after the other.
    pub fn keys(&self, keys: &str) {
        let actions = keys.chars().flat_map(|key| {
            ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key.to_string()}))
        });
        let actions: Vec<Value> = actions.collect();
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.tell("actions", &json!({"actions": [keyboard]}));
    }

    /// Makes the page so many pixels large.
    pub fn resize(&self, width: u32, height: u32, phone: bool) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone});
        let call = json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": size});
        self.tell("goog/cdp/execute", &call);
    }

    /// What the page and the browser complained about.
    pub fn complaints(&self) -> Vec<String> {
        let lines = self.tell("se/log", &json!({"type": "browser"}));
        let lines = lines.as_array().cloned().unwrap_or_default();
        let texts = lines
            .iter()
            .map(|line| line["message"].as_str().unwrap_or_default());
        texts.map(str::to_owned).collect()
    }

    /// Writes a picture of the page.
    pub fn picture(&self, path: &Path) {
        let path_of = format!("/session/{}/screenshot", self.session);
        let picture = self.ask("GET", &path_of, &Value::Null);
        let bytes = decoded(picture.as_str().expect("a picture"));
        std::fs::write(path, bytes).expect("written");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have broken down already.
        let _ = self.answer(
            "DELETE",
            &format!("/session/{}", self.session),
            &Value::Null,
        );
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// The bytes of a text in base 64 (RFC 4648 §4).
fn decoded(text: &str) -> Vec<u8> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for letter in text.bytes() {
        let Some(value) = LETTERS.iter().position(|other| *other == letter) else {
            continue;
        };
        (bits, count) = ((bits << 6) | value as u32, count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::decoded;

    #[test]
    fn base_64_is_read() {
        assert_eq!(decoded("U2tlcnJ5IQ=="), b"Skerry!");
        assert_eq!(decoded("AP8Q"), [0, 255, 16]);
    }
}
