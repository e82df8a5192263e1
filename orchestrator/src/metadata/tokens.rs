//! Tokens: whoever can send a PUT with a header of its own is the workload itself, and no server in it that was made to
//! fetch a page. They are in memory alone: after the agent's death a workload asks for another one.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// The longest that one is good for, in seconds: six hours.
pub const LONGEST: u64 = 21_600;
/// Tokens of a workload; the oldest go first.
const MOST: usize = 16;
/// Random bytes of one.
const BYTES: usize = 32;

/// All tokens.
#[derive(Debug, Default)]
pub struct Tokens(HashMap<String, VecDeque<(String, Instant)>>);

impl Tokens {
    /// A new one for a workload, good for so many seconds.
    pub fn issue(&mut self, uid: &str, seconds: u64) -> std::io::Result<String> {
        let mut bytes = [0; BYTES];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let now = Instant::now();
        // Workloads that are gone had none that lasts longer than their tokens did.
        self.0.retain(|_, tokens| {
            tokens.retain(|(_, end)| *end > now);
            !tokens.is_empty()
        });
        let tokens = self.0.entry(uid.to_owned()).or_default();
        if tokens.len() >= MOST {
            tokens.pop_front();
        }
        let end = now + Duration::from_secs(seconds.min(LONGEST));
        tokens.push_back((token.clone(), end));
        Ok(token)
    }

    /// Whether a workload was given this one, and it is still good.
    pub fn is_good(&self, uid: &str, token: &str) -> bool {
        use subtle::ConstantTimeEq;
        let now = Instant::now();
        let mut tokens = self.0.get(uid).into_iter().flatten();
        tokens.any(|(one, end)| *end > now && bool::from(one.as_bytes().ct_eq(token.as_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_good_for_who_was_given_it_for_a_while_and_among_the_last() {
        let mut tokens = Tokens::default();
        let first = tokens.issue("a", 60).expect("a token");
        assert!(tokens.is_good("a", &first));
        assert!(
            !tokens.is_good("b", &first)
                && !tokens.is_good("a", "")
                && !tokens.is_good("a", &first[1..])
        );
        let over = tokens.issue("b", 0).expect("a token");
        assert!(!tokens.is_good("b", &over));
        for _ in 0..MOST {
            tokens.issue("a", 60).expect("a token");
        }
        assert!(!tokens.is_good("a", &first));
        assert_eq!(tokens.0["a"].len(), MOST);
        // What is over is not kept.
        assert!(!tokens.0.contains_key("b"));
    }
}
