//! Times as people read them.

const DAY: u64 = 86_400;
/// The days of four hundred years, after which the calendar is the same again.
const ERA: u64 = 146_097;
/// Days from the first of March of the year 0 to 1970.
const TO_1970: u64 = 719_468;

/// A time in seconds since 1970 as date and time of day, UTC.
pub fn show(seconds: u64) -> String {
    let (year, month, day) = date(seconds / DAY);
    let rest = seconds % DAY;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// The Gregorian date, so many days after the first one of 1970. Years are counted from March here, so
/// that a leap day is the last of its year.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + TO_1970;
    let (era, day) = (days / ERA, days % ERA);
    // A leap day every four years, but not in a century's last, but in the fourth century's.
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (year * 365 + year / 4 - year / 100);
    // From March on, months of 31 and 30 days come and go every 153 days.
    let month = (day * 5 + 2) / 153;
    let day = day - (month * 153 + 2) / 5 + 1;
    let year = era * 400 + year;
    match month {
        0..10 => (year, month + 3, day),
        _ => (year + 1, month - 9, day),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_know_leap_years() {
        assert_eq!(show(0), "1970-01-01 00:00:00");
        assert_eq!(show(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(show(4_107_542_399), "2100-02-28 23:59:59");
        assert_eq!(show(4_107_542_400), "2100-03-01 00:00:00");
        assert_eq!(show(1_795_426_550), "2026-11-23 09:35:50");
    }

    #[test]
    fn every_day_of_a_thousand_years_follows_the_one_before() {
        let mut before = date(0);
        for day in 1..365_243 {
            let (year, month, next) = date(day);
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let february = 28 + u64::from(leap);
            let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            let first = match before.1 {
                12 => (before.0 + 1, 1, 1),
                _ => (before.0, before.1 + 1, 1),
            };
            let wanted = match before.2 == lengths[before.1 as usize - 1] {
                true => first,
                false => (before.0, before.1, before.2 + 1),
            };
            assert_eq!((year, month, next), wanted);
            before = wanted;
        }
    }

    #[test]
    fn no_time_is_too_late() {
        assert!(show(u64::MAX).starts_with("584554051223-11-09"));
    }
}
