//! Placement: where the slices of a new volume go. Pure: from rooms and a wish to a layout, or a refusal that says what is missing.

use std::collections::{BTreeMap, BTreeSet};

use sublet_api::{ErrorKind, Refusal};
use sublet_types::limits::{BLOCK_SIZE, COPIES_MAX, REGION_SIZE, SEGMENTS_MAX, SIZE_MAX};
use sublet_types::{AreaId, ByteSize, Name, ServerId, Way};

use crate::table::{Stretch, Table};

/// The room in one area that may be used.
#[derive(Clone, Debug)]
pub struct Room {
    /// The area.
    pub area: AreaId,
    /// Its name, which breaks ties so that placement is repeatable.
    pub name: Name,
    /// The lender.
    pub server: ServerId,
    /// The lender's failure zone; empty counts as a zone of its own.
    pub zone: String,
    /// Nobody has a slice in it.
    pub unused: bool,
    /// The free stretches.
    pub stretches: Vec<Stretch>,
}

/// All the room there is, and why there is not more.
#[derive(Clone, Debug, Default)]
pub struct Rooms {
    /// Areas that may be used.
    pub rooms: Vec<Room>,
    /// What was left out, for refusals.
    pub left_out: Vec<String>,
}

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Bytes.
    pub size: u64,
    /// The usage way; none takes the simplest that fits.
    pub way: Option<Way>,
    /// Copies on different servers.
    pub copies: usize,
}

/// Where one leg goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spot {
    /// The area.
    pub area: AreaId,
    /// Where in it, in bytes.
    pub offset: u64,
    /// How much of it, in bytes (whole regions).
    pub length: u64,
}

/// One segment of a layout.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Planned {
    /// Length in bytes (a multiple of 4 KiB).
    pub length: u64,
    /// One spot a leg.
    pub legs: Vec<Spot>,
}

/// A placed volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// The way that it turned out to be.
    pub way: Way,
    /// The segments.
    pub segments: Vec<Planned>,
}

impl Layout {
    /// The size of the volume in bytes.
    pub fn size(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
    }
}

/// The room on servers that answer, without areas that are offline, being reclaimed, or the borrower's own.
pub fn rooms(table: &Table, reachable: &BTreeSet<ServerId>, avoid: Option<ServerId>) -> Rooms {
    let (mut found, mut lost, mut offline, mut own) = (Rooms::default(), 0u32, 0u32, 0u32);
    for area in table.areas.values().filter(|area| !area.reclaiming) {
        if avoid == Some(area.server) {
            own += 1;
        } else if !reachable.contains(&area.server) {
            lost += 1;
        } else if area.offline.is_some() {
            offline += 1;
        } else if let Some(server) = table.member(area.server) {
            found.rooms.push(Room {
                area: area.id,
                name: area.name.clone(),
                server: area.server,
                zone: server.zone.clone(),
                unused: table.taken(area.id).is_empty(),
                stretches: table.free_stretches(area.id),
            });
        }
    }
    found.rooms.sort_by(|a, b| a.name.cmp(&b.name));
    let notes =
        [(own, "of the borrower itself (--local allows them)"), (lost, "of servers that do not answer"), (offline, "offline")];
    for (count, what) in notes.into_iter().filter(|(count, _)| *count > 0) {
        found.left_out.push(format!("{count} area{} {what}", if count == 1 { "" } else { "s" }));
    }
    found
}

/// Checks and rounds an asked size.
///
/// # Errors
/// [`ErrorKind::BadRequest`] for 0 and for more than a volume can have.
pub fn rounded(size: u64) -> Result<u64, Refusal> {
    if size == 0 || size > SIZE_MAX {
        let text = format!("a volume of {size} bytes cannot be made: it needs 1 to {SIZE_MAX} bytes");
        return Err(Refusal::new(ErrorKind::BadRequest, text).hint("give --size, for example 10G"));
    }
    Ok(size.next_multiple_of(BLOCK_SIZE))
}

/// Checks way and copies against each other; the answer is the way, if any was asked for, and the number of copies.
///
/// # Errors
/// [`ErrorKind::BadRequest`].
pub fn way_and_copies(way: Option<Way>, copies: Option<u32>) -> Result<(Option<Way>, usize), Refusal> {
    let count = copies.map_or(if way == Some(Way::Doubled) { 2 } else { 1 }, |copies| copies as usize);
    let bad = |text: String| Err(Refusal::new(ErrorKind::BadRequest, text));
    match way {
        _ if count == 0 || count > COPIES_MAX => bad(format!("{count} copies cannot be made: use 1 to {COPIES_MAX}")),
        Some(Way::Doubled) if count < 2 => bad("a doubled volume has at least 2 copies".to_owned()),
        Some(way) if way != Way::Doubled && count > 1 => {
            bad(format!("{count} copies make a doubled volume, not a {way} one; leave out the way, or say doubled"))
        }
        None if count > 1 => Ok((Some(Way::Doubled), count)),
        way => Ok((way, count)),
    }
}

