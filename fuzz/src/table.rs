//! The manager's table: rows as they are stored, and the document that `manager import` reads. The store's own file is redb's.

use serde::Serialize;
use sublet_api::access::{Role, TokenUse};
use sublet_table::records::{
    AbsentLeg, AdmissionRow, AreaRow, BackgroundRow, BackgroundState, Command, EventRow, Former, FrozenUntil, LastChange,
    LeaseRow, LeaseState, LegRow, Pending, PersonRow, PoolRow, ROW_VERSION, RebuildRow, ReplacedLeg, Row, RowError, SegmentRow,
    ServerRow, Step, Stranger, TaskRow, TaskState, TokenRow, VolumeRow, WipeRow, WorkRow,
};
use sublet_table::store::{Loaded, RawRow, RowOp};
use sublet_table::{Core, MemoryStore, Outside, Store, check, document as documents};
use sublet_types::{
    AreaId, Epoch, Generation, LeaseSecret, ManagerId, Name, OpenId, PersonId, PoolId, ServerId, SliceId, TaskId, TokenId,
    VolumeId, Way,
};

/// A key, the end of its line, and the row. What is read is stored as something that reads the same.
pub fn rows(input: &[u8]) -> bool {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (key, json) = (&input[..end], input.get(end + 1..).unwrap_or_default());
    let Ok(key) = std::str::from_utf8(key) else { return false };
    let raw = RawRow { key: key.to_owned(), json: json.to_vec() };
    let row = match Row::decode(&raw) {
        Ok(row) => row,
        Err(RowError::Newer(version)) => {
            assert!(version > ROW_VERSION);
            return false;
        }
        Err(RowError::Damaged(why)) => {
            assert!(!why.is_empty());
            return false;
        }
    };
    assert_eq!(row.key().text(), raw.key);
    let stored = match row.encode() {
        Ok(stored) => stored,
        Err(error) => panic!("{row:?} cannot be stored: {error}"),
    };
    assert_eq!(stored.key, raw.key);
    assert_eq!(Row::decode(&stored).as_ref(), Ok(&row));
    true
}

/// A document. What is taken is written as a document that is taken as the same table; it can be checked, and a manager starts
/// with it or says why not.
pub fn document(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let mut store = MemoryStore::new();
    let Ok(many) = documents::read(text, &mut store) else {
        assert!(store.load().is_ok_and(|loaded| loaded == Loaded::default()), "a refused document left something behind");
        return false;
    };
    let Ok(loaded) = store.load() else { return false };
    assert!(loaded.rows.len() <= many && loaded.revision > 0);
    let Ok(written) = documents::write(&loaded) else { panic!("what was read cannot be written") };
    let mut again = MemoryStore::new();
    assert!(documents::read(&written, &mut again).is_ok(), "what was written is not read");
    let reread = again.load().unwrap_or_default();
    assert!(reread.revision == loaded.revision && same(&reread.rows, &loaded.rows), "what was written reads otherwise");
    let findings = check::check(&loaded);
    assert!(findings.iter().all(|finding| !finding.is_empty()));
    let mut next = 0;
    let mut random = || {
        next += 1;
        next
    };
    let _ = Core::load(store, &mut Outside { now_ms: 1, random: &mut random }, Vec::new());
    true
}

/// The same rows. Numbers that are no integers are left out: no row of a table has any, and the JSON library reads and writes them
/// with the last digit changed now and then.
fn same(some: &[RawRow], others: &[RawRow]) -> bool {
    let value = |row: &RawRow| {
        let value = serde_json::from_slice::<serde_json::Value>(&row.json);
        value.map(without_floats).map_err(|_| row.json.clone())
    };
    some.len() == others.len() && some.iter().zip(others).all(|(a, b)| a.key == b.key && value(a) == value(b))
}

fn without_floats(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Number(number) if number.is_f64() => Value::Null,
        Value::Array(values) => values.into_iter().map(without_floats).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, without_floats(value))).collect(),
        other => other,
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap_or_else(|_| Name::unknown())
}

