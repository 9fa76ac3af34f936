//! Which writes are likely to be followed by a flush, because those before were.
//!
//! A journal is written record by record, each made durable before the next one: a write, a flush, a write, a flush. Sent as that, each
//! record takes two trips to the lenders, one after the other. If a write is likely to be the only one before a flush, it is
//! sent as one that is durable at once (FUA), in one trip, and the flush finds nothing left to be done. A wrong guess costs the
//! time of one flush; the promise is the same or more (W1).
//!
//! File systems have longer patterns (a few blocks, a flush, one block, a flush), so what is learned is what follows a stretch
//! of so many changes. Pure data.

use sublet_types::drawn::{self, Drawn};

/// A guess has to have been right so often in a row before anything is done about it.
const RIGHT_MIN: u64 = 3;
/// Stretches of one, of two, and of more changes.
const KINDS: usize = 3;

/// See the module.
pub(crate) struct Habit {
    right_min: u64,
    /// How often in a row a stretch of this kind was followed by one of a single write.
    right: [u64; KINDS],
    /// The kind of the last stretch.
    last: usize,
    /// Changes since the last flush,
    changes: usize,
    /// which are a single one, begun when nothing else was under way;
    alone: bool,
    /// and those under way.
    under_way: usize,
}

impl Habit {
    pub(crate) fn new() -> Self {
        let right_min = drawn::limit(Drawn::HabitRight, RIGHT_MIN);
        Self { right_min, right: [0; KINDS], last: 0, changes: 0, alone: false, under_way: 0 }
    }

    /// A change is begun. True if a flush is likely to follow it before any other one.
    pub(crate) fn begin(&mut self) -> bool {
        self.alone = self.changes == 0 && self.under_way == 0;
        self.changes += 1;
        self.under_way += 1;
        self.alone && self.right.get(self.last).is_some_and(|right| *right >= self.right_min)
    }

    /// It has ended.
    pub(crate) fn end(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// A flush is asked for.
    pub(crate) fn flush(&mut self) {
        if self.changes == 0 {
            return;
        }
        if let Some(right) = self.right.get_mut(self.last) {
            *right = if self.alone && self.under_way == 0 { right.saturating_add(1) } else { 0 };
        }
        self.last = self.changes.min(KINDS) - 1;
        self.changes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stretches of so many changes, one after the other, each with a flush at its end: which changes were foreseen.
    fn stretches(habit: &mut Habit, lengths: &[usize]) -> Vec<bool> {
        let mut foreseen = Vec::new();
        for length in lengths {
            for _ in 0..*length {
                foreseen.push(habit.begin());
                habit.end();
            }
            habit.flush();
        }
        foreseen
    }

    #[test]
    fn a_flush_after_each_write_is_foreseen_after_a_few_and_one_wrong_guess_ends_it() {
        let mut habit = Habit::new();
        assert_eq!(stretches(&mut habit, &[1; 5]), [false, false, false, true, true]);
        // The second change of this stretch shows that the first guess was wrong.
        assert_eq!(stretches(&mut habit, &[2, 1, 1, 1, 1]), [true, false, false, false, false, false]);
        // A flush without any change says nothing.
        habit.flush();
        assert_eq!(stretches(&mut habit, &[1, 1]), [true, true]);
    }

    #[test]
    fn what_follows_a_longer_stretch_is_learned_by_itself() {
        let mut habit = Habit::new();
        stretches(&mut habit, &[5, 1, 4, 1, 9, 1]);
        assert_eq!(stretches(&mut habit, &[4, 1, 7, 1]), [vec![false; 4], vec![true], vec![false; 7], vec![true]].concat());
    }

    #[test]
    fn changes_at_the_same_time_are_never_foreseen_to_be_alone() {
        let mut habit = Habit::new();
        stretches(&mut habit, &[1; 5]);
        // One is still under way when the flush comes: it is not covered.
        assert!(habit.begin());
        habit.flush();
        assert!(!habit.begin(), "another one is under way");
        habit.end();
        habit.end();
        habit.flush();
        assert_eq!(stretches(&mut habit, &[1; 3]), [false; 3]);
    }
}