/// Finds a place.
///
/// # Errors
/// [`ErrorKind::NoSpace`], saying how much is missing and on how many servers; [`ErrorKind::BadRequest`] for sizes that a way cannot have.
pub fn place(rooms: &Rooms, wanted: Wanted) -> Result<Layout, Refusal> {
    let size = rounded(wanted.size)?;
    let need = size.next_multiple_of(REGION_SIZE);
    let layout = match wanted.way {
        Some(Way::Single) => single(rooms, need).map(|spot| one(Way::Single, size, vec![spot])),
        Some(Way::Divided) => best_fit(rooms, need, 1).map(|legs| one(Way::Divided, size, legs)),
        Some(Way::Doubled) => doubled(rooms, size, need, wanted.copies),
        Some(Way::Integrated) => integrated(rooms, size)?,
        None => exact(rooms, need)
            .map(|spot| one(Way::Single, size, vec![spot]))
            .or_else(|| best_fit(rooms, need, 1).map(|legs| one(Way::Divided, size, legs)))
            .or_else(|| wrapped(rooms, size, 1, by_server).map(|segments| Layout { way: Way::Integrated, segments })),
    };
    let layout = layout.ok_or_else(|| no_space(rooms, size, wanted))?;
    if layout.segments.len() > SEGMENTS_MAX {
        let text = format!("the free space is in so small parts that the volume would have {} segments", layout.segments.len());
        return Err(Refusal::new(ErrorKind::NoSpace, format!("{text}; {SEGMENTS_MAX} are possible")).hint("lend a larger area"));
    }
    Ok(layout)
}

fn one(way: Way, length: u64, legs: Vec<Spot>) -> Layout {
    Layout { way, segments: vec![Planned { length, legs }] }
}

/// The smallest unused area that is large enough; the volume has it to itself.
fn single(rooms: &Rooms, need: u64) -> Option<Spot> {
    let whole = rooms.rooms.iter().filter(|room| room.unused).filter_map(|room| Some((room, room.stretches.first()?)));
    let (room, _) =
        whole.filter(|(_, stretch)| stretch.length >= need).min_by_key(|(room, stretch)| (stretch.length, &room.name))?;
    Some(Spot { area: room.area, offset: 0, length: need })
}

/// An unused area that the volume fills exactly.
fn exact(rooms: &Rooms, need: u64) -> Option<Spot> {
    let fills = |room: &&Room| room.unused && room.stretches.first().is_some_and(|stretch| stretch.length == need);
    rooms.rooms.iter().find(fills).map(|room| Spot { area: room.area, offset: 0, length: need })
}

/// One stretch for each of `copies` legs: the smallest that fit, on different servers (S6), in different zones while a choice exists.
fn best_fit(rooms: &Rooms, need: u64, copies: usize) -> Option<Vec<Spot>> {
    let mut fits: Vec<(&Room, Stretch)> = rooms
        .rooms
        .iter()
        .flat_map(|room| room.stretches.iter().map(move |s| (room, *s)))
        .filter(|(_, s)| s.length >= need)
        .collect();
    fits.sort_by(|(a, s), (b, t)| (s.length, &a.name, s.offset).cmp(&(t.length, &b.name, t.offset)));
    let mut chosen: Vec<(&Room, Stretch)> = Vec::new();
    for other_zones_only in [true, false] {
        for (room, stretch) in &fits {
            let clash = |(other, _): &(&Room, Stretch)| {
                other.server == room.server || (other_zones_only && !room.zone.is_empty() && other.zone == room.zone)
            };
            if chosen.len() < copies && !chosen.iter().any(clash) {
                chosen.push((room, *stretch));
            }
        }
    }
    let spots: Vec<Spot> = chosen.iter().map(|(room, s)| Spot { area: room.area, offset: s.offset, length: need }).collect();
    (spots.len() == copies).then_some(spots)
}

