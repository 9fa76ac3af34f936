//! The HTTP side over real HTTP, with a scripted core behind it.

mod document;
mod ends;
mod garbage;
mod requests;
