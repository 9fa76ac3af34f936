//! Requests and answers in a few words, for the trace.

use sublet_api::request::Request;

/// What is asked, in a line that is not too long.
pub fn request(request: &Request) -> String {
    let mut text = format!("{request:?}");
    let limit = if matches!(request, Request::Poll { .. }) { 400 } else { 600 };
    if text.len() > limit {
        let end = (0..=limit).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    text
}
