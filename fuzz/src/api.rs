//! JSON between manager, servers, clients and command line: bodies of requests and answers, lines of control sockets, files that
//! hold them.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sublet_api::Refusal;
use sublet_api::access::{AddPerson, AuditLine, Certified, ChangePerson, CreateToken, Enter, NewToken};
use sublet_api::control::{ClientAnswerLine, ClientRequest, Identity, ServerAnswer, ServerRequest};
use sublet_api::mount::{MountingInformation, SetSeal};
use sublet_api::order::{NumberedOrder, OrderResult};
use sublet_api::rebuild::{AcceptVolume, Forget, ForgetView, Rebuild, RebuildView};
use sublet_api::request::{
    AreaName, Borrow, ChangeLeg, CheckArea, ClientAnswer, ClientReport, ControlTask, CreateVolume, LegAnswer, Mount, Reclaim,
    Rename, Replace, Return, Scrub, ScrubEvery, SetLimits, SetWay, TaskAnswer, Transfer, Unmount,
};
use sublet_api::server::{Poll, PollAnswer, Register, Registered};
use sublet_api::view::{AreaView, EventView, PoolView, ServerView, TableView, TaskView, VolumeView};

/// Reads JSON; what was read is written as JSON that reads the same.
fn again<T: Serialize + DeserializeOwned + PartialEq + Debug>(json: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<T>(json) else { return false };
    let written = serde_json::to_vec(&value).unwrap_or_default();
    match serde_json::from_slice::<T>(&written) {
        Ok(read) => assert_eq!(read, value),
        Err(error) => panic!("{value:?} is not read as it is written: {error}"),
    }
    true
}

