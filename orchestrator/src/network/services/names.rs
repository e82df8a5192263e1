//! Names of services, for those who answer questions about names.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use parking_lot::RwLock;

use crate::network::ServiceNames;

/// What all names end with.
const DOMAIN: &str = ".skerry.internal";

/// Services' addresses by namespace and name.
#[derive(Debug, Clone, Default)]
pub struct Names(Arc<RwLock<HashMap<(String, String), Ipv4Addr>>>);

impl Names {
    /// Puts these in the place of those before.
    pub(super) fn set(&self, all: HashMap<(String, String), Ipv4Addr>) {
        *self.0.write() = all;
    }

    /// The address of a service of a namespace.
    pub fn service(&self, namespace: &str, name: &str) -> Option<Ipv4Addr> {
        let key = (namespace.to_owned(), name.to_owned());
        self.0.read().get(&key).copied()
    }

    /// The address of `NAME.svc.NAMESPACE.skerry.internal`, in capitals or not, with a dot behind it or none.
    pub fn address(&self, name: &str) -> Option<Ipv4Addr> {
        let name = name.to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        let (service, namespace) = name.strip_suffix(DOMAIN)?.rsplit_once('.')?;
        self.service(namespace, service.strip_suffix(".svc")?)
    }
}

impl ServiceNames for Names {
    fn addresses(&self, tenant: &str, name: &str) -> Vec<IpAddr> {
        let found = self.service(tenant, name).map(IpAddr::V4);
        found.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_services_name_has_its_address() {
        let names = Names::default();
        let address = Ipv4Addr::new(10, 96, 0, 7);
        let key = ("default".to_owned(), "web.v1".to_owned());
        names.set(HashMap::from([(key, address)]));
        for name in [
            "web.v1.svc.default.skerry.internal",
            "WEB.v1.svc.default.Skerry.Internal.",
        ] {
            assert_eq!(names.address(name), Some(address), "{name}");
        }
        for name in [
            "web.v1.default.skerry.internal",
            "web.svc.default.skerry.internal",
            "web.v1.svc.other.skerry.internal",
            "web.v1.svc.default.example",
            ".svc.default.skerry.internal",
            "",
            ".",
        ] {
            assert_eq!(names.address(name), None, "{name}");
        }
    }
}
