//! Real power cuts: a virtual machine that lends a disk whose cache is volatile, and is killed.

pub mod disk;
pub mod guest;
