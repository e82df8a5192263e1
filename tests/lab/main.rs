//! The lab tier.
