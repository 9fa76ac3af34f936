//! Names and ids in paths, and queries.

use std::fmt::Display;
use std::str::FromStr;

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use sublet_types::Name;

use super::answer::{Answer, bad_request};

/// The one variable part of a path, read as a `T`.
#[derive(Debug)]
pub(crate) struct It<T>(pub(crate) T);

impl<S: Send + Sync, T: FromStr<Err: Display>> FromRequestParts<S> for It<T> {
    type Rejection = Answer;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Answer> {
        let Path(text) =
            Path::<String>::from_request_parts(parts, state).await.map_err(|error| bad_request(error.body_text()))?;
        text.parse().map(Self).map_err(|error: T::Err| bad_request(error.to_string()))
    }
}

/// A name or an id, as the core takes it: which of the two, only the table can tell (an id is a legal name, too).
#[derive(Debug)]
pub(crate) struct NameOrId(pub(crate) String);

impl FromStr for NameOrId {
    type Err = <Name as FromStr>::Err;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<Name>().map(|name| Self(name.to_string()))
    }
}

/// A query, read as a `T`.
#[derive(Debug)]
pub(crate) struct Asked<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Answer;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Answer> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(it)| Self(it)).map_err(|error| bad_request(error.body_text()))
    }
}
