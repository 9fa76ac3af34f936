//! Paths for background work.

use sublet_api::request::{ControlTask, Replace, Request, Scrub, ScrubEvery, TaskAnswer};
use sublet_api::view::{TaskView, VolumeView};

use super::answer::Answer;
use super::body::Payload;
use super::path::{It, NameOrId};
use super::{Core, ask};

/// Makes the legs of a lost server anew on free space. A task, answered at once; the same request tells later how it is.
#[utoipa::path(post, path = "/v1/volumes/{volume}/replace", tag = "work", request_body = Replace,
    params(("volume" = String, Path, description = "Name or id of the volume")),
    responses((status = 200, description = "How far it is", body = TaskAnswer)))]
pub(crate) async fn replace(core: Core, It(volume): It<NameOrId>, Payload(replace): Payload<Replace>) -> Answer {
    ask(core, Request::Replace { volume: volume.0, replace }).await
}

/// Checks and compares the checksums of all legs. A task, answered at once; the same request tells later how it is.
#[utoipa::path(post, path = "/v1/volumes/{volume}/scrub", tag = "work", request_body = Scrub,
    params(("volume" = String, Path, description = "Name or id of the volume")),
    responses((status = 200, description = "How far it is", body = TaskAnswer)))]
pub(crate) async fn scrub(core: Core, It(volume): It<NameOrId>, Payload(scrub): Payload<Scrub>) -> Answer {
    ask(core, Request::Scrub { volume: volume.0, scrub }).await
}

/// How often a volume is scrubbed without being asked.
#[utoipa::path(post, path = "/v1/volumes/{volume}/scrub-every", tag = "work", request_body = ScrubEvery,
    params(("volume" = String, Path, description = "Name or id of the volume")),
    responses((status = 200, description = "The volume", body = VolumeView)))]
pub(crate) async fn scrub_every(core: Core, It(volume): It<NameOrId>, Payload(every): Payload<ScrubEvery>) -> Answer {
    ask(core, Request::ScrubEvery { volume: volume.0, every }).await
}

/// Pauses, resumes, cancels or limits background work.
#[utoipa::path(post, path = "/v1/tasks/{task}", tag = "work", request_body = ControlTask,
    params(("task" = String, Path, description = "Id of the task, or its first digits")),
    responses((status = 200, description = "The task", body = TaskView)))]
pub(crate) async fn control_task(core: Core, It(task): It<NameOrId>, Payload(control): Payload<ControlTask>) -> Answer {
    ask(core, Request::ControlTask { task: task.0, control }).await
}