const EPOCH: Epoch = Epoch { number: 4, random: 5 };
const GENERATION: Generation = Generation { number: 2, random: 6 };
const SERVER: ServerId = ServerId::from_u128(0x5e);
const AREA: AreaId = AreaId::from_u128(0xa1);
const SLICE: SliceId = SliceId::from_u128(0x51);
const REGION: u64 = 4 << 20;

fn leg(number: u128) -> LegRow {
    LegRow {
        slice: SliceId::from_u128(SLICE.to_u128() + number),
        area: AREA,
        offset: number as u64 * REGION,
        length: REGION,
        in_sync: number == 0,
        confirmed: 4,
        fresh: false,
        stale_since: (number > 0).then_some(GENERATION),
    }
}

fn volume(id: u128, is_busy: bool) -> VolumeRow {
    let change = sublet_api::request::LegChange::Stale;
    let last = LastChange { change, slice: SLICE, epoch: EPOCH, before: GENERATION, after: GENERATION };
    let background = BackgroundRow {
        epoch: EPOCH,
        secret: LeaseSecret::from_u128(1),
        coordinator: SERVER,
        state: BackgroundState::Active,
        since_ms: 9,
    };
    VolumeRow {
        version: ROW_VERSION,
        id: VolumeId::from_u128(id),
        name: name(if is_busy { "busy" } else { "vol-1" }),
        way: Way::Doubled,
        size: REGION,
        defined: is_busy,
        borrower: Some(SERVER),
        sealed: is_busy,
        seal: "AAAA".parse().ok().filter(|_| is_busy),
        epoch: EPOCH,
        lease: is_busy.then(|| LeaseRow {
            epoch: EPOCH,
            secret: LeaseSecret::from_u128(7),
            read_only: false,
            state: LeaseState::Active,
            was_mounted: true,
        }),
        segments: vec![SegmentRow {
            length: REGION,
            generation: GENERATION,
            issued: 3,
            pending: is_busy.then_some(Pending { generation: GENERATION, slice: SLICE, base: GENERATION }),
            last: is_busy.then_some(last),
            legs: vec![leg(0), leg(1)],
        }],
        task: None,
        frozen: is_busy.then(|| "it waits".to_owned()),
        frozen_until: if is_busy { FrozenUntil::Accepted(AREA) } else { FrozenUntil::Decided },
        path: Default::default(),
        epoch_floor: 9,
        unsettled: false,
        absent: vec![AbsentLeg { segment: 0, leg: 1, place: String::new() }],
        copies: 2,
        work: WorkRow { background: (!is_busy).then_some(background), scrub_every_s: Some(60), ..WorkRow::default() },
    }
}

fn task(number: u128, command: Command, step: Step) -> Row {
    Row::Task(Box::new(TaskRow {
        version: ROW_VERSION,
        id: TaskId::from_u128(number),
        command,
        subject: "vol-1".to_owned(),
        volume: Some(VolumeId::from_u128(1)),
        area: Some(AREA),
        step,
        state: TaskState::Running,
        reason: String::new(),
        total: 5,
        started_ms: 6,
        ended_ms: 0,
        outcome: None,
        rate_max: 7,
        is_paused: false,
        done: 1,
    }))
}

