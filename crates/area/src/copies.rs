//! Structures in two copies (L1): one is durable before the other is begun, and the highest valid sequence wins.

use sublet_doors::{Buffer, Chunk, DiskFile};
use sublet_types::mutation::{self, Mutation};

use crate::envelope::{Kind, Sealed, judge, length_of};
use crate::error::{AreaError, AreaErrorKind};

/// The winning copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Winner {
    pub bytes: Vec<u8>,
    pub sequence: u64,
    /// The copy to write first next time: the other one, so that a torn write never destroys the only good copy.
    pub write_first: usize,
    /// The other copy is damaged, or holds an older state.
    pub alone: bool,
}

/// One copy, judged.
struct Copy {
    state: Sealed,
    bytes: Vec<u8>,
    why: String,
}

async fn read_copy<F: DiskFile>(file: &F, at: u64, kind: Kind) -> Copy {
    let read = async |length: usize| {
        let (result, buffer) = file.read_at(at, Buffer::new(length), 0..length).await;
        result.map(|()| buffer.to_vec())
    };
    let bytes = match read(4096).await {
        Ok(head) => match length_of(&head, kind) {
            Some(length) if length > head.len() => read(length).await,
            _ => Ok(head),
        },
        Err(error) => Err(error),
    };
    match bytes {
        Ok(bytes) => Copy { state: judge(&bytes, kind), bytes, why: "its checksum is wrong".to_owned() },
        // Behind the end of the file there is nothing.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Copy { state: Sealed::Absent, bytes: Vec::new(), why: "the file ends before it".to_owned() }
        }
        // A sector that cannot be read is a damaged copy: the other one may still serve.
        Err(error) => Copy { state: Sealed::Damaged, bytes: Vec::new(), why: error.to_string() },
    }
}

/// Reads both copies; none if there is no such structure. `name` names the file in messages.
pub(crate) async fn read_both<F: DiskFile>(file: &F, at: [u64; 2], kind: Kind, name: &str) -> Result<Option<Winner>, AreaError> {
    let copies = [read_copy(file, at[0], kind).await, read_copy(file, at[1], kind).await];
    choose(copies, kind, name)
}

fn choose(copies: [Copy; 2], kind: Kind, name: &str) -> Result<Option<Winner>, AreaError> {
    let what = kind.what;
    if let Some(Sealed::Newer(version)) = copies.iter().map(|c| &c.state).find(|state| matches!(state, Sealed::Newer(_))) {
        return Err(AreaError::new(
            AreaErrorKind::Format,
            format!(
                "the {what} of {name} was written by a newer Sublet (format version {version}, or with features unknown here)"
            ),
        )
        .hint("use a Sublet of that version or later"));
    }
    let [a, b] = copies;
    let states = (a.state.clone(), b.state.clone());
    let (index, winner, other, sequence) = match states {
        (Sealed::Whole(first), Sealed::Whole(second)) if (second > first) != mutation::is(Mutation::OlderLabelCounts) => {
            (1, b, a, second)
        }
        (Sealed::Whole(first), _) => (0, a, b, first),
        (_, Sealed::Whole(second)) => (1, b, a, second),
        (Sealed::Absent, Sealed::Absent) => return Ok(None),
        _ => {
            let why = if a.state == Sealed::Damaged { a.why } else { b.why };
            return Err(AreaError::new(AreaErrorKind::Format, format!("both copies of the {what} of {name} are damaged: {why}"))
                .hint("restore the disk from a copy; nothing on it is touched"));
        }
    };
    let alone = other.state != Sealed::Whole(sequence);
    if alone {
        tracing::warn!(
            "copy {} of the {what} of {name} is {}: the other one counts",
            ["B", "A"][index],
            match other.state {
                Sealed::Whole(_) => "older".to_owned(),
                _ => format!("damaged ({})", other.why),
            }
        );
    }
    let write_first = if alone { 1 - index } else { 0 };
    Ok(Some(Winner { bytes: winner.bytes, sequence, write_first, alone }))
}

/// A copy that could not be written: it may be damaged now.
#[derive(Debug)]
pub(crate) struct CopyFailed {
    /// Which one.
    pub copy: usize,
    pub error: std::io::Error,
}

/// Writes both copies, `first` durable before the other is begun. Answered only when both are durable.
pub(crate) async fn write_both<F: DiskFile>(file: &F, at: [u64; 2], bytes: &[u8], first: usize) -> Result<(), CopyFailed> {
    write_copies(
        async |at, chunk| {
            file.write_at(at, chunk).await?;
            file.sync().await
        },
        at,
        bytes,
        first,
    )
    .await
}

/// As [`write_both`]; `write` makes a copy durable.
pub(crate) async fn write_copies(
    write: impl AsyncFn(u64, Chunk) -> std::io::Result<()>,
    at: [u64; 2],
    bytes: &[u8],
    first: usize,
) -> Result<(), CopyFailed> {
    let chunk: Chunk = Buffer::copy_of(bytes).freeze();
    let order = if first == 0 { [(0, at[0]), (1, at[1])] } else { [(1, at[1]), (0, at[0])] };
    let copies = if mutation::is(Mutation::OlderLabelCounts) { 1 } else { order.len() };
    for (copy, at) in order.into_iter().take(copies) {
        write(at, chunk.clone()).await.map_err(|error| CopyFailed { copy, error })?;
    }
    Ok(())
}
