//! The metadata service: what a workload asks of itself at http://169.254.169.254, as clouds have it (version 2 of the
//! EC2 instance metadata service): with a token that it was given there, and never of anybody else.
//!
//! | room | what |
//! |---|---|
//! | `serve` | the socket, its connections, and who is behind each |
//! | `tokens` | who has shown that it is no stray request of somebody else's |
//! | `pages` | what is at which path |

mod pages;
mod serve;
mod tokens;

pub use serve::Metadata;
