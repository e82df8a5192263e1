//! `skerry-guest [--listen vsock:PORT|unix:PATH]`: runs commands in a guest for its host.
//!
//! Every connection asks for one command (`skerry_exec` has what is said) and has its streams until it ends.
//! Whoever can connect may do all that this program may: over vsock that is the host alone, which may do so
//! anyway. It listens where only root can, so nobody else in the guest answers in its place.

mod command;
mod socket;

use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use skerry_exec::wire::{receive_json, send_json};
use skerry_exec::{GUEST_PORT, Kind, Reply, Request};

use socket::{Address, Listener};

/// Connections at a time; more are refused.
const CONNECTIONS: usize = 32;
/// How long somebody may take to say what they want, or to hear the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long somebody may take to say what they want if they cannot have it: others wait meanwhile.
const BRIEF: Duration = Duration::from_secs(1);
/// After a connection that could not be accepted.
const REST: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let address = match words.as_slice() {
        [] => Ok(Address::Vsock(GUEST_PORT)),
        [flag, address] if flag == "--listen" => address.parse(),
        _ => Err("usage: skerry-guest [--listen vsock:PORT|unix:PATH]".to_owned()),
    };
    let listener = address.and_then(|address| {
        Listener::bind(&address).map_err(|e| format!("cannot listen on {address}: {e}"))
    });
    match listener {
        Ok(listener) => serve(&listener),
        Err(why) => {
            eprintln!("skerry-guest: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Answers whoever connects, for ever.
fn serve(listener: &Listener) -> ! {
    let count = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok(mut connection) = listener.accept() else {
            // Out of descriptors, perhaps: others have to end first.
            std::thread::sleep(REST);
            continue;
        };
        let talk = Talk::begin(&count);
        if count.load(Ordering::Relaxed) > CONNECTIONS {
            let many = format!("{CONNECTIONS} commands run in it already: wait for one to end");
            let _ = connection.set_write_timeout(Some(PATIENCE));
            // Who is still saying what they want would not hear why they cannot have it.
            let _ = connection.set_read_timeout(Some(BRIEF));
            let _: Result<Request, _> = receive_json(&mut connection, Kind::Request);
            let _ = send_json(&mut connection, Kind::Answer, &Reply::Refused(many));
            continue;
        }
        let thread = std::thread::Builder::new().name("command".into());
        // Without a thread the connection is closed, which the other side sees.
        let _ = thread.spawn(move || {
            let _talk = talk;
            // Whoever asked has gone, or said nothing that can be answered.
            let _ = converse(connection);
        });
    }
}

/// One that counts as long as it lives.
struct Talk(Arc<AtomicUsize>);

impl Talk {
    fn begin(count: &Arc<AtomicUsize>) -> Talk {
        count.fetch_add(1, Ordering::Relaxed);
        Talk(count.clone())
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn converse(mut connection: UnixStream) -> std::io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let Request::Exec(spec) = receive_json(&mut connection, Kind::Request)?;
    match command::start(&spec) {
        Ok((command, streams)) => {
            send_json(&mut connection, Kind::Answer, &Reply::Done)?;
            let kill = command.killer();
            skerry_exec::serve(connection.into(), streams, kill, || command.wait())
        }
        Err(why) => send_json(&mut connection, Kind::Answer, &Reply::Refused(why)),
    }
}
