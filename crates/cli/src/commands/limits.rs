//! `limits`: how much servers may borrow.

use sublet_api::Refusal;
use sublet_api::request::SetLimits;
use sublet_api::view::ServerView;
use sublet_types::ByteSize;

use crate::args::{Limit, Limits};
use crate::context::Context;
use crate::output::{Columns, or_dash, print, print_json};

pub(super) fn run(c: &Context, options: &Limits) -> Result<(), Refusal> {
    let servers = c.manager().servers()?;
    let shown = match &options.server {
        None => servers,
        Some(server) if options.bytes.is_none() && options.volumes.is_none() => vec![find(servers, server)?],
        Some(server) => {
            // What is not named stays as it is.
            let now = find(servers, server)?;
            let bytes_max = options.bytes.map_or(now.bytes_max, |Limit(max)| max);
            let volumes_max = options.volumes.map_or(now.volumes_max, |Limit(max)| max);
            vec![c.manager().set_limits(server, SetLimits { bytes_max, volumes_max })?]
        }
    };
    if c.json {
        print_json(&shown);
    } else {
        print(&table(&shown));
    }
    Ok(())
}

fn find(servers: Vec<ServerView>, server: &str) -> Result<ServerView, Refusal> {
    let is_it = |view: &ServerView| view.name.as_str() == server || view.id.to_string() == server;
    servers.into_iter().find(is_it).ok_or_else(|| {
        Refusal::new(sublet_api::ErrorKind::NotFound, format!("there is no server '{server}'")).hint("see `sublet server ls`")
    })
}

fn table(servers: &[ServerView]) -> String {
    let mut columns = Columns::new(&["SERVER", "BORROWED", "AT MOST", "VOLUMES", "AT MOST"]);
    for server in servers {
        columns.row(vec![
            server.name.to_string(),
            ByteSize(server.borrowed).to_string(),
            or_dash(&server.bytes_max.map(|max| ByteSize(max).to_string()).unwrap_or_default()),
            server.borrows.len().to_string(),
            or_dash(&server.volumes_max.map(|max| max.to_string()).unwrap_or_default()),
        ]);
    }
    columns.render()
}
