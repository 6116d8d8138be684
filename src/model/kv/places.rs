//! The rows of a batch in another order, of which some are taken several times and others not at all (Petals' `hypo_ids`):
//! each row moves to a place where it is wanted, and only what is wanted elsewhere too is copied, over what nobody wants.

/// How to bring rows into another order.
#[derive(Debug)]
pub(super) struct Places {
    /// Pairs of places whose rows change places, one after the other.
    swaps: Vec<(usize, usize)>,
    /// After that: from which place to which there is something to copy.
    copies: Vec<(usize, usize)>,
}

impl Places {
    /// Row `i` is to be what row `rows[i]` was; each is less than there are rows.
    pub(super) fn of(rows: &[usize]) -> Self {
        // Where each row moves to: best not at all.
        let mut new_places = vec![None; rows.len()];
        for (i, row) in rows.iter().enumerate().filter(|(i, row)| i == *row) {
            new_places[*row] = Some(i);
        }
        for (i, row) in rows.iter().enumerate() {
            new_places[*row].get_or_insert(i);
        }
        let mut moved = Self {
            swaps: Vec::new(),
            copies: Vec::new(),
        };
        let mut unwanted = (0..rows.len()).filter(|row| new_places[*row].is_none());
        // Which row is in which place, and the other way round.
        let mut row_at: Vec<usize> = (0..rows.len()).collect();
        let mut place_of = row_at.clone();
        for (i, row) in rows.iter().enumerate() {
            let mut row = *row;
            if let Some(place) = new_places[row].filter(|place| *place != i) {
                moved.copies.push((place, i));
                // There are as many of these as of places beyond the first of a row.
                row = unwanted.next().unwrap_or(row);
            }
            let place = place_of[row];
            if place != i {
                moved.swaps.push((i, place));
                row_at.swap(i, place);
                place_of[row_at[place]] = place;
                place_of[row] = i;
            }
        }
        moved
    }

    /// Brings `rows` into the order. `copy` makes its second argument what the first one is.
    pub(super) fn apply<T>(&self, rows: &mut [T], mut copy: impl FnMut(&T, &mut T)) {
        for (i, j) in &self.swaps {
            rows.swap(*i, *j);
        }
        for (from, to) in &self.copies {
            if let Ok([from, to]) = rows.get_disjoint_mut([*from, *to]) {
                copy(from, to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;
    use crate::model::testing::rng;

    #[test]
    fn any_choice_of_rows_comes_out_and_no_more_are_copied_than_are_wanted_again() {
        let mut rng = rng(1);
        for _ in 0..2000 {
            let n = rng.random_range(1..9);
            let rows: Vec<usize> = (0..n).map(|_| rng.random_range(0..n)).collect();
            let mut numbers: Vec<usize> = (100..100 + n).collect();
            let mut copied = 0;
            Places::of(&rows).apply(&mut numbers, |from, to| {
                copied += 1;
                *to = *from;
            });
            let expected: Vec<usize> = rows.iter().map(|row| 100 + row).collect();
            assert_eq!(numbers, expected, "{rows:?}");
            let unwanted = (0..n).filter(|row| !rows.contains(row)).count();
            assert_eq!(copied, unwanted);
        }
    }

    #[test]
    fn who_keeps_its_place_does_not_move() {
        let places = Places::of(&[1, 1, 3, 3]);
        assert_eq!(places.copies, [(1, 0), (3, 2)]);
        assert_eq!(places.swaps, []);
        assert_eq!(Places::of(&[0, 2, 1]).swaps, [(1, 2)]);
    }
}
