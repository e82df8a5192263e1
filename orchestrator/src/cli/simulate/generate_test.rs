//! Generated traces: repeated by their seed, and of the size that they should have.

use super::*;

#[test]
fn a_seed_gives_one_trace() {
    let (first, again, other) = (generate(20, 3), generate(20, 3), generate(20, 4));
    assert_eq!(
        (&first.types, &first.arrivals),
        (&again.types, &again.arrivals)
    );
    assert_ne!(first.arrivals, other.arrivals);
}

#[test]
fn more_is_asked_for_at_the_end_than_there_is() {
    let trace = generate(200, 1);
    assert!(trace.arrivals.is_sorted_by(|a, b| a.start <= b.start));
    let taken = |day: f64, of: fn(&Type) -> f64| {
        let there = trace
            .arrivals
            .iter()
            .filter(|a| a.start <= day && a.end.is_none_or(|end| end > day));
        there
            .map(|arrival| of(&trace.types[arrival.size]))
            .sum::<f64>()
            / 200.0
    };
    let ends = [taken(DAYS, |t| t.core), taken(DAYS, |t| t.memory)];
    let begins = [taken(0.0, |t| t.core), taken(0.0, |t| t.memory)];
    // Within what chance does to so few.
    assert!(
        ends.iter().all(|share| (1.0..1.35).contains(share)),
        "{ends:?}"
    );
    assert!(
        begins.iter().all(|share| (0.5..0.7).contains(share)),
        "{begins:?}"
    );
}
