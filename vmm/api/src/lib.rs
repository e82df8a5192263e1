//! vmm/api
