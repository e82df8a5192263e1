//! How much goes through a port.

/// Bits a second; as much as there is if none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// To the workload.
    pub ingress: Option<u64>,
    /// From the workload.
    pub egress: Option<u64>,
}

/// Bytes that may come at once, beside those of a second, which the kernel always lets come at once where nothing
/// came before: two of the largest segments that a guest hands over.
const BURST: u32 = 128 << 10;

/// Bytes a second of a limit, and bytes that may come at once beside those.
pub fn bytes(bits: u64) -> (u64, u32) {
    ((bits / 8).max(1), BURST)
}