type Reader = (&'static str, fn(&[u8]) -> bool, &'static [&'static str]);

macro_rules! readers {
    ($($kind:ident: $($seed:literal),*;)*) => {
        &[$((stringify!($kind), again::<$kind>, &[$($seed),*]),)*]
    };
}

/// By number: the first byte of an input. The texts are what the corpora begin with; `ID` is an id, `EPOCH` an epoch.
const READERS: &[Reader] = readers! {
    Register: r#"{"server":ID,"pool":ID,"name":"s","zone":"r1","addresses":["127.0.0.1:7471","[::1]:9"],"version":"1","run":7}"#;
    Poll: r#"{"run":7,"results":[{"number":1,"run":7,"outcome":{"outcome":"progress","done":1,"total":2}}],"areas":[{"area":ID,"pool":ID,"name":"a1","capacity":16777216,"place":"file","sparse":true,"offline":null,"open":ID,"sequence":3,"slices":[],"history":[ID],"tombstones":[{"volume":ID,"slice":ID,"area":ID,"epoch":EPOCH}]}]}"#, r#"{"run":1}"#;
    PollAnswer: r#"{"orders":[],"register":true,"name":"s","urls":["http://m:7470"],"member":true}"#;
    Registered: r#"{"pool":ID,"manager":ID,"name":"s","urls":[]}"#;
    CreateVolume: r#"{"task":ID,"name":"v","way":"doubled","on":[{"area":"a1","size":4096},{"area":"b1"}],"copies":2}"#;
    SetWay: r#"{"task":ID,"way":"linear","on":[]}"#;
    Borrow: r#"{"task":ID,"server":ID,"name":"v","size":4096,"way":"mirror","copies":2,"local":true,"seal":"AAAA"}"#;
    Mount: r#"{"task":ID,"server":ID,"read_only":true}"#;
    Unmount: r#"{"task":ID,"server":ID,"epoch":EPOCH,"force":true}"#;
    Return: r#"{"task":ID,"server":null,"dissolve":true}"#;
    Transfer: r#"{"task":ID,"to":"server-b","force":false}"#;
    SetLimits: r#"{"bytes_max":5,"volumes_max":null}"#;
    Replace: r#"{"task":ID,"lost":"b","on":"c1"}"#;
    Scrub: r#"{"task":ID,"rate_max":9}"#;
    ScrubEvery: r#"{"seconds":604800}"#;
    ControlTask: r#"{"do":"limit","rate_max":5}"#, r#"{"do":"pause"}"#;
    Reclaim: r#"{"task":ID}"#;
    Rename: r#"{"name":"v2"}"#;
    ClientReport: r#"{"epoch":EPOCH,"path":"open","reason":"","work":[],"findings":[],"hold":true,"segments_revision":4}"#;
    ClientAnswer: r#"{"lenders":[{"server":ID,"addresses":["a:1"],"up":true}],"urls":["http://m"],"work":[]}"#;
    ChangeLeg: r#"{"epoch":EPOCH,"segment":0,"slice":ID,"generation":EPOCH,"change":"in_sync"}"#;
    LegAnswer: r#"{"generation":EPOCH,"in_sync":[true,false]}"#;
    SetSeal: r#"{"server":ID,"from":"AAAA","to":"BBBB"}"#;
    Rebuild: r#"{"pool":ID,"reconcile":true,"finish":false}"#;
    AcceptVolume: r#"{"leg":"a1","stale":true}"#;
    Forget: r#"{"confirm":true}"#;
    CheckArea: r#"{"name":"a1"}"#, r#"{"area":ID,"name":"a1"}"#;
    AreaName: r#"{"name":"a1"}"#;
    TaskAnswer: r#"{"task":{},"outcome":{"is":"running"}}"#;
    MountingInformation: r#"{"version":1,"pool":ID,"manager":ID,"volume":ID,"name":"v","way":"doubled","size":4096,"borrower":ID,"borrower_name":"s","status":1,"read_only":false,"epoch":EPOCH,"secret":ID,"segments":[{"length":4096,"generation":EPOCH,"legs":[{"slice":ID,"area":ID,"area_name":"a1","server":ID,"server_name":"s","addresses":["a:1"],"offset":0,"in_sync":true,"stale_since":EPOCH}]}]}"#;
    NumberedOrder: r#"{"number":1,"run":7,"order":{"do":"fence","slice":ID,"area":ID,"epoch":EPOCH}}"#;
    OrderResult: r#"{"number":1,"run":7,"outcome":{"outcome":"done"}}"#;
    Refusal: r#"{"kind":"no_space","message":"no","hint":"do"}"#;
    Identity: r#"{"version":1,"server":ID,"name":"s","pool":ID,"managers":["http://m"]}"#;
    ServerRequest: r#"{"ask":"status"}"#, r#"{"ask":"lend","paths":["/srv"],"size":1,"offset":null,"name":"a","sparse":true,"keep_free_percent":10,"force":false}"#;
    ServerAnswer: r#"{"answer":"progress","what":"x","done":1,"total":2}"#, r#"{"answer":"suggestions","suggestions":[{"path":"/","kind":"disk","surplus":1,"command":"","note":""}]}"#;
    ClientRequest: r#"{"ask":"search","pattern_hex":"00ff","limit":3,"count_only":false}"#, r#"{"ask":"rekey","old":"a","new":"b"}"#, r#"{"ask":"stop","force":true}"#;
    ClientAnswerLine: r#"{"answer":"matches","offsets":[1,18446744073709551615]}"#, r#"{"answer":"status","path":"open","reason":"","missing":["b"],"device":null,"resync":[1,2]}"#;
    RebuildView: "{}";
    ForgetView: "{}";
    PoolView: "{}";
    TableView: "{}";
    ServerView: "{}";
    AreaView: r#"{"id":ID,"name":"a1","server":"s","server_id":ID,"place":"","capacity":1,"free":1,"free_stretch":1,"sparse":true,"state":"online","slices":[{"id":ID,"offset":0,"length":1,"volume":"v","state":"lent"}]}"#;
    VolumeView: "{}";
    TaskView: "{}";
    EventView: r#"{"number":1,"at_ms":2,"subject":"v","text":"x"}"#;
    CreateToken: r#"{"what":{"use":"api","role":"viewer","name":"watch"},"ttl_s":60,"uses":1}"#, r#"{"what":{"use":"join"},"ttl_s":60}"#;
    NewToken: r#"{"token":{"id":ID,"what":{"use":"login","person":"olga"},"made_by":"x","made_ms":1,"expires_ms":2,"uses_left":1},"text":"t"}"#;
    Enter: r#"{"entry":"rejoin","secret":"AAAA","request":"PEM","server":ID}"#;
    Certified: r#"{"pool":ID,"authority":"PEM","certificate":"PEM","managers":["https://m"]}"#;
    AddPerson: r#"{"name":"olga","role":"operator"}"#;
    ChangePerson: r#"{"do":"role","role":"administrator"}"#, r#"{"do":"remove"}"#;
    AuditLine: r#"{"at_ms":1,"who":"olga (operator)","from":"::1","what":"borrow","subject":"v","result":"done"}"#;
};

/// A byte that says which message, and its JSON.
pub fn messages(input: &[u8]) -> bool {
    let Some((which, json)) = input.split_first() else { return false };
    READERS.get(usize::from(*which) % READERS.len()).is_some_and(|(_, read, _)| read(json))
}

pub fn seeds() -> Vec<Vec<u8>> {
    const ID: &str = "\"0123456789abcdef0123456789abcdef\"";
    const EPOCH: &str = r#"{"number":7,"random":"00000000000000000000000000000009"}"#;
    let numbered = READERS.iter().zip(0u8..);
    let seed = |which: u8, text: &str| [&[which][..], text.replace("EPOCH", EPOCH).replace("ID", ID).as_bytes()].concat();
    numbered.flat_map(|((_, _, seeds), which)| seeds.iter().map(move |text| seed(which, text))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Views are asked for and read by the command line only; they begin with nothing.
    const BEGIN_WITH_NOTHING: &[&str] =
        &["TaskAnswer", "RebuildView", "ForgetView", "PoolView", "TableView", "ServerView", "VolumeView", "TaskView"];

    #[test]
    fn every_message_has_a_seed_that_it_is() {
        let taken: Vec<u8> = seeds().iter().filter(|seed| messages(seed)).filter_map(|seed| seed.first().copied()).collect();
        for (which, (name, ..)) in (0u8..).zip(READERS) {
            assert!(taken.contains(&which) || BEGIN_WITH_NOTHING.contains(name), "{name}");
        }
    }
}