/// One row of each kind, and more of those that have many forms.
fn examples() -> Vec<Row> {
    let version = ROW_VERSION;
    let rebuild = Some(RebuildRow { since_ms: 4, reconcile: true });
    let stranger = Stranger { slice: SLICE, volume: VolumeId::from_u128(9), offset: 3 * REGION, length: REGION };
    let former = Former { segment: 0, leg: 1, issued: 3 };
    let replaced = ReplacedLeg { old: SLICE, new: None, segment: Some(0) };
    vec![
        Row::Pool(PoolRow { version, pool: PoolId::from_u128(1), manager: ManagerId::from_u128(2), rebuild }),
        Row::Server(ServerRow {
            version,
            id: SERVER,
            name: name("server-a"),
            zone: "r1".to_owned(),
            addresses: vec![sublet_types::Address::new("::1", 7471)],
            software: "1".to_owned(),
            left: false,
            bytes_max: Some(5),
            volumes_max: None,
        }),
        Row::Area(AreaRow {
            version,
            id: AREA,
            server: SERVER,
            name: name("a1"),
            capacity: 8 * REGION,
            place: "a file".to_owned(),
            sparse: false,
            offline: None,
            open: Some(OpenId::from_u128(3)),
            sequence: 12,
            reclaiming: false,
            strangers: vec![stranger],
            quarantined: None,
            accepted: Some("it was restored".to_owned()),
        }),
        Row::Volume(Box::new(volume(1, false))),
        Row::Volume(Box::new(volume(2, true))),
        Row::Wipe(WipeRow {
            version,
            slice: SliceId::from_u128(0x77),
            area: AREA,
            offset: 4 * REGION,
            length: REGION,
            volume: VolumeId::from_u128(3),
            name: name("gone"),
            epoch: EPOCH,
            drop: true,
            replaced: true,
            held_by: Some(EPOCH),
            was: Some(former),
        }),
        task(1, Command::Mount { server: SERVER }, Step::Opening),
        task(2, Command::Unmount { force: true }, Step::Fencing { closed: EPOCH, holder: "server-a".to_owned() }),
        task(3, Command::Replace { legs: vec![replaced], on: Some(AREA) }, Step::Working),
        task(4, Command::Scrub { scheduled: true }, Step::Ended),
        Row::Person(PersonRow {
            version,
            id: PersonId::from_u128(9),
            name: name("olga"),
            role: Role::Operator,
            certified_from_ms: 1,
            entered_ms: Some(2),
        }),
        Row::Token(TokenRow {
            version,
            id: TokenId::from_u128(10),
            digest: "00".repeat(32),
            what: TokenUse::Api { role: Role::Viewer, name: name("watch") },
            made_by: "olga (administrator)".to_owned(),
            made_ms: 1,
            expires_ms: 2,
            uses_left: 1,
            used_for: vec!["11".repeat(32)],
        }),
        Row::Admission(AdmissionRow { version, server: SERVER, certified_from_ms: 1, revoked: true }),
        Row::Event(EventRow { version, number: 7, at_ms: 1, subject: "vol-1".to_owned(), text: "x".to_owned() }),
    ]
}

pub fn row_seeds() -> Vec<Vec<u8>> {
    let stored = examples().into_iter().filter_map(|row| row.encode().ok());
    stored.map(|raw| [raw.key.as_bytes(), b"\n", &raw.json].concat()).collect()
}

pub fn document_seeds() -> Vec<Vec<u8>> {
    #[derive(Serialize)]
    struct Entry {
        key: String,
        bytes: String,
    }
    let rows: Vec<RawRow> = examples().iter().filter_map(|row| row.encode().ok()).collect();
    let of = |rows: &[RawRow]| {
        let mut store = MemoryStore::new();
        let ops: Vec<RowOp> = rows.iter().cloned().map(RowOp::Put).collect();
        assert!(store.commit(0, &ops).is_ok());
        store.load().ok().and_then(|loaded| documents::write(&loaded).ok()).unwrap_or_default().into_bytes()
    };
    let aside = Entry { key: "damaged/volume/zz".to_owned(), bytes: "ff00".to_owned() };
    let aside = serde_json::to_string(&aside).unwrap_or_default();
    let by_hand =
        format!(r#"{{"kind":"sublet table","version":1,"revision":77,"rows":[{aside},{{"key":"volume/1","row":{{}}}}]}}"#);
    let parts = rows.chunks(4).map(of);
    std::iter::once(of(&rows)).chain(parts).chain([by_hand.into_bytes()]).collect()
}
