//! Requests, in short.

use sublet_api::request::{
    AreaShare, Borrow, ControlTask, CreateVolume, Mount, Reclaim, Replace, Request, Return, Scrub, SetWay, Transfer, Unmount,
};
use sublet_types::{Epoch, ServerId, Way};

use super::{name, task};

pub fn on(areas: &[(&str, Option<u64>)]) -> Vec<AreaShare> {
    areas.iter().map(|(area, size)| AreaShare { area: (*area).to_owned(), size: *size }).collect()
}

pub fn create(id: u128, volume: &str, way: Way, areas: &[(&str, Option<u64>)]) -> Request {
    Request::CreateVolume(CreateVolume { task: task(id), name: name(volume), way, on: on(areas), copies: 2 })
}

pub fn set_way(id: u128, volume: &str, way: Way, areas: &[(&str, Option<u64>)]) -> Request {
    Request::SetWay { volume: volume.to_owned(), set_way: SetWay { task: task(id), way, on: on(areas), copies: 2 } }
}

pub fn borrow(id: u128, server: ServerId, volume: Option<&str>, size: Option<u64>, way: Option<Way>) -> Request {
    Request::Borrow(Borrow { task: task(id), server, name: volume.map(name), size, way, copies: None, local: false, seal: None })
}

pub fn mount(id: u128, server: ServerId, volume: &str) -> Request {
    Request::Mount { volume: volume.to_owned(), mount: Mount { task: task(id), server, read_only: false } }
}

pub fn unmount(id: u128, server: ServerId, volume: &str, epoch: Epoch) -> Request {
    let unmount = Unmount { task: task(id), server: Some(server), epoch: Some(epoch), force: false };
    Request::Unmount { volume: volume.to_owned(), unmount }
}

pub fn force_unmount(id: u128, volume: &str) -> Request {
    Request::Unmount { volume: volume.to_owned(), unmount: Unmount { task: task(id), server: None, epoch: None, force: true } }
}

pub fn give_back(id: u128, server: Option<ServerId>, volume: &str, dissolve: bool) -> Request {
    Request::Return { volume: volume.to_owned(), give_back: Return { task: task(id), server, dissolve } }
}

pub fn transfer(id: u128, volume: &str, to: &str, force: bool) -> Request {
    Request::Transfer { volume: volume.to_owned(), transfer: Transfer { task: task(id), to: to.to_owned(), force } }
}

pub fn reclaim(id: u128, area: &str) -> Request {
    Request::Reclaim { area: area.to_owned(), reclaim: Reclaim { task: task(id) } }
}

pub fn replace(id: u128, volume: &str, lost: &str, on: Option<&str>) -> Request {
    let replace = Replace { task: task(id), lost: lost.to_owned(), on: on.map(str::to_owned) };
    Request::Replace { volume: volume.to_owned(), replace }
}

pub fn scrub(id: u128, volume: &str) -> Request {
    Request::Scrub { volume: volume.to_owned(), scrub: Scrub { task: task(id), rate_max: 0 } }
}

pub fn control(id: impl ToString, control: ControlTask) -> Request {
    Request::ControlTask { task: id.to_string(), control }
}
