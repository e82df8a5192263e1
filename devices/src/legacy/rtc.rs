//! The MC146818 real-time clock with its 128 bytes of CMOS, at ports 0x70 and 0x71. It shows the
//! host's time in UTC; setting it or its alarm does nothing.

use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::bus::{Action, BusDevice};

const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;
/// 32 kHz time base, as every PC has it.
const A_TIME_BASE: u8 = 0x26;
/// 24 hours, BCD.
const B_24_HOURS: u8 = 0x02;
/// Valid RAM and time.
const D_VALID: u8 = 0x80;

/// The clock.
pub struct Rtc {
    cmos: Mutex<Cmos>,
}

struct Cmos {
    index: u8,
    ram: [u8; 128],
}

/// What is kept of a clock. Its time is the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RtcState {
    index: u8,
    ram: Vec<u8>,
}

impl Rtc {
    /// What is to be kept.
    pub fn save(&self) -> RtcState {
        let cmos = self.cmos.lock();
        RtcState {
            index: cmos.index,
            ram: cmos.ram.to_vec(),
        }
    }

    /// Takes what was kept.
    pub fn restore(&self, state: &RtcState) {
        let mut cmos = self.cmos.lock();
        cmos.index = state.index & 0x7f;
        for (byte, kept) in cmos.ram.iter_mut().zip(&state.ram) {
            *byte = *kept;
        }
    }
}

impl Default for Rtc {
    fn default() -> Self {
        Rtc {
            cmos: Mutex::new(Cmos {
                index: 0,
                ram: [0; 128],
            }),
        }
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let cmos = self.cmos.lock();
        if offset == 0 {
            return cmos.index.into();
        }
        let value = match cmos.index {
            0..10 | CENTURY => {
                let seconds = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |d| d.as_secs());
                time_register(cmos.index, seconds).unwrap_or(0)
            }
            STATUS_A => A_TIME_BASE,
            STATUS_B => B_24_HOURS,
            0x0c => 0,
            STATUS_D => D_VALID,
            index => cmos.ram[usize::from(index & 0x7f)],
        };
        value.into()
    }

    fn write(&self, offset: u64, _size: u8, value: u64) -> Action {
        let mut cmos = self.cmos.lock();
        if offset == 0 {
            // Bit 7 masks NMI.
            cmos.index = value as u8 & 0x7f;
        } else if cmos.index > STATUS_D && cmos.index != CENTURY {
            let index = usize::from(cmos.index & 0x7f);
            cmos.ram[index] = value as u8;
        }
        Action::None
    }
}

/// A time register's content, in BCD, at `seconds` after 1970. None for the alarm's registers.
fn time_register(index: u8, seconds: u64) -> Option<u8> {
    let (days, second) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = civil(days);
    let value = match index {
        0 => second % 60,
        2 => second / 60 % 60,
        4 => second / 3600,
        // Sunday is 1, and 1970 began on a Thursday.
        6 => (days + 4) % 7 + 1,
        7 => day,
        8 => month,
        9 => year % 100,
        CENTURY => year / 100,
        _ => return None,
    };
    Some((((value / 10) << 4) | (value % 10)) as u8)
}

/// Year, month and day of a day since 1970: the proleptic Gregorian calendar, counted in years
/// that begin in March so that the leap day is the last.
fn civil(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097;
    let from_0000_03_01 = days + 719_468;
    let (era, day) = (from_0000_03_01 / ERA, from_0000_03_01 % ERA);
    let year = (day - day / 1460 + day / 36_524 - day / (ERA - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (carry, month) = if month < 10 {
        (0, month + 3)
    } else {
        (1, month - 9)
    };
    (era * 400 + year + carry, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (20_780, (2026, 11, 23)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(civil(days), date);
        }
    }

    #[test]
    fn registers_are_bcd() {
        // 2026-11-23 12:34:56 UTC, a Monday.
        let t = 20_780 * 86400 + 12 * 3600 + 34 * 60 + 56;
        let read = |index| time_register(index, t).unwrap();
        assert_eq!(
            [
                read(0),
                read(2),
                read(4),
                read(6),
                read(7),
                read(8),
                read(9),
                read(CENTURY)
            ],
            [0x56, 0x34, 0x12, 2, 0x23, 0x11, 0x26, 0x20]
        );
    }
}
