//! Lending: `lend`, `reclaim`, `area rename`, `server rename|leave`.

use sublet_api::control::{self, ServerAnswer, ServerRequest, Suggestion};
use sublet_api::request::{Reclaim, Rename};
use sublet_api::{ErrorKind, Refusal};
use sublet_link::ask;
use sublet_types::{ByteSize, Name};

use crate::args;
use crate::context::{Context, new_task, with_progress};
use crate::output::{Columns, ProgressLine, print, print_json};

/// Asks the local server.
pub(super) fn ask_server(c: &Context, request: &ServerRequest) -> Result<ServerAnswer, Refusal> {
    // A missing identity is the clearer message when there never was a server.
    c.identity()?;
    let mut line = ProgressLine::default();
    ask(&c.home.control_socket(), request, &mut |answer: ServerAnswer| {
        if let ServerAnswer::Progress { what, done, total } = answer {
            line.show(&what, done, total);
        }
    })
}

fn unexpected(answer: &ServerAnswer) -> Refusal {
    Refusal::new(ErrorKind::Internal, format!("the local server gave an answer to another question: {answer:?}"))
        .hint("check that `sublet server` and `sublet` are the same version")
}

pub(super) fn lend(c: &Context, options: args::Lend) -> Result<(), Refusal> {
    if options.suggest {
        return suggest(c);
    }
    let mut paths = Vec::new();
    for path in &options.paths {
        let absolute =
            path.canonicalize().map_err(|e| Refusal::new(ErrorKind::NotFound, format!("cannot lend {}: {e}", path.display())))?;
        paths.push(absolute.to_string_lossy().into_owned());
    }
    let lend = control::Lend {
        paths,
        size: options.size.map(ByteSize::bytes),
        offset: options.offset.map(ByteSize::bytes),
        name: options.name,
        sparse: options.sparse,
        keep_free_percent: options.keep_free,
        force: options.force,
    };
    match ask_server(c, &ServerRequest::Lend(lend))? {
        ServerAnswer::Lent { area, warnings } => {
            if c.json {
                print_json(&area);
            } else {
                print(&format!("lent {}: {} on {}\n", area.name, ByteSize(area.capacity), area.place));
            }
            for warning in warnings {
                eprintln!("note: {warning}");
            }
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}

fn suggest(c: &Context) -> Result<(), Refusal> {
    let suggestions = match ask_server(c, &ServerRequest::Suggest)? {
        ServerAnswer::Suggestions { suggestions } => suggestions,
        other => return Err(unexpected(&other)),
    };
    if c.json {
        print_json(&suggestions);
    } else if suggestions.is_empty() {
        print("nothing with surplus was found; a folder can be lent with: sublet lend FOLDER --size SIZE\n");
    } else {
        let mut columns = Columns::new(&["PATH", "KIND", "SURPLUS", "COMMAND", "NOTE"]);
        for Suggestion { path, kind, surplus, command, note } in suggestions {
            columns.row(vec![path, kind, ByteSize(surplus).to_string(), command, note]);
        }
        print(&columns.render());
    }
    Ok(())
}

pub(super) fn reclaim(c: &Context, area: &str) -> Result<(), Refusal> {
    let reclaim = Reclaim { task: new_task()? };
    let answer = with_progress(|p| c.manager().reclaim(area, reclaim, p))?;
    if c.json {
        print_json(&answer);
    } else {
        print(&format!("reclaimed {}\n", answer.task.subject));
    }
    Ok(())
}

pub(super) fn rename(c: &Context, area: &str, name: Name) -> Result<(), Refusal> {
    let view = c.manager().rename_area(area, Rename { name })?;
    if c.json {
        print_json(&view);
    } else {
        print(&format!("{area} is now called {}\n", view.name));
    }
    Ok(())
}

pub(super) fn rename_server(c: &Context, server: &str, name: Name) -> Result<(), Refusal> {
    let view = c.manager().rename_server(server, Rename { name })?;
    if c.json {
        print_json(&view);
    } else {
        print(&format!("{server} is now called {}\n", view.name));
    }
    Ok(())
}

pub(super) fn leave(c: &Context, server: Option<String>) -> Result<(), Refusal> {
    let server = match server {
        Some(server) => server,
        None => c.identity()?.server.to_string(),
    };
    let view = c.manager().leave_server(&server)?;
    if c.json {
        print_json(&view);
    } else {
        print(&format!("{} has left the pool\n", view.name));
    }
    Ok(())
}
