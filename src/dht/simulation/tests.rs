//! Swarms small enough for a test.

use std::time::Duration;

use super::*;

/// A swarm with so little traffic that it is simulated in seconds without optimisation.
fn quiet(nodes: usize) -> Scenario {
    Scenario {
        nodes,
        measured: Duration::from_secs(60),
        acquainted: true,
        servers: 0.1,
        blocks_per_node: 2,
        announce_period: Duration::from_secs(60),
        read_period: Duration::from_secs(20),
        heartbeat_period: Duration::from_secs(3600),
        ..Scenario::default()
    }
}

#[test]
fn records_are_found_among_a_thousand_nodes_that_come_and_go_and_a_fifth_of_which_is_dead() {
    let report = quiet(1000).run();
    println!("{report:#?}");
    assert!(report.reads > 150 && report.vanished > 5 && report.joined > 5);
    assert!(report.found >= 0.999);
    assert!(
        report.hops.mean < 4.0 && report.hops.p99 <= 8.0,
        "log2(1000/20) is 5.6: searches should not take longer"
    );
    assert!(report.calls.mean < 40.0 && report.messages < 150.0);
}

#[test]
fn the_same_seed_gives_the_same_swarm() {
    let run = |seed| Scenario { seed, ..quiet(40) }.run();
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn a_fit_goes_on_as_the_points_do() {
    let fit = Fit::through([(2.0, 5.0), (4.0, 7.0), (16.0, 11.0)].into_iter());
    assert!((fit.base - 3.0).abs() < 1e-9 && (fit.slope - 2.0).abs() < 1e-9);
    assert!((fit.at(1024.0) - 23.0).abs() < 1e-9);
}

#[test]
fn growth_is_told_as_a_table_and_as_a_picture() {
    let growth = Growth {
        reports: [10, 20].map(|nodes| quiet(nodes).run()).to_vec(),
    };
    assert_eq!(growth.table().lines().count(), 4);
    assert!(growth.extrapolation().contains("not measured"));
    let svg = growth.svg();
    assert!(svg.starts_with("<svg") && !svg.contains("NaN"));
    assert_eq!(svg.matches("<circle").count(), 2 * 4);
}
