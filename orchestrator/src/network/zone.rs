//! The names of workloads: `NAME.NAMESPACE.skerry.internal`.

/// What all of them end with.
pub const ZONE: &str = "skerry.internal";

/// Where a tenant's workloads look for names that are no whole ones.
pub fn search(tenant: &str) -> String {
    format!("{tenant}.{ZONE}")
}
