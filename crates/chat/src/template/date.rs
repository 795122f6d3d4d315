//! `strftime_now`: a date as templates ask for it, in the Gregorian calendar and UTC.

use minijinja::{Error, ErrorKind};

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
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// The year, month (1 to 12) and day (1 to 31) so many days after 1970-01-01. Counted from 1 March of year 0 on, so that the leap day
/// is a year's last: 146097 days are 400 years, and from March on months repeat every 153 days.
pub fn civil(days: i64) -> (i64, usize, i64) {
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month as usize, day)
}

/// The conversions of `strftime` that date and time of day have.
pub(super) fn strftime(format: &str, seconds: i64) -> Result<String, Error> {
    // Years of four digits: from 1 January 0001 to 31 December 9999.
    if !(-62_135_596_800..=253_402_300_799).contains(&seconds) {
        return Err(Error::new(ErrorKind::InvalidOperation, "strftime_now: the clock is outside the years 1 to 9999"));
    }
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let month_name = MONTHS[month - 1];
    let day_name = DAYS[(days + 4).rem_euclid(7) as usize];
    let hour = second / 3600;
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let part = match chars.next() {
            Some('Y') => format!("{year:04}"),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('M') => format!("{:02}", second / 60 % 60),
            Some('S') => format!("{:02}", second % 60),
            Some('F') => format!("{year:04}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{:02}:{:02}", second / 60 % 60, second % 60),
            Some('%') => "%".to_owned(),
            other => {
                let found = other.map_or("%".to_owned(), |c| format!("%{c}"));
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now: unknown conversion `{found}`"),
                ));
            }
        };
        text.push_str(&part);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let full = |s| strftime("%a %A %d %b %B %Y %F %T %I%p %%", s).unwrap();
        assert_eq!(full(0), "Thu Thursday 01 Jan January 1970 1970-01-01 00:00:00 12AM %");
        assert_eq!(full(951_782_399), "Mon Monday 28 Feb February 2000 2000-02-28 23:59:59 11PM %");
        assert_eq!(full(951_868_800 - 1), "Tue Tuesday 29 Feb February 2000 2000-02-29 23:59:59 11PM %");
        assert_eq!(full(-1), "Wed Wednesday 31 Dec December 1969 1969-12-31 23:59:59 11PM %");
        assert_eq!(full(253_402_300_799), "Fri Friday 31 Dec December 9999 9999-12-31 23:59:59 11PM %");
    }

    #[test]
    fn each_day_follows_the_one_before() {
        let mut last = civil(-1);
        for days in 0..200_000 {
            let (year, month, day) = civil(days);
            let follows = (year, month, day) == (last.0, last.1, last.2 + 1)
                || (year, month, day) == (last.0, last.1 + 1, 1)
                || (year, month, day) == (last.0 + 1, 1, 1);
            assert!(follows && day <= 31 && month <= 12, "{last:?} then {year}-{month}-{day}");
            last = (year, month, day);
        }
    }

    #[test]
    fn an_unknown_conversion_is_refused() {
        assert!(strftime("%Q", 0).unwrap_err().to_string().contains("`%Q`"));
        assert!(strftime("100%", 0).is_err());
        assert!(strftime("%Y", i64::MAX).is_err());
    }
}