fn doubled(rooms: &Rooms, size: u64, need: u64, copies: usize) -> Option<Layout> {
    let zones = |legs: &[Spot]| {
        let of = |spot: &Spot| rooms.rooms.iter().find(|room| room.area == spot.area).map(by_zone);
        legs.iter().filter_map(of).collect::<BTreeSet<_>>().len()
    };
    let in_one = best_fit(rooms, need, copies).map(|legs| vec![Planned { length: size, legs }]);
    // Zones come before few segments: "never in the same failure zone while another choice exists".
    let segments = match in_one {
        Some(segments) if segments.first().is_some_and(|segment| zones(&segment.legs) == copies) => Some(segments),
        in_one => wrapped(rooms, size, copies, by_zone).or(in_one).or_else(|| wrapped(rooms, size, copies, by_server)),
    };
    segments.map(|segments| Layout { way: Way::Doubled, segments })
}

/// Parts on at least two servers, as even as their room allows.
fn integrated(rooms: &Rooms, size: u64) -> Result<Option<Layout>, Refusal> {
    let unit = if size >= 2 * REGION_SIZE { REGION_SIZE } else { BLOCK_SIZE };
    if size < 2 * unit {
        let text = format!("a volume of {} cannot be integrated: it is a single block", ByteSize(size));
        return Err(Refusal::new(ErrorKind::BadRequest, text).hint("leave out the way, or ask for more"));
    }
    let mut all: Vec<(&Room, Stretch)> =
        rooms.rooms.iter().flat_map(|room| room.stretches.iter().map(move |s| (room, *s))).collect();
    all.sort_by(|(a, s), (b, t)| (t.length, &a.name, s.offset).cmp(&(s.length, &b.name, t.offset)));
    // The longest stretch of every server first, then what else there is: few parts, several servers.
    let mut seen = BTreeSet::new();
    let (first, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|(room, _)| seen.insert(room.server));
    if first.len() < 2 {
        return Ok(None);
    }
    let ordered: Vec<(&Room, Stretch)> = first.into_iter().chain(rest).collect();
    for count in 2..=ordered.len() {
        let mut chosen: Vec<(&Room, Stretch)> = ordered.iter().take(count).copied().collect();
        if chosen.iter().map(|(_, s)| s.length).sum::<u64>() < size.next_multiple_of(REGION_SIZE) {
            continue;
        }
        // Smallest first: what it cannot take is shared by the others.
        chosen.sort_by(|(a, s), (b, t)| (s.length, &a.name, s.offset).cmp(&(t.length, &b.name, t.offset)));
        let (mut segments, mut left) = (Vec::new(), size);
        for (index, (room, stretch)) in chosen.iter().enumerate() {
            let share = left.div_ceil((count - index) as u64).next_multiple_of(unit).min(stretch.length).min(left);
            if share > 0 {
                let spot = Spot { area: room.area, offset: stretch.offset, length: share.next_multiple_of(REGION_SIZE) };
                segments.push(Planned { length: share, legs: vec![spot] });
            }
            left -= share;
        }
        if left == 0 {
            return Ok(Some(Layout { way: Way::Integrated, segments }));
        }
    }
    Ok(None)
}

fn by_server(room: &Room) -> String {
    room.server.to_string()
}

fn by_zone(room: &Room) -> String {
    if room.zone.is_empty() { format!("server {}", room.server) } else { format!("zone {}", room.zone) }
}

/// Several segments, by McNaughton's wrap-around rule (R. McNaughton, "Scheduling with Deadlines and Loss Functions", 1959):
/// the groups' room is laid in one line of `copies` times the volume's length, no group with more than that length, and the
/// line is wrapped into `copies` rows. A column then never meets one group twice (S6), and whatever can be placed is placed.
fn wrapped(rooms: &Rooms, size: u64, copies: usize, group_of: fn(&Room) -> String) -> Option<Vec<Planned>> {
    let width = size.next_multiple_of(REGION_SIZE);
    let line_length = width.checked_mul(copies as u64)?;
    let mut groups: BTreeMap<String, Vec<(&Room, Stretch)>> = BTreeMap::new();
    for room in &rooms.rooms {
        groups.entry(group_of(room)).or_default().extend(room.stretches.iter().map(|s| (room, *s)));
    }
    let mut groups: Vec<Vec<(&Room, Stretch)>> = groups.into_values().collect();
    let total = |group: &Vec<(&Room, Stretch)>| group.iter().map(|(_, s)| s.length).sum::<u64>();
    groups.sort_by_key(|group| std::cmp::Reverse(total(group)));
    let mut line: Vec<(u64, Spot)> = Vec::new();
    let mut at = 0u64;
    for mut group in groups {
        group.sort_by_key(|(_, s)| std::cmp::Reverse(s.length));
        let mut room_left = width.min(line_length - at);
        for (room, stretch) in group {
            let length = stretch.length.min(room_left);
            if length > 0 {
                line.push((at, Spot { area: room.area, offset: stretch.offset, length }));
            }
            at += length;
            room_left -= length;
        }
    }
    if at < line_length {
        return None;
    }
    let cuts: BTreeSet<u64> = line.iter().map(|(start, _)| start % width).chain([0, width]).collect();
    let cuts: Vec<u64> = cuts.into_iter().collect();
    let leg = |row: u64, from: u64, to: u64| {
        let position = row * width + from;
        let (start, spot) = line.iter().rev().find(|(start, _)| *start <= position)?;
        Some(Spot { area: spot.area, offset: spot.offset + (position - start), length: to - from })
    };
    let pairs = cuts.iter().zip(cuts.iter().skip(1));
    pairs
        .map(|(&from, &to)| {
            let legs: Option<Vec<Spot>> = (0..copies as u64).map(|row| leg(row, from, to)).collect();
            Some(Planned { length: to.min(size) - from, legs: legs? })
        })
        .collect()
}

