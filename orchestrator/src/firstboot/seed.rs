//! The texts that a workload is told, as cloud-init's NoCloud source wants them. All of them are JSON where YAML is
//! wanted, which is YAML as well.

use serde_json::{Value, json};

use crate::model::{FirstBoot, Object};

/// What a workload is told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seed {
    /// Another one for each that is declared: cloud-init does its work once for each.
    pub instance_id: String,
    /// Its name.
    pub hostname: String,
    /// Keys whose owners may log in.
    pub ssh_keys: Vec<String>,
    /// What it is to do, or nothing.
    pub user_data: String,
    /// Its interfaces, if it is told of them.
    pub networks: Vec<Told>,
}

/// What an interface is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// Its hardware address, by which it is known.
    pub mac: String,
    /// Its addresses with the lengths of their prefixes.
    pub addresses: Vec<String>,
    /// Its gateway, if it has one.
    pub gateway: Option<String>,
    /// Who knows names.
    pub dns: Vec<String>,
}

impl Told {
    /// What the words for a kernel's command line say of the nth interface: `skerry.ip=`, `skerry.v6=`, `skerry.gw=`
    /// and `skerry.dns=`, of later ones `skerry.ip1=` and `skerry.v6-1=`.
    pub fn of(n: usize, mac: &str, words: &str) -> Told {
        let values = |name: &str| {
            let prefix = format!("skerry.{name}=");
            let found = words.split(' ').filter_map(move |word| {
                let value = word.strip_prefix(&prefix)?;
                Some(value.split(',').map(str::to_owned).collect::<Vec<_>>())
            });
            found
                .flatten()
                .filter(|value| !value.is_empty())
                .collect::<Vec<_>>()
        };
        let mac = mac.to_owned();
        if n > 0 {
            let addresses = [values(&format!("ip{n}")), values(&format!("v6-{n}"))].concat();
            return Told {
                mac,
                addresses,
                ..Told::default()
            };
        }
        Told {
            mac,
            addresses: [values("ip"), values("v6")].concat(),
            gateway: values("gw").into_iter().next(),
            dns: values("dns"),
        }
    }
}

impl Seed {
    /// What an object's workload is told.
    pub fn of(object: &Object, first: &FirstBoot, networks: Vec<Told>) -> Seed {
        let hostname = match first.hostname.as_str() {
            // A name with dots is that of a domain; its first part is the host's.
            "" => object.meta.name.split('.').next().unwrap_or_default(),
            name => name,
        };
        Seed {
            instance_id: object.meta.uid.clone(),
            hostname: hostname.to_owned(),
            ssh_keys: first.ssh_keys.clone(),
            user_data: first.user_data.clone().unwrap_or_default(),
            networks: match first.network_config {
                true => networks,
                false => Vec::new(),
            },
        }
    }

    /// `meta-data`.
    pub fn meta_data(&self) -> String {
        let data = json!({
            "instance-id": self.instance_id,
            "local-hostname": self.hostname,
            "public-keys": self.ssh_keys,
        });
        format!("{data:#}\n")
    }

    /// `user-data`: a file that is missing would be no source at all.
    pub fn user_data(&self) -> &str {
        match self.user_data.as_str() {
            "" => "#cloud-config\n{}\n",
            text => text,
        }
    }

    /// `network-config`, of version 2; none if it is told of no network.
    pub fn network_config(&self) -> Option<String> {
        if self.networks.is_empty() {
            return None;
        }
        let mut ethernets = serde_json::Map::new();
        for (n, told) in self.networks.iter().enumerate() {
            let name = format!("eth{n}");
            let mut one = json!({
                "match": {"macaddress": told.mac},
                "set-name": name,
                "addresses": told.addresses,
            });
            if let Some(gateway) = &told.gateway {
                one["gateway4"] = gateway.as_str().into();
            }
            if !told.dns.is_empty() {
                one["nameservers"] = json!({"addresses": told.dns});
            }
            ethernets.insert(name, one);
        }
        let all = json!({"version": 2, "ethernets": Value::Object(ethernets)});
        Some(format!("{all:#}\n"))
    }

    /// The files of a NoCloud source.
    pub fn files(&self) -> Vec<(&'static str, String)> {
        let mut all = vec![
            ("meta-data", self.meta_data()),
            ("user-data", self.user_data().to_owned()),
        ];
        all.extend(self.network_config().map(|text| ("network-config", text)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_told_the_words_of_its_kernel_again() {
        let words = "ip=10.88.0.2::10.88.0.1:255.255.0.0::eth0:off skerry.ip=10.88.0.2/16 skerry.gw=10.88.0.1";
        let told = Told::of(0, "02:00:00:00:00:01", words);
        assert_eq!(told.addresses, ["10.88.0.2/16"]);
        assert_eq!(told.gateway.as_deref(), Some("10.88.0.1"));
        let seed = Seed {
            networks: vec![told],
            ..Seed::default()
        };
        let config = seed.network_config().expect("a network");
        let config: Value = serde_json::from_str(&config).expect("JSON");
        let eth0 = &config["ethernets"]["eth0"];
        assert_eq!(eth0["match"]["macaddress"], "02:00:00:00:00:01");
        assert_eq!(eth0["gateway4"], "10.88.0.1");
        assert!(eth0["nameservers"].is_null());
    }

    #[test]
    fn each_interface_is_told_its_own() {
        use crate::network::{Net, Subnet, guest_words};
        let subnet = "10.90.1.0/24".parse().expect("a subnet");
        let subnet6 = "fd00:1:2:3::/64".parse().expect("a subnet");
        let nets = [
            (Net::default(Subnet::default()), [10, 88, 0, 2].into()),
            (
                Net::of("an-uid", subnet, Some(subnet6), true),
                [10, 90, 1, 2].into(),
            ),
        ];
        let words = guest_words("team", &nets);
        let first = Told::of(0, "a", &words);
        assert_eq!(first.addresses, ["10.88.0.2/16"]);
        assert_eq!(first.dns, ["10.88.0.1"]);
        let second = Told::of(1, "b", &words);
        assert_eq!(
            second.addresses,
            ["10.90.1.2/24", "fd00:1:2:3:53:aff:fe5a:102/64"]
        );
        assert!(second.gateway.is_none());
    }

    #[test]
    fn what_is_not_said_is_told_all_the_same() {
        let seed = Seed::default();
        assert_eq!(seed.user_data(), "#cloud-config\n{}\n");
        let names: Vec<_> = seed.files().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["meta-data", "user-data"]);
    }

    #[test]
    fn texts_of_others_cannot_leave_their_place() {
        let seed = Seed {
            hostname: "a\"\nb: c".to_owned(),
            ssh_keys: vec!["ssh-ed25519 AAAA \"}\n".to_owned()],
            ..Seed::default()
        };
        let read: Value = serde_json::from_str(&seed.meta_data()).expect("JSON");
        assert_eq!(read["local-hostname"], "a\"\nb: c");
    }
}
