//! The flags as they are given, and hours kept by a server of a swarm.

use clap::Parser;
use jiff::{civil::date, tz::TimeZone};

use super::*;

#[derive(Debug, Parser)]
struct Command {
    #[command(flatten)]
    polite: PoliteArgs,
}

fn parse(args: &[&str]) -> Result<PoliteArgs, String> {
    let args = ["sepal"].iter().chain(args);
    let parsed = Command::try_parse_from(args).map_err(|error| error.to_string());
    parsed.map(|command| command.polite)
}

#[test]
fn without_flags_a_node_computes_all_the_time_for_everybody() {
    let rules = parse(&[]).unwrap().rules(4);
    assert!(rules.own.is_empty() && rules.allow.is_empty() && rules.deny.is_empty());
    assert_eq!(rules.quotas, Quotas::default());
}

#[test]
fn fewer_threads_than_processors_count_for_what_is_asked() {
    for (max_cpu, threads, processors, expected) in [
        (None, 4, 8, 1.0),
        (Some(0.5), 8, 8, 0.5),
        (Some(0.5), 4, 8, 1.0),
        (Some(0.25), 4, 8, 0.5),
        (Some(0.1), 1, 1, 0.1),
        (Some(0.5), 16, 8, 0.25),
    ] {
        assert_eq!(
            share(max_cpu, threads, processors),
            expected,
            "{max_cpu:?} {threads} {processors}"
        );
    }
}

#[test]
fn flags_become_rules() {
    let [own, friend] = [(), ()].map(|()| PeerId::random());
    let (own_id, friend_id) = (own.to_string(), friend.to_string());
    let args = [
        [
            "--own",
            &own_id,
            "--max-sessions-per-peer",
            "3",
            "--max-tokens-per-peer",
            "600",
        ]
        .as_slice(),
        &[
            "--max-cache-per-peer",
            "25%",
            "--deny",
            "192.0.2.0/24",
            "--allow",
            &friend_id,
            "10.0.0.7",
        ],
        &["--schedule", "mon-fri 18:00-08:00, sat-sun", "--max-cpu", "50%"],
    ]
    .concat();
    let args = parse(&args).unwrap();
    let rules = args.rules(1);
    assert_eq!((rules.own, rules.allow.len(), rules.deny.len()), ([own].into(), 2, 1));
    let quotas = Quotas {
        sessions: Some(3),
        tokens_per_minute: Some(600),
        cache: Some(0.25),
    };
    assert_eq!(rules.quotas, quotas);
    assert_eq!(args.schedule.unwrap().to_string(), "mon-fri 18:00-08:00, sat-sun");
}

#[test]
fn wrong_values_are_refused_with_the_flag_and_what_is_wanted() {
    for (args, says) in [
        (
            ["--max-cpu", "150%"],
            "a percentage from above 0 to 100 is wanted, such as 50%",
        ),
        (["--schedule", "monday"], "\"monday\" is no day: mon, tue, wed"),
        (["--own", "me"], "\"me\" is no peer id"),
        (["--allow", "10.0.0.1/8"], "is no network"),
        (["--allow", "@/dev/null"], "@/dev/null lists nobody"),
        (["--deny", "@/no/such/file"], "/no/such/file cannot be read"),
        (
            ["--max-sessions-per-peer", "0"],
            "expected a whole number from 1 on, got \"0\"",
        ),
        (
            ["--max-tokens-per-peer", "1k"],
            "expected a whole number from 1 on, got \"1k\"",
        ),
        (["--max-cache-per-peer", "0%"], "a percentage from above 0 to 100"),
    ] {
        let error = parse(&args).unwrap_err();
        assert!(error.contains(args[0]) && error.contains(says), "{error}");
    }
}

#[test]
fn the_log_says_what_the_hours_are_and_until_when() {
    let nights: Hours = "mon-fri 18:00-08:00".parse().unwrap();
    // A Monday.
    let at = |hour: i8| date(2026, 6, 1).at(hour, 0, 0, 0).to_zoned(TimeZone::UTC).unwrap();
    let said = |hours: &Hours, now: &Zoned| said(&hours.at(now), now);
    assert_eq!(said(&nights, &at(12)), "paused by the schedule until Mon 18:00");
    assert_eq!(
        said(&nights, &at(19)),
        "the schedule lets new sessions in until Tue 08:00"
    );
    let always: Hours = "daily".parse().unwrap();
    assert_eq!(said(&always, &at(12)), "the schedule lets new sessions in");
}
