//! Paths for volumes: the administrator's, the borrower's, and the client's of a mounted one.

use sublet_api::mount::SetSeal;
use sublet_api::request::{
    Borrow, ChangeLeg, ClientAnswer, ClientReport, CreateVolume, LegAnswer, Mount, Rename, Request, Return, SetWay, TaskAnswer,
    Transfer, Unmount,
};
use sublet_api::view::VolumeView;
use sublet_types::VolumeId;

use super::answer::Answer;
use super::body::Payload;
use super::path::{It, NameOrId};
use super::{Core, ask};

/// Defines a free volume. A task: repeat the request while it is running.
#[utoipa::path(post, path = "/v1/volumes", tag = "volumes", request_body = CreateVolume,
    responses((status = 200, description = "How far it is", body = TaskAnswer)))]
pub(crate) async fn create_volume(core: Core, Payload(create): Payload<CreateVolume>) -> Answer {
    ask(core, Request::CreateVolume(create)).await
}

/// Gives a free defined volume another usage way or other areas. A task: repeat the request while it is running.
#[utoipa::path(post, path = "/v1/volumes/{volume}/set-way", tag = "volumes", request_body = SetWay,
    params(("volume" = String, Path, description = "Name or id of the volume")),
    responses((status = 200, description = "How far it is", body = TaskAnswer)))]
pub(crate) async fn set_way(core: Core, It(volume): It<NameOrId>, Payload(set_way): Payload<SetWay>) -> Answer {
    ask(core, Request::SetWay { volume: volume.0, set_way }).await
}

/// Gives a volume another name; its id stays.
#[utoipa::path(post, path = "/v1/volumes/{volume}/rename", tag = "volumes", request_body = Rename,
    params(("volume" = String, Path, description = "Name or id of the volume")),
    responses((status = 200, description = "The volume", body = VolumeView)))]
pub(crate) async fn rename_volume(core: Core, It(volume): It<NameOrId>, Payload(rename): Payload<Rename>) -> Answer {
    ask(core, Request::RenameVolume { volume: volume.0, rename }).await
}

/// Enters the key header of an encrypted volume whose key the borrower has wrapped anew.
#[utoipa::path(post, path = "/v1/volumes/{volume}/seal", tag = "volumes", request_body = SetSeal,
    params(("volume" = String, Path, description = "Name or id of the volume")),
    responses((status = 200, description = "The volume", body = VolumeView)))]
pub(crate) async fn seal(core: Core, It(volume): It<NameOrId>, Payload(seal): Payload<SetSeal>) -> Answer {
    ask(core, Request::SetSeal { volume: volume.0, seal }).await
}

/// Enters a server as the borrower of a volume, free or newly carved. A task: repeat the request while it is running.
#[utoipa::path(post, path = "/v1/borrow", tag = "volumes", request_body = Borrow,
    responses((status = 200, description = "How far it is", body = TaskAnswer)))]
pub(crate) async fn borrow(core: Core, Payload(borrow): Payload<Borrow>) -> Answer {
    ask(core, Request::Borrow(borrow)).await
}

/// Opens the path from the borrower to the lenders. A task: repeat the request while it is running.
#[utoipa::path(post, path = "/v1/volumes/{volume}/mount", tag = "volumes", request_body = Mount,
    params(("volume" = String, Path, description = "Name or id of the volume")),
    responses((status = 200, description = "How far it is; at the end the mounting information", body = TaskAnswer)))]
pub(crate) async fn mount(core: Core, It(volume): It<NameOrId>, Payload(mount): Payload<Mount>) -> Answer {
    ask(core, Request::Mount { volume: volume.0, mount }).await
}

/// Closes the path, or with `force` fences the borrower. A task: repeat the request while it is running.
#[utoipa::path(post, path = "/v1/volumes/{volume}/unmount", tag = "volumes", request_body = Unmount,
    params(("volume" = String, Path, description = "Name or id of the volume")),
    responses((status = 200, description = "How far it is; at the end the unmounting information", body = TaskAnswer)))]
pub(crate) async fn unmount(core: Core, It(volume): It<NameOrId>, Payload(unmount): Payload<Unmount>) -> Answer {
    ask(core, Request::Unmount { volume: volume.0, unmount }).await
}

/// Gives a volume back; its bytes are wiped. A task: repeat the request while it is running.
#[utoipa::path(post, path = "/v1/volumes/{volume}/return", tag = "volumes", request_body = Return,
    params(("volume" = String, Path, description = "Name or id of the volume")),
    responses((status = 200, description = "How far it is", body = TaskAnswer)))]
pub(crate) async fn return_volume(core: Core, It(volume): It<NameOrId>, Payload(give_back): Payload<Return>) -> Answer {
    ask(core, Request::Return { volume: volume.0, give_back }).await
}

/// Hands a volume with its bytes to another server. A task: repeat the request while it is running.
#[utoipa::path(post, path = "/v1/volumes/{volume}/transfer", tag = "volumes", request_body = Transfer,
    params(("volume" = String, Path, description = "Name or id of the volume")),
    responses((status = 200, description = "How far it is", body = TaskAnswer)))]
pub(crate) async fn transfer(core: Core, It(volume): It<NameOrId>, Payload(transfer): Payload<Transfer>) -> Answer {
    ask(core, Request::Transfer { volume: volume.0, transfer }).await
}

/// The client of a mounted volume tells how its path is. With `hold`, held until something changed or for some seconds; when
/// the connection of a held report ends, the path counts as lost.
#[utoipa::path(post, path = "/v1/volumes/{volume}/client", tag = "clients", request_body = ClientReport,
    params(("volume" = VolumeId, Path, description = "Id of the volume")),
    responses((status = 200, description = "Where the lenders can be reached now", body = ClientAnswer)))]
pub(crate) async fn client_report(core: Core, It(volume): It<VolumeId>, Payload(report): Payload<ClientReport>) -> Answer {
    ask(core, Request::ClientReport { volume, report }).await
}

/// The holder of the lease changes a segment's in-sync set: compare-and-set on (volume, epoch, generation).
#[utoipa::path(post, path = "/v1/volumes/{volume}/legs", tag = "clients", request_body = ChangeLeg,
    params(("volume" = VolumeId, Path, description = "Id of the volume")),
    responses((status = 200, description = "The generation and the in-sync set now", body = LegAnswer)))]
pub(crate) async fn change_leg(core: Core, It(volume): It<VolumeId>, Payload(change): Payload<ChangeLeg>) -> Answer {
    ask(core, Request::ChangeLeg { volume, change }).await
}
