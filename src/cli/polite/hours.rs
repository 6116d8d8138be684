//! Hours of the week, such as `mon-fri 18:00-08:00, sat-sun`: what they mean at a moment in a time zone, and when that
//! changes. Pure; whose hours they are, and what happens outside of them, is not known here.
//!
//! An entry is a stretch of time that begins on its days, at the time that a clock on the wall shows, and ends likewise, on
//! the next day if that is the earlier time. Where clocks are changed, a time that there is not is the one an hour later,
//! and of a time that there is twice the first one counts.

use std::{fmt, str::FromStr};

use jiff::{Timestamp, ToSpan, Zoned, civil::Date};

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// Days that are looked at ahead: a week repeats itself.
const AHEAD: i32 = 8;

/// Some hours of every week.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Hours {
    text: String,
    stretches: Vec<Stretch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    /// Those on which it begins, Monday first.
    days: [bool; 7],
    /// Minutes after midnight.
    begins: u16,
    /// The same, of the next day if that is not later.
    ends: u16,
}

/// What hours are at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Moment {
    /// Whether it lies within them.
    pub(in crate::cli) within: bool,
    /// When that changes; never if they are the whole week.
    pub(in crate::cli) until: Option<Timestamp>,
}

impl Hours {
    /// What they are `now`, in the time zone of that.
    pub(in crate::cli) fn at(&self, now: &Zoned) -> Moment {
        let moment = now.timestamp();
        let spans = self.spans(now);
        let within = spans.iter().find(|(begin, end)| (*begin..*end).contains(&moment));
        let horizon = now.checked_add((AHEAD - 1).days()).map(|horizon| horizon.timestamp());
        let until = match within {
            Some((_, end)) => Some(*end).filter(|end| horizon.is_ok_and(|horizon| *end < horizon)),
            None => spans.iter().map(|(begin, _)| *begin).find(|begin| *begin > moment),
        };
        Moment {
            within: within.is_some(),
            until,
        }
    }

    /// From yesterday on, in order; what touches is one.
    fn spans(&self, now: &Zoned) -> Vec<(Timestamp, Timestamp)> {
        let mut spans = Vec::new();
        let at = |date: Date, minutes: u16| {
            let (date, minutes) = match minutes {
                DAY => (date.tomorrow().ok()?, 0),
                minutes => (date, minutes),
            };
            let time = date.at((minutes / 60) as i8, (minutes % 60) as i8, 0, 0);
            Some(time.to_zoned(now.time_zone().clone()).ok()?.timestamp())
        };
        for date in (-1..=AHEAD).filter_map(|days| now.date().checked_add(days.days()).ok()) {
            let weekday = date.weekday().to_monday_zero_offset() as usize;
            for stretch in self.stretches.iter().filter(|stretch| stretch.days[weekday]) {
                let last = if stretch.ends > stretch.begins {
                    Some(date)
                } else {
                    date.tomorrow().ok()
                };
                let begin = at(date, stretch.begins);
                let end = last.and_then(|date| at(date, stretch.ends));
                // One that begins and ends in the hour that is left out is none.
                spans.extend(begin.zip(end).filter(|(begin, end)| begin < end));
            }
        }
        spans.sort_unstable();
        spans.dedup_by(|next, before| {
            let touches = next.0 <= before.1;
            if touches {
                before.1 = before.1.max(next.1);
            }
            touches
        });
        spans
    }
}

impl fmt::Display for Hours {
    /// As they were given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Hours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let stretches: Result<Vec<Stretch>, String> = text.split(',').map(stretch).collect();
        Ok(Self {
            text: text.trim().to_owned(),
            stretches: stretches?,
        })
    }
}

fn stretch(text: &str) -> Result<Stretch, String> {
    let mut words = text.split_whitespace();
    let (first, second, more) = (words.next(), words.next(), words.next());
    let (days, times) = match (first, second, more) {
        (None, ..) => {
            return Err("an entry is empty: give days, times or both, such as mon-fri 18:00-08:00".to_owned());
        }
        (Some(times), None, None) if times.starts_with(|c: char| c.is_ascii_digit()) => (None, Some(times)),
        (Some(days), times, None) => (Some(days), times),
        _ => {
            return Err(format!(
                "{:?} is more than days and times: a comma goes between entries",
                text.trim()
            ));
        }
    };
    let days = days.map_or(Ok([true; 7]), weekdays)?;
    let (begins, ends) = times.map_or(Ok((0, DAY)), clock_times)?;
    Ok(Stretch { days, begins, ends })
}

