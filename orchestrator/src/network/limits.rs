//! How much goes through a port.

/// Bits a second; as much as there is if none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// To the workload.
    pub ingress: Option<u64>,
    /// From the workload.
    pub egress: Option<u64>,
}

/// The time for which a limit may be exceeded, as a part of a second.
const BURST: u64 = 10;
/// Bytes that may come at once in any case: a few of the largest segments that a guest hands over.
const LEAST: u64 = 256 << 10;

/// Bytes a second of a limit, and bytes that may come at once.
pub fn bytes(bits: u64) -> (u64, u32) {
    let rate = (bits / 8).max(1);
    let burst = (rate / BURST).max(LEAST);
    (rate, u32::try_from(burst).unwrap_or(u32::MAX))
}
