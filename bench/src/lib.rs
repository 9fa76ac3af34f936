//! The hot pieces of the data path, each alone: timed by `cargo bench`, counted by `cargo xtask bench --instructions`.

pub mod pieces;
