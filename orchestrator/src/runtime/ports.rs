//! Workloads' ports in the network `default`: made when the first workload wants one, so that a host without
//! networks is left as it is.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::RuntimeError;
use crate::model::{Object, Port};
use crate::network::{Addresses, DefaultNetwork, NetworkError, Subnet, Tap};

/// The network, and who has which address. Its calls block.
pub struct Ports {
    network: DefaultNetwork,
    addresses: Mutex<Addresses>,
}

impl Ports {
    /// The ports of a subnet, with containers' namespaces in `folder`. Those that are there keep their addresses.
    ///
    /// # Errors
    /// If they cannot be looked at.
    pub fn new(subnet: Subnet, folder: &Path) -> Result<Arc<Ports>, NetworkError> {
        let network = DefaultNetwork::new(subnet, folder);
        let mut addresses = Addresses::new(subnet);
        for found in network.found()? {
            if let Some(address) = found.address {
                // One that does not fit any more is told when its workload starts.
                let _ = addresses.take(&found.uid, Some(address));
            }
        }
        Ok(Arc::new(Ports {
            network,
            addresses: Mutex::new(addresses),
        }))
    }

    /// The address of a workload that wants a port: the one that it asks for, else the one that it had, else
    /// a free one.
    fn address(&self, object: &Object, ports: &[Port]) -> Result<Option<Ipv4Addr>, NetworkError> {
        let Some(port) = ports.first() else {
            return Ok(None);
        };
        // What somebody has deleted meanwhile is made again.
        self.network.ensure()?;
        let status = object
            .body
            .get("status")
            .and_then(|status| status.get("addresses"));
        let had = status
            .and_then(|all| all.get(0))
            .and_then(|one| one.as_str()?.parse().ok());
        let asked: Option<Ipv4Addr> = port.address.parse().ok();
        let (uid, mut addresses) = (&object.meta.uid, self.addresses.lock());
        if let (None, Some(had)) = (asked, had)
            && let Ok(address) = addresses.take(uid, Some(had))
        {
            return Ok(Some(address));
        }
        addresses.take(uid, asked).map(Some)
    }

    /// A VM's tap, its address, and what is added to its kernel's command line.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn tap(
        &self,
        object: &Object,
        ports: &[Port],
    ) -> Result<Option<(Tap, Ipv4Addr, String)>, RuntimeError> {
        let made = || {
            let Some(address) = self.address(object, ports)? else {
                return Ok(None);
            };
            let tap = self.network.attach_tap(&object.meta.uid, address, 1)?;
            let words = self.network.subnet().guest_words(address);
            Ok(Some((tap, address, words)))
        };
        made().map_err(RuntimeError::Network)
    }

    /// A container's network namespace, and its address.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn namespace(
        &self,
        object: &Object,
        ports: &[Port],
    ) -> Result<Option<(PathBuf, Ipv4Addr)>, RuntimeError> {
        let made = || {
            let Some(address) = self.address(object, ports)? else {
                return Ok(None);
            };
            let path = self.network.attach_netns(&object.meta.uid, address)?;
            Ok(Some((path, address)))
        };
        made().map_err(RuntimeError::Network)
    }

    /// Removes what a workload has here.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn detach(&self, uid: &str) -> Result<(), RuntimeError> {
        self.network.detach(uid).map_err(RuntimeError::Network)?;
        self.addresses.lock().free(uid);
        Ok(())
    }
}