fn weekdays(text: &str) -> Result<[bool; 7], String> {
    let lower = text.to_lowercase();
    if lower == "daily" {
        return Ok([true; 7]);
    }
    let day = |name: &str| {
        let found = DAYS.iter().position(|day| *day == name);
        found.ok_or_else(|| format!("{name:?} is no day: mon, tue, wed, thu, fri, sat, sun, or daily for all of them"))
    };
    let (first, last) = lower.split_once('-').unwrap_or((&lower, &lower));
    let (first, last) = (day(first)?, day(last)?);
    // fri-mon goes over the end of the week.
    let length = (last + 7 - first) % 7;
    Ok(std::array::from_fn(|day| (day + 7 - first) % 7 <= length))
}

fn clock_times(text: &str) -> Result<(u16, u16), String> {
    let wrong = || format!("{text:?} is no stretch of time: two times are wanted, such as 18:00-08:00");
    let (begins, ends) = text.split_once('-').ok_or_else(wrong)?;
    let (begins, ends) = (clock_time(begins)?, clock_time(ends)?);
    if begins == DAY {
        return Err("nothing begins at 24:00: that is 00:00 of the next day".to_owned());
    }
    if begins == ends {
        return Err(format!(
            "{text:?} begins when it ends: leave the times out for the whole day"
        ));
    }
    Ok((begins, ends))
}

fn clock_time(text: &str) -> Result<u16, String> {
    let wrong =
        || format!("{text:?} is no time: hours from 00 to 24 and minutes from 00 to 59 are wanted, such as 18:00");
    let (hours, minutes) = text.split_once(':').ok_or_else(wrong)?;
    let number = |digits: &str, n: std::ops::RangeInclusive<usize>| {
        let plain = n.contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<u16>().ok().filter(|_| plain).ok_or_else(wrong)
    };
    let (hours, minutes) = (number(hours, 1..=2)?, number(minutes, 2..=2)?);
    let time = hours * 60 + minutes;
    if minutes > 59 || time > DAY {
        Err(wrong())
    } else {
        Ok(time)
    }
}

#[cfg(test)]
mod tests {
    use jiff::{civil::date, tz::TimeZone};

    use super::*;

    fn hours(text: &str) -> Hours {
        text.parse().unwrap()
    }

    /// Central Europe, whatever this machine knows of it.
    fn zone() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    /// A time of June 2026, whose first day is a Monday.
    fn june(day: i8, hour: i8, minute: i8) -> Zoned {
        date(2026, 6, day).at(hour, minute, 0, 0).to_zoned(zone()).unwrap()
    }

    #[track_caller]
    fn assert_at(hours: &Hours, now: &Zoned, within: bool, until: Option<Zoned>) {
        let until = until.map(|until| until.timestamp());
        assert_eq!(hours.at(now), Moment { within, until }, "{hours} at {now}");
    }

    #[test]
    fn nights_of_the_week_go_over_midnight_and_join_the_weekend() {
        let nights = hours("mon-fri 18:00-08:00, sat-sun");
        assert_at(&nights, &june(1, 12, 0), false, Some(june(1, 18, 0)));
        assert_at(&nights, &june(1, 18, 0), true, Some(june(2, 8, 0)));
        assert_at(&nights, &june(2, 7, 59), true, Some(june(2, 8, 0)));
        assert_at(&nights, &june(2, 8, 0), false, Some(june(2, 18, 0)));
        // Friday evening until Saturday morning, and then it is the weekend until Monday.
        assert_at(&nights, &june(5, 20, 0), true, Some(june(8, 0, 0)));
        assert_at(&nights, &june(6, 12, 0), true, Some(june(8, 0, 0)));
        // Monday's night begins on Monday: early on Monday belongs to nobody.
        assert_at(&nights, &june(8, 0, 0), false, Some(june(8, 18, 0)));
    }

