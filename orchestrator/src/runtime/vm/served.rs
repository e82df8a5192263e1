//! A VM and the servers of its shares: they are there before its monitor, and it is ended when one of them is lost.

use std::time::Duration;

use tokio::time::timeout;

use super::cgroup::{self, Share};
use super::home::Home;
use super::monitor::Monitor;
use super::shares::{self, Daemon};
use super::{End, KILLED, RuntimeError, Vms, system};
use crate::model::MicroVmSpec;

/// A monitor that is ending, by which the servers of its shares end as well, is gone so long after them.
const FOLLOWING: Duration = Duration::from_secs(1);

/// Servers of a VM's shares.
#[derive(Clone, Default)]
pub(super) struct Served {
    /// Its processes.
    pub daemons: Vec<Daemon>,
    /// Why the VM was ended, if it was for one of them.
    pub lost: Option<String>,
}

impl Vms {
    /// Starts the servers of a VM's shares, in the VM's cgroup; what its monitor is told of them. Nobody else
    /// serves them then.
    pub(super) async fn serve(
        &self,
        uid: &str,
        home: &Home,
        spec: &MicroVmSpec,
    ) -> Result<Vec<String>, RuntimeError> {
        // What an agent has left that was killed while it started this VM.
        self.unserve(uid, home).await?;
        if spec.shares.is_empty() {
            return Ok(Vec::new());
        }
        let (shares, owned) = (self.shares.clone(), uid.to_owned());
        let (folder, spec) = (home.clone(), spec.clone());
        let started = tokio::task::spawn_blocking(move || {
            let (daemons, flags) = shares.start(&folder, &spec)?;
            let share = Share::of(&spec);
            for daemon in &daemons {
                let enter = |pid| cgroup::enter(&owned, pid, share);
                if let Err(e) = daemon.each(&folder, enter) {
                    log::warn!("a share of VM {owned} is served without limits: {e}");
                }
            }
            Ok::<_, RuntimeError>((daemons, flags))
        });
        let (daemons, flags) = started.await.map_err(|e| system("share")(e.into()))??;
        let served = Served {
            daemons,
            lost: None,
        };
        self.served.lock().insert(uid.to_owned(), served);
        Ok(flags)
    }

    /// The servers of a VM's shares, which may have been started by an agent before.
    pub(super) async fn served(&self, uid: &str) -> Served {
        if let Some(served) = self.served.lock().get(uid) {
            return served.clone();
        }
        let home = self.home(uid);
        let found = tokio::task::spawn_blocking(move || shares::adopt(&home)).await;
        let served = Served {
            daemons: found.unwrap_or_default(),
            lost: None,
        };
        let mut all = self.served.lock();
        all.entry(uid.to_owned()).or_insert(served).clone()
    }

    /// Why a VM that runs cannot go on: who serves one of its shares has ended. It is ended then, unless it is ending
    /// by itself, which ends them, too.
    pub(super) async fn end_unserved(&self, uid: &str, monitor: &Monitor) {
        let (home, served) = (self.home(uid), self.served(uid).await);
        let mut lost = served.daemons.iter().filter_map(|one| one.failure(&home));
        let Some(why) = lost.next() else { return };
        if timeout(FOLLOWING, monitor.ended()).await.is_ok() {
            return;
        }
        log::warn!("VM {uid} is ended: {why}");
        if let Some(served) = self.served.lock().get_mut(uid) {
            served.lost = Some(why);
        }
        monitor.kill();
        let _ = timeout(KILLED, monitor.ended()).await;
    }

    /// Ends the servers of a VM's shares, and forgets them.
    pub(super) async fn unserve(&self, uid: &str, home: &Home) -> Result<(), RuntimeError> {
        for daemon in self.served(uid).await.daemons {
            daemon.kill();
            if timeout(KILLED, daemon.ended()).await.is_err() {
                let what = "end the server of a share";
                return Err(system(what)(std::io::ErrorKind::TimedOut.into()));
            }
        }
        self.served.lock().remove(uid);
        shares::forget(home).map_err(system("clean the VM's folder"))
    }

    /// How a VM ended whose monitor has.
    pub(super) fn end(&self, uid: &str, home: &Home, monitor: &Monitor) -> End {
        let lost = self
            .served
            .lock()
            .get(uid)
            .and_then(|served| served.lost.clone());
        match lost {
            Some(how) => End { well: false, how },
            None => monitor.end(home),
        }
    }
}
