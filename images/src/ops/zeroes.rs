//! Looking for zeroes.

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Most blocks that are not zero show it at once; the rest is looked at in pieces that the
    // compiler turns into vector instructions.
    const STEP: usize = 256;
    let mut steps = bytes.chunks_exact(STEP);
    steps.all(|step| step.iter().fold(0, |all, b| all | b) == 0)
        && bytes[bytes.len() / STEP * STEP..].iter().all(|b| *b == 0)
}

/// Splits `bytes` into runs of blocks of `unit` bytes that are all zero, or all not: calls `run`
/// with each one's start, its length and whether it is zero. `start` is where the bytes are, so that
/// blocks are aligned.
pub fn runs(bytes: &[u8], start: u64, unit: u64, mut run: impl FnMut(u64, u64, bool)) {
    let end = start + bytes.len() as u64;
    let mut current: Option<(u64, bool)> = None;
    let mut at = start;
    while at < end {
        let next = ((at / unit + 1) * unit).min(end);
        let zero = is_zero(&bytes[(at - start) as usize..(next - start) as usize]);
        match current {
            Some((_, was)) if was == zero => {}
            Some((from, was)) => {
                run(from, at - from, was);
                current = Some((at, zero));
            }
            None => current = Some((at, zero)),
        }
        at = next;
    }
    if let Some((from, zero)) = current {
        run(from, end - from, zero);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_told_from_nonzero_at_every_length() {
        for len in [0, 1, 255, 256, 257, 4096, 4099] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            if let Some(last) = bytes.last_mut() {
                *last = 1;
                assert!(!is_zero(&bytes));
            }
        }
    }

    #[test]
    fn runs_are_aligned_and_complete() {
        let mut bytes = vec![0; 100];
        bytes[30] = 1;
        let mut found = Vec::new();
        runs(&bytes, 8, 16, |at, len, zero| found.push((at, len, zero)));
        assert_eq!(found, [(8, 24, true), (32, 16, false), (48, 60, true)]);
    }
}