    #[test]
    fn entries_may_have_days_or_times_only_and_weeks_have_no_end() {
        assert_at(&hours("22:00-06:00"), &june(3, 23, 0), true, Some(june(4, 6, 0)));
        assert_at(&hours("9:30-12:00"), &june(3, 13, 0), false, Some(june(4, 9, 30)));
        assert_at(&hours("daily 20:00-24:00"), &june(3, 21, 0), true, Some(june(4, 0, 0)));
        assert_at(&hours("Fri-Mon"), &june(2, 0, 0), false, Some(june(5, 0, 0)));
        assert_at(&hours("FRI-mon"), &june(8, 23, 59), true, Some(june(9, 0, 0)));
        assert_at(&hours("wed"), &june(4, 0, 0), false, Some(june(10, 0, 0)));
        assert_at(&hours("mon-sun"), &june(4, 5, 6), true, None);
        assert_at(&hours("0:00-12:00, 12:00-24:00"), &june(4, 5, 6), true, None);
        assert_at(
            &hours("mon-tue 08:00-12:00, mon 10:00-14:00"),
            &june(1, 9, 0),
            true,
            Some(june(1, 14, 0)),
        );
    }

    #[test]
    fn a_night_in_which_clocks_are_changed_is_an_hour_longer_or_shorter() {
        let nights = hours("22:00-06:00");
        // 29 March 2026: 02:00 is 03:00. 25 October 2026: 03:00 is 02:00.
        for (evening, length) in [(date(2026, 3, 28), 7), (date(2026, 10, 24), 9), (date(2026, 6, 1), 8)] {
            let begin = evening.at(22, 0, 0, 0).to_zoned(zone()).unwrap();
            let until = nights.at(&begin).until.unwrap();
            assert_eq!(
                until.as_second() - begin.timestamp().as_second(),
                length * 3600,
                "{evening}"
            );
        }
    }

    #[test]
    fn times_that_there_are_twice_or_not_at_all_happen_once() {
        // Of 02:00 to 02:30 there are two: the first one counts.
        let twice = hours("02:00-02:30");
        let first = date(2026, 10, 25).at(2, 0, 0, 0).to_zoned(zone()).unwrap();
        let end = first.checked_add(30.minutes()).unwrap();
        assert_at(&twice, &first, true, Some(end.clone()));
        let second = first.checked_add(1.hour()).unwrap();
        assert_eq!((second.hour(), second.minute()), (2, 0));
        let tomorrow = date(2026, 10, 26).at(2, 0, 0, 0).to_zoned(zone()).unwrap();
        assert_at(&twice, &second, false, Some(tomorrow));
        // And here there is neither: it is an hour later.
        let gap = date(2026, 3, 29).at(1, 59, 0, 0).to_zoned(zone()).unwrap();
        let three = date(2026, 3, 29).at(3, 0, 0, 0).to_zoned(zone()).unwrap();
        assert_at(&twice, &gap, false, Some(three.clone()));
        assert_at(&twice, &three, true, three.checked_add(30.minutes()).ok());
    }

    #[test]
    fn wrong_hours_are_refused_with_what_is_wanted() {
        for (text, says) in [
            (
                "",
                "an entry is empty: give days, times or both, such as mon-fri 18:00-08:00",
            ),
            ("mon,", "an entry is empty"),
            ("monday", "\"monday\" is no day: mon, tue"),
            ("mon-xyz", "\"xyz\" is no day"),
            (
                "mon 18:00",
                "\"18:00\" is no stretch of time: two times are wanted, such as 18:00-08:00",
            ),
            ("mon 18-08", "\"18\" is no time: hours from 00 to 24"),
            ("mon 18:00-25:00", "\"25:00\" is no time"),
            ("18:60-20:00", "\"18:60\" is no time"),
            ("+1:00-20:00", "is no day"),
            ("24:00-02:00", "nothing begins at 24:00"),
            (
                "08:00-08:00",
                "begins when it ends: leave the times out for the whole day",
            ),
            (
                "mon 18:00-08:00 tue",
                "is more than days and times: a comma goes between entries",
            ),
        ] {
            let error = text.parse::<Hours>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
