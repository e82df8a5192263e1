//! Time by the TSC: deadlines for every wait.

use core::arch::x86_64::{__cpuid, _rdtsc};

const FALLBACK_KHZ: u64 = 2_500_000;

/// The TSC and its frequency.
#[derive(Clone, Copy)]
pub struct Clock {
    khz: u64,
}

/// A point of time that a wait must not pass.
#[derive(Clone, Copy)]
pub struct Deadline(u64);

impl Deadline {
    /// True when it has passed.
    pub fn passed(self) -> bool {
        now() >= self.0
    }
}

/// What a wait must not go on after.
pub trait Limit {
    /// True when it is reached.
    fn is_reached(&mut self) -> bool;
}

impl Limit for Deadline {
    fn is_reached(&mut self) -> bool {
        self.passed()
    }
}

impl<L: Limit> Limit for &mut L {
    fn is_reached(&mut self) -> bool {
        (**self).is_reached()
    }
}

/// How long to wait while the machine runs: of the time between two looks only so much counts, since the machine
/// may have been paused, or have become another process's.
pub struct Patience {
    left: u64,
    last: u64,
    step: u64,
}

impl Limit for Patience {
    fn is_reached(&mut self) -> bool {
        let time = now();
        let passed = time.wrapping_sub(self.last).min(self.step);
        self.last = time;
        self.left = self.left.saturating_sub(passed);
        self.left == 0
    }
}

/// The TSC.
pub fn now() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and CR4.TSD is clear.
    unsafe { _rdtsc() }
}

impl Clock {
    /// The frequency that was told (`tsc-khz=` on the command line), or by CPUID (leaves 0x15 and the
    /// hypervisors' 0x4000_0010), else 2.5 GHz: a software KVM shows neither.
    pub fn new(told: Option<u64>) -> Self {
        Self {
            khz: told
                .filter(|khz| *khz > 0)
                .or_else(by_tsc_leaf)
                .or_else(by_hypervisor_leaf)
                .unwrap_or(FALLBACK_KHZ),
        }
    }

    /// Frequency of the TSC.
    pub fn khz(self) -> u64 {
        self.khz
    }

    /// A deadline in so many milliseconds.
    pub fn deadline_ms(self, ms: u64) -> Deadline {
        Deadline(now() + ms * self.khz)
    }

    /// Patience for so many milliseconds that the machine runs.
    pub fn patience_ms(self, ms: u64) -> Patience {
        const STEP_MS: u64 = 100;
        Patience {
            left: ms * self.khz,
            last: now(),
            step: STEP_MS * self.khz,
        }
    }

    /// Microseconds since an earlier [`now`].
    pub fn us_since(self, earlier: u64) -> u64 {
        (now() - earlier) * 1000 / self.khz
    }

    /// Spins.
    pub fn sleep_ms(self, ms: u64) {
        let deadline = self.deadline_ms(ms);
        while !deadline.passed() {
            core::hint::spin_loop();
        }
    }
}

fn by_tsc_leaf() -> Option<u64> {
    if __cpuid(0).eax < 0x15 {
        return None;
    }
    let leaf = __cpuid(0x15);
    if leaf.eax == 0 || leaf.ebx == 0 || leaf.ecx == 0 {
        return None;
    }
    Some(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax) / 1000)
}

fn by_hypervisor_leaf() -> Option<u64> {
    const HYPERVISOR_PRESENT: u32 = 1 << 31;
    if __cpuid(1).ecx & HYPERVISOR_PRESENT == 0 || __cpuid(0x4000_0000).eax < 0x4000_0010 {
        return None;
    }
    let khz = u64::from(__cpuid(0x4000_0010).eax);
    (khz != 0).then_some(khz)
}
