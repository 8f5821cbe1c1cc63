//! The signal an image wants to be stopped with (OCI image configuration,
//! `StopSignal`): a name, with or without `SIG`, a number, or a real-time signal
//! counted from either end.

use rustix::process::Signal;

/// What Docker sends where the image says nothing.
pub const DEFAULT: i32 = Signal::TERM.as_raw();

/// The first and last real-time signal as the C library counts them (signal(7)).
const REAL_TIME_MIN: i32 = 34;
const REAL_TIME_MAX: i32 = 64;

/// With the second names that Docker takes too.
const NAMES: [(&str, Signal); 34] = [
    ("HUP", Signal::HUP),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("ILL", Signal::ILL),
    ("TRAP", Signal::TRAP),
    ("ABRT", Signal::ABORT),
    ("BUS", Signal::BUS),
    ("FPE", Signal::FPE),
    ("KILL", Signal::KILL),
    ("USR1", Signal::USR1),
    ("SEGV", Signal::SEGV),
    ("USR2", Signal::USR2),
    ("PIPE", Signal::PIPE),
    ("ALRM", Signal::ALARM),
    ("TERM", Signal::TERM),
    ("CHLD", Signal::CHILD),
    ("CONT", Signal::CONT),
    ("STOP", Signal::STOP),
    ("TSTP", Signal::TSTP),
    ("TTIN", Signal::TTIN),
    ("TTOU", Signal::TTOU),
    ("URG", Signal::URG),
    ("XCPU", Signal::XCPU),
    ("XFSZ", Signal::XFSZ),
    ("VTALRM", Signal::VTALARM),
    ("PROF", Signal::PROF),
    ("WINCH", Signal::WINCH),
    ("PWR", Signal::POWER),
    ("IO", Signal::IO),
    ("POLL", Signal::IO),
    ("SYS", Signal::SYS),
    ("STKFLT", Signal::STKFLT),
    ("CLD", Signal::CHILD),
    ("IOT", Signal::ABORT),
];

/// The image names a signal that Linux does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the image's StopSignal {0:?} is no signal of Linux")]
pub struct UnknownSignal(String);

/// The number of the signal that `text` names.
pub fn parse(text: &str) -> Result<i32, UnknownSignal> {
    let unknown = || UnknownSignal(text.to_owned());
    if let Ok(number) = text.parse::<i32>() {
        let known = (1..=REAL_TIME_MAX).contains(&number);
        return known.then_some(number).ok_or_else(unknown);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = if let Some(offset) = name.strip_prefix("RTMIN") {
        Some((REAL_TIME_MIN, offset, '+'))
    } else {
        name.strip_prefix("RTMAX")
            .map(|offset| (REAL_TIME_MAX, offset, '-'))
    };
    if let Some((base, offset, sign)) = real_time {
        let distance = match offset.strip_prefix(sign) {
            Some(digits) => digits.parse::<u8>().map_err(|_| unknown())?.into(),
            None if offset.is_empty() => 0,
            None => return Err(unknown()),
        };
        let number = if sign == '+' {
            base + distance
        } else {
            base - distance
        };
        let known = (REAL_TIME_MIN..=REAL_TIME_MAX).contains(&number);
        return known.then_some(number).ok_or_else(unknown);
    }
    let found = NAMES.iter().find(|(known, _)| *known == name);
    found.map(|(_, signal)| signal.as_raw()).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_real_time_signals_are_known() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("SIGQUIT", 3),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("RTMIN", 34),
            ("SIGPOLL", 29),
        ] {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in [
            "", "SIG", "0", "65", "-1", "SIGNAL", "RTMIN+31", "RTMAX+1", "RTMIN+-1",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
