//! A machine in memory for the tests: doors with virtual time, lenders that can be told to misbehave, a manager, and volumes of
//! every usage way on them.

pub(crate) mod damage;
pub(crate) mod doors;
pub(crate) mod lender;
pub(crate) mod manager;
pub(crate) mod regions;
pub(crate) mod world;
