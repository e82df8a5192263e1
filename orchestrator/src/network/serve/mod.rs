//! What workloads are served on their bridges: addresses (DHCP), names (DNS), and, where there is IPv6, what a router
//! says of itself.

mod advert;
mod dhcp;
mod dns;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use super::{Net, Registry};

/// Between looks whether a bridge is another one, and between attempts of a server that could not be.
const LOOK: Duration = Duration::from_secs(1);

/// The servers of a network. They end with it.
struct Served {
    net: Net,
    /// The bridge that they are on: one that was made anew has another number.
    index: u32,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves all networks, for ever.
pub async fn serve(registry: Arc<Registry>) {
    let mut changes = registry.changes();
    let mut served: HashMap<String, Served> = HashMap::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let nets = registry.networks.all();
        served.retain(|id, _| nets.iter().any(|net| net.id == *id));
        for net in nets {
            let Some(index) = index(&net.bridge) else {
                served.remove(&net.id);
                continue;
            };
            let same = |served: &Served| served.net == net && served.index == index;
            if !served.get(&net.id).is_some_and(same) {
                served.remove(&net.id);
                let task = tokio::spawn(servers(registry.clone(), net.clone(), index));
                served.insert(net.id.clone(), Served { net, index, task });
            }
        }
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            _ = look.tick() => {}
        }
    }
}

/// The number of an interface, if it is there.
fn index(name: &str) -> Option<u32> {
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    name_to_index(any, name).ok()
}

/// All servers of a network. One that fails begins again.
async fn servers(registry: Arc<Registry>, net: Net, index: u32) {
    let mut all = JoinSet::new();
    let (of, at) = (registry.clone(), net.clone());
    all.spawn(again("addresses", net.clone(), move || {
        dhcp::serve(of.clone(), at.clone(), index)
    }));
    let (of, at) = (registry.clone(), net.clone());
    all.spawn(again("names", net.clone(), move || {
        dns::serve(of.clone(), at.clone())
    }));
    if let Some(subnet6) = net.subnet6 {
        let at = net.clone();
        all.spawn(again("routes", net.clone(), move || {
            advert::serve(at.clone(), subnet6, index)
        }));
    }
    // None of them ends.
    while all.join_next().await.is_some() {}
}

async fn again<F: Future<Output = io::Result<()>>>(what: &str, net: Net, serve: impl Fn() -> F) {
    let mut told = String::new();
    loop {
        if let Err(e) = serve().await {
            let why = e.to_string();
            if why != told {
                log::warn!("no {what} are served on `{}`: {why}", net.bridge);
            }
            told = why;
        }
        tokio::time::sleep(LOOK).await;
    }
}
