//! Settings of Cloud Hypervisor that this monitor does not have. Clients send them all the same,
//! mostly to say "no": that is accepted, anything else is refused by name.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A setting that may only be switched off: null, false, 0, "", "Off", an empty list, or an object
/// of such.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inert;

/// A setting that changes nothing here, whatever its value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Ignored)
    }
}

impl<'de> Deserialize<'de> for Inert {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InertVisitor)
    }
}

/// Reads a setting that may also be what Cloud Hypervisor's clients send by default.
fn accept<'de, D: Deserializer<'de>>(
    deserializer: D,
    defaults: &[&str],
) -> Result<Inert, D::Error> {
    let value = Value::deserialize(deserializer)?;
    if value.as_str().is_some_and(|text| defaults.contains(&text)) {
        return Ok(Inert);
    }
    Inert::deserialize(value).map_err(D::Error::custom)
}

/// Reads an object without the keys that have these values.
fn accept_object<'de, D: Deserializer<'de>>(
    deserializer: D,
    defaults: &[(&str, Value)],
) -> Result<Inert, D::Error> {
    let mut value = Value::deserialize(deserializer)?;
    if let Some(object) = value.as_object_mut() {
        object.retain(|key, value| !defaults.iter().any(|(k, v)| k == key && v == value));
    }
    Inert::deserialize(value).map_err(D::Error::custom)
}

/// `cpus.core_scheduling`.
pub(crate) fn core_scheduling<'de, D: Deserializer<'de>>(d: D) -> Result<Inert, D::Error> {
    accept(d, &["Vm"])
}

/// `cpus.profile`.
pub(crate) fn profile<'de, D: Deserializer<'de>>(d: D) -> Result<Inert, D::Error> {
    accept(d, &["Host"])
}

/// `net.ip`.
pub(crate) fn ip<'de, D: Deserializer<'de>>(d: D) -> Result<Inert, D::Error> {
    accept(d, &["192.168.249.1"])
}

/// `net.mask`.
pub(crate) fn mask<'de, D: Deserializer<'de>>(d: D) -> Result<Inert, D::Error> {
    accept(d, &["255.255.255.0"])
}

/// `debug_console`.
pub(crate) fn debug_console<'de, D: Deserializer<'de>>(d: D) -> Result<Inert, D::Error> {
    accept_object(d, &[("iobase", json!(233))])
}

/// `platform`.
pub(crate) fn platform<'de, D: Deserializer<'de>>(d: D) -> Result<Inert, D::Error> {
    let defaults = [
        ("num_pci_segments", json!(1)),
        ("iommu_address_width_bits", json!(64)),
        ("vfio_p2p_dma", json!(true)),
    ];
    accept_object(d, &defaults)
}

fn refuse<E: Error>(on: bool) -> Result<Inert, E> {
    if on {
        Err(E::custom(
            "skerry-vmm does not have this setting: leave it out",
        ))
    } else {
        Ok(Inert)
    }
}

struct InertVisitor;

impl<'de> Visitor<'de> for InertVisitor {
    type Value = Inert;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing: skerry-vmm does not have this setting")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Inert, E> {
        refuse(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Inert, E> {
        refuse(value != 0)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Inert, E> {
        refuse(value != 0)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Inert, E> {
        refuse(value != 0.0)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Inert, E> {
        // "Acpi" is how Cloud Hypervisor says that no memory is hot-plugged by other means.
        refuse(!matches!(
            value,
            "" | "off" | "false" | "0" | "Off" | "Null" | "Acpi"
        ))
    }

    fn visit_unit<E: Error>(self) -> Result<Inert, E> {
        Ok(Inert)
    }

    fn visit_none<E: Error>(self) -> Result<Inert, E> {
        Ok(Inert)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Inert, D::Error> {
        Inert::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Inert, A::Error> {
        refuse(seq.next_element::<serde::de::IgnoredAny>()?.is_some())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Inert, A::Error> {
        while map.next_entry::<serde::de::IgnoredAny, Inert>()?.is_some() {}
        Ok(Inert)
    }
}

impl JsonSchema for Inert {
    fn schema_name() -> Cow<'static, str> {
        "NotSupported".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "description": "A setting of Cloud Hypervisor that skerry-vmm does not have: null, false, 0 or empty." })
    }
}

impl JsonSchema for Ignored {
    fn schema_name() -> Cow<'static, str> {
        "Ignored".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "description": "A setting of Cloud Hypervisor that changes nothing in skerry-vmm." })
    }
}
