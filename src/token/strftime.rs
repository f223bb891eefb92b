//! The current date for chat templates: `strftime` in the C locale, in UTC.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The present moment in `format`. The library has no time zones; the date is that of UTC.
pub(crate) fn now(format: &str) -> String {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    at(since_epoch.as_secs(), format)
}

/// `seconds` since 1970 in `format`; a directive that is not known stays as it is.
fn at(seconds: u64, format: &str) -> String {
    let days = seconds / 86_400;
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let weekday = WEEKDAYS[(days % 7) as usize];
    let month_name = MONTHS[(month - 1) as usize];
    let hour12 = (hour + 11) % 12 + 1;
    let mut output = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            output.push(c);
            continue;
        }
        let mut directive = rest.next();
        let is_unpadded = directive == Some('-');
        if is_unpadded {
            directive = rest.next();
        }
        let mut number = |value: u64, width: usize| {
            let width = if is_unpadded { 1 } else { width };
            let _ = write!(output, "{value:0width$}");
        };
        match directive {
            Some('Y') => number(year, 4),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('H') => number(hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('j') => number(days - days_before_year(year) + 1, 3),
            Some('e') => {
                let _ = write!(output, "{day:2}");
            }
            Some('B') => output.push_str(month_name),
            Some('b' | 'h') => output.push_str(&month_name[..3]),
            Some('A') => output.push_str(weekday),
            Some('a') => output.push_str(&weekday[..3]),
            Some('p') => output.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => output.push_str(&at(seconds, "%Y-%m-%d")),
            Some('T') => output.push_str(&at(seconds, "%H:%M:%S")),
            Some('Z') => output.push_str("UTC"),
            Some('z') => output.push_str("+0000"),
            Some('%') => output.push('%'),
            Some(other) => output.extend(['%', other]),
            None => output.push('%'),
        }
    }
    output
}

fn days_before_year(year: u64) -> u64 {
    let past = year - 1;
    let days = past * 365 + past / 4 - past / 100 + past / 400;
    // Days before 1970 in the same count.
    days - (1969 * 365 + 1969 / 4 - 1969 / 100 + 1969 / 400)
}

/// Year, month and day of the Gregorian calendar, `days` after 1 January 1970.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let mut year = 1970 + days / 366;
    while days_before_year(year + 1) <= days {
        year += 1;
    }
    let is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let mut day = days - days_before_year(year);
    let lengths = [31, if is_leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        for (seconds, text) in [
            (0, "1970-01-01 Thu Thursday Jan 001 00:00:00 12 AM"),
            (951_782_399, "2000-02-28 Mon Monday Feb 059 23:59:59 11 PM"),
            (951_782_400, "2000-02-29 Tue Tuesday Feb 060 00:00:00 12 AM"),
            (1_735_689_599, "2024-12-31 Tue Tuesday Dec 366 23:59:59 11 PM"),
            (4_107_542_400, "2100-03-01 Mon Monday Mar 060 00:00:00 12 AM"),
        ] {
            assert_eq!(at(seconds, "%Y-%m-%d %a %A %b %j %H:%M:%S %I %p"), text);
        }
        assert_eq!(at(86_400 * 3, "%d %b %Y|%-d %e %B %y %F %T %Z %% %Q %"), {
            "04 Jan 1970|4  4 January 70 1970-01-04 00:00:00 UTC % %Q %"
        });
    }

    #[test]
    fn a_moment_far_away_is_still_found() {
        assert_eq!(at(253_402_300_799, "%F"), "9999-12-31");
        assert!(now("%Y").parse::<u32>().unwrap() >= 2024);
    }
}