/// The largest volume in so many copies, in bytes.
fn most(rooms: &Rooms, copies: usize) -> u64 {
    let mut servers: BTreeMap<ServerId, u64> = BTreeMap::new();
    for room in &rooms.rooms {
        *servers.entry(room.server).or_default() += room.stretches.iter().map(|s| s.length).sum::<u64>();
    }
    let fits = |regions: u64| {
        let size = u128::from(regions) * u128::from(REGION_SIZE);
        servers.values().map(|free| u128::from(*free).min(size)).sum::<u128>() >= size * copies as u128
    };
    let (mut low, mut high) = (0, SIZE_MAX / REGION_SIZE);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    low * REGION_SIZE
}

fn no_space(rooms: &Rooms, size: u64, wanted: Wanted) -> Refusal {
    let with_room: Vec<&Room> = rooms.rooms.iter().filter(|room| !room.stretches.is_empty()).collect();
    let servers = with_room.iter().map(|room| room.server).collect::<BTreeSet<_>>().len();
    let longest = with_room.iter().flat_map(|room| &room.stretches).map(|s| s.length).max().unwrap_or(0);
    let asked = ByteSize(size);
    let missing = |have: u64| ByteSize(size.next_multiple_of(REGION_SIZE).saturating_sub(have));
    let needed_servers = if wanted.way == Some(Way::Integrated) { 2 } else { wanted.copies };
    let free_on = format!("{servers} server{} with free space", if servers == 1 { "" } else { "s" });
    let mut text = if servers < needed_servers {
        let kind = if wanted.way == Some(Way::Integrated) {
            "an integrated volume".to_owned()
        } else {
            format!("{needed_servers} copies")
        };
        format!("no room for {asked}: {kind} needs {needed_servers} servers with free space, there is {free_on}")
    } else {
        match wanted.way {
            Some(Way::Single) => {
                let whole = with_room
                    .iter()
                    .filter(|room| room.unused)
                    .flat_map(|room| &room.stretches)
                    .map(|s| s.length)
                    .max()
                    .unwrap_or(0);
                let have = if whole == 0 { "there is none".to_owned() } else { format!("the largest has {}", ByteSize(whole)) };
                format!(
                    "no room for {asked}: a single volume needs an unused area of that size, {have}; {} are missing",
                    missing(whole)
                )
            }
            Some(Way::Divided) => {
                let have = format!("the longest free stretch has {}", ByteSize(longest));
                format!("no room for {asked}: a divided volume lies in one area, and {have}; {} are missing", missing(longest))
            }
            _ => {
                let have = most(rooms, wanted.copies);
                let copies = if wanted.copies > 1 { format!(" in {} copies", wanted.copies) } else { String::new() };
                let at_most = format!("at most {} fit{copies} on {free_on}", ByteSize(have));
                format!(
                    "no room for {asked}{copies}: {at_most}; {} are missing on each of {needed_servers} servers",
                    missing(have)
                )
            }
        }
    };
    if !rooms.left_out.is_empty() {
        text.push_str(&format!(" (not counted: {})", rooms.left_out.join(", ")));
    }
    Refusal::new(ErrorKind::NoSpace, text)
        .hint("register more with `sublet lend`, return a volume, or ask for less; see `sublet area ls`")
}

#[cfg(test)]
#[path = "place_tests.rs"]
mod tests;
