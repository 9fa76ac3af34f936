//! Background work: `task pause|resume|cancel|limit`, `volume replace`, `volume scrub`.

use sublet_api::Refusal;
use sublet_api::request::{ControlTask, Replace, Request, Scrub, ScrubEvery, TaskAnswer};

use crate::args::{self, Every, Rate, Task};
use crate::commands::reading;
use crate::context::{Context, new_task, with_progress};
use crate::output::{self, print, print_json};

pub(super) fn task(c: &Context, task: Task) -> Result<(), Refusal> {
    let (id, control) = match task {
        Task::Ls => return reading::tasks(c),
        Task::Pause { task } => (task, ControlTask::Pause),
        Task::Resume { task } => (task, ControlTask::Resume),
        Task::Cancel { task } => (task, ControlTask::Cancel),
        Task::Limit { task, rate: Rate(rate_max) } => (task, ControlTask::Limit { rate_max }),
    };
    let view = c.manager().control_task(&id, control)?;
    if c.json {
        print_json(&view)
    } else {
        print(&output::tasks(std::slice::from_ref(&view)))
    }
    Ok(())
}

/// Begins background work; it goes on without this command, unless that shall wait for its end.
fn begin(c: &Context, request: &Request, wait: bool, ended: &str) -> Result<(), Refusal> {
    let mut answer: TaskAnswer = c.manager().begin(request)?;
    if wait {
        answer = with_progress(|progress| c.manager().task(request, progress))?;
    }
    if c.json {
        print_json(&answer);
    } else if wait {
        print(&format!("{} {ended}\n", answer.task.subject));
    } else {
        print(&format!("the {} of {} goes on; see `sublet task ls`\n", answer.task.kind, answer.task.subject));
        print(&output::tasks(std::slice::from_ref(&answer.task)));
    }
    Ok(())
}

pub(super) fn replace(c: &Context, options: args::Replace) -> Result<(), Refusal> {
    let replace = Replace { task: new_task()?, lost: options.lost, on: options.on.map(|area| area.to_string()) };
    begin(c, &Request::Replace { volume: options.volume, replace }, options.wait, "has its copies again")
}

pub(super) fn scrub(c: &Context, options: args::Scrub) -> Result<(), Refusal> {
    if let Some(every) = options.every {
        let seconds = match every {
            Every::Time(time) => Some(time.as_secs()),
            Every::Off => Some(0),
            Every::Default => None,
        };
        let view = c.manager().scrub_every(&options.volume, ScrubEvery { seconds })?;
        if c.json {
            print_json(&view)
        } else {
            print(&output::volume(&view))
        }
        return Ok(());
    }
    let scrub = Scrub { task: new_task()?, rate_max: options.rate.map_or(0, |rate| rate.0) };
    begin(
        c,
        &Request::Scrub { volume: options.volume, scrub },
        options.wait,
        "was scrubbed; `sublet events` shows what was found",
    )
}
