//! Signals by their names.

/// The ones that have names here.
const NAMES: [(&str, i32); 17] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ABRT", libc::SIGABRT),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("WINCH", libc::SIGWINCH),
];
/// The first and the last real-time signal, as programs count them.
const REAL_TIME: (i32, i32) = (34, 64);

/// The number of a signal given as `TERM`, `SIGTERM`, `15` or `SIGRTMIN+3`.
pub fn number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=REAL_TIME.1).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = match offset.strip_prefix('+') {
            Some(offset) => offset.parse::<i32>().ok()?,
            None if offset.is_empty() => 0,
            None => return None,
        };
        let number = REAL_TIME.0.checked_add(offset)?;
        return (REAL_TIME.0..=REAL_TIME.1)
            .contains(&number)
            .then_some(number);
    }
    NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        let cases = [
            ("TERM", Some(15)),
            ("SIGTERM", Some(15)),
            ("sigkill", Some(9)),
            ("3", Some(3)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMIN", Some(34)),
            ("RTMIN+31", None),
            ("RTMIN+2147483647", None),
            ("0", None),
            ("65", None),
            ("SIGNOTHING", None),
            ("", None),
        ];
        for (name, found) in cases {
            assert_eq!(number(name), found, "{name}");
        }
    }
}
