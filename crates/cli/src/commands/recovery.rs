//! When something was lost: the table, a server, the agreement of copies.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sublet_api::rebuild::{ForgetView, LossView, Rebuild, RebuildView};
use sublet_api::{ErrorKind, Refusal};
use sublet_manager::Seal;
use sublet_seal::{open_text, seal_text};
use sublet_types::ByteSize;

use super::key;
use crate::args::{self, Key, TableCommand};
use crate::context::Context;
use crate::output::{self, Columns, print, print_json};

pub(super) fn table(c: &Context, command: TableCommand) -> Result<(), Refusal> {
    match command {
        TableCommand::Rebuild(options) => rebuild(c, options),
        TableCommand::Export { data, out, key } => export(&data, out.as_deref(), &key),
        TableCommand::Import { file, data, key } => import(c, &file, &data, &key),
        TableCommand::Check { data } => check(c, &data),
    }
}

fn rebuild(c: &Context, options: args::Rebuild) -> Result<(), Refusal> {
    let view = if options.show {
        c.manager().rebuild_state()?
    } else {
        let args::Rebuild { pool, reconcile, finish, .. } = options;
        c.manager().rebuild(Rebuild { pool, reconcile, finish })?
    };
    if c.json {
        print_json(&view);
    } else {
        print(&rebuild_text(&view));
    }
    Ok(())
}

fn names(list: &[sublet_types::Name]) -> String {
    if list.is_empty() { "nobody".to_owned() } else { list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ") }
}

fn rebuild_text(view: &RebuildView) -> String {
    let mut out = format!("pool       {}\n", view.pool);
    let state = if view.open { "being rebuilt: nothing is placed until `sublet manager rebuild --finish`" } else { "in use" };
    out += &format!("table      {state}\n");
    out += &format!("reported   {}\n", names(&view.reported));
    out += &format!("silent     {}\n", names(&view.silent));
    for area in &view.offline {
        out += &format!("offline    area {} at {}: {}\n", area.area, area.server, area.reason);
    }
    out += &format!("volumes    {} settled, {} frozen\n", view.settled, view.unsettled.len());
    out += &format!("slices     {} to be wiped, {} unknown to the table\n", view.wipes, view.strangers);
    for damaged in &view.damaged {
        out += &format!("damaged    {damaged}\n");
    }
    if !view.knocking.is_empty() {
        let mut columns = Columns::new(&["ASKS FOR THIS MANAGER", "POOL"]);
        for knock in &view.knocking {
            columns.row(vec![knock.name.to_string(), knock.pool.to_string()]);
        }
        out += &format!("\n{}", columns.render());
    }
    if !view.unsettled.is_empty() {
        let mut columns = Columns::new(&["FROZEN", "WHY"]);
        for volume in &view.unsettled {
            columns.row(vec![volume.name.to_string(), volume.reason.clone()]);
        }
        out += &format!("\n{}", columns.render());
    }
    out
}

pub(super) fn accept_volume(c: &Context, options: args::AcceptVolume) -> Result<(), Refusal> {
    let accept = sublet_api::rebuild::AcceptVolume { leg: options.leg, stale: options.stale };
    let view = c.manager().accept_volume(&options.volume, accept)?;
    if c.json {
        print_json(&view);
    } else {
        print(&output::volume(&view));
    }
    Ok(())
}

pub(super) fn accept_area(c: &Context, area: &str) -> Result<(), Refusal> {
    let view = c.manager().accept_area(area)?;
    if c.json {
        print_json(&view);
    } else {
        print(&format!("{} is trusted again as it is now\n", view.name));
    }
    Ok(())
}

pub(super) fn forget(c: &Context, options: args::Forget) -> Result<(), Refusal> {
    let manager = c.manager();
    let view = manager.forget_server(&options.server, sublet_api::rebuild::Forget { confirm: false })?;
    if !options.yes {
        if c.json {
            print_json(&view);
        } else {
            print(&forget_text(&view));
        }
        let hint = format!("to forget it for good: sublet server forget {} --lost --yes", view.server);
        return Err(Refusal::new(ErrorKind::Conflict, "nothing was changed").hint(hint));
    }
    // What is lost is named before anything is done; afterwards it is too late.
    if c.json {
        eprint!("{}", forget_text(&view));
    } else {
        print(&forget_text(&view));
    }
    let view = manager.forget_server(&options.server, sublet_api::rebuild::Forget { confirm: true })?;
    if c.json {
        print_json(&view);
    } else {
        print(&format!("{} is forgotten\n", view.server));
    }
    Ok(())
}

fn forget_text(view: &ForgetView) -> String {
    let mut out = String::new();
    let verb = if view.done { "went" } else { "goes" };
    out += &format!("with {} {verb}: areas {}\n", view.server, names(&view.areas));
    if view.losses.is_empty() {
        return out + "no volume has anything there\n";
    }
    let mut columns = Columns::new(&["VOLUME", "BORROWER", "LOST", "COPIES LOST"]);
    for LossView { volume, borrower, bytes, copies, .. } in &view.losses {
        let lost = if *bytes > 0 { ByteSize(*bytes).to_string() } else { "-".to_owned() };
        let borrower = borrower.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        columns.row(vec![volume.to_string(), borrower, lost, copies.to_string()]);
    }
    out + &columns.render()
}

fn io(what: &str, path: &Path, error: &std::io::Error) -> Refusal {
    Refusal::new(ErrorKind::Io, format!("cannot {what} {}: {error}", path.display()))
}

fn export(data: &Path, out: Option<&Path>, key: &Key) -> Result<(), Refusal> {
    let unlock = key::named(key)?;
    let seal = |text: &str| match &unlock {
        Some(unlock) => seal_text(text, unlock).map_err(|e| Refusal::new(ErrorKind::Internal, e.to_string())),
        None => Err(Refusal::new(ErrorKind::BadRequest, "there is nothing to seal it with")),
    };
    let seal: Option<&Seal<'_>> = if unlock.is_some() { Some(&seal) } else { None };
    let document = sublet_manager::export(data, seal)?;
    if unlock.is_none() && sublet_manager::has_authority(data) {
        eprintln!(
            "sublet: the pool's authority is not in the document: without it every server has to join again after a loss. \
             To have it in, sealed: --passphrase-file FILE or --key-file FILE"
        );
    }
    let Some(path) = out else {
        print(&document);
        return Ok(());
    };
    // The document holds lease secrets: nobody else reads it.
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(document.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error| io("write", path, &error))
}

fn import(c: &Context, file: &Path, data: &Path, key: &Key) -> Result<(), Refusal> {
    let document = std::fs::read_to_string(file).map_err(|error| io("read", file, &error))?;
    let sealed = sublet_manager::sealed_authority(&document)?;
    let authority = match (sealed, key::named(key)?) {
        (Some(sealed), Some(unlock)) => {
            let wrong = |e: sublet_seal::HeaderError| {
                Refusal::new(ErrorKind::BadRequest, format!("the authority in the document: {e}")).hint("nothing was imported")
            };
            Some(open_text(&sealed, &unlock).map_err(wrong)?)
        }
        (None, Some(_)) => {
            let text = "there is no authority in the document that a key could open";
            return Err(Refusal::new(ErrorKind::BadRequest, text).hint("import it without a key; servers have to join again"));
        }
        (Some(_), None) => {
            eprintln!(
                "sublet: the authority in the document is left out: to have it, name its key with --passphrase-file or --key-file"
            );
            None
        }
        (None, None) => None,
    };
    let rows = sublet_manager::import(&document, authority.as_ref().map(|text| text.as_str()), data)?;
    if c.json {
        print_json(&serde_json::json!({ "rows": rows }));
    } else {
        print(&format!("{rows} rows imported into {}\n", data.display()));
    }
    Ok(())
}

fn check(c: &Context, data: &Path) -> Result<(), Refusal> {
    let checked = sublet_manager::check(data)?;
    if c.json {
        print_json(&checked);
    } else {
        for finding in &checked.findings {
            print(&format!("{finding}\n"));
        }
        print(&format!("{} rows, {} findings\n", checked.rows, checked.findings.len()));
    }
    if checked.findings.is_empty() {
        return Ok(());
    }
    let text = format!("the table in {} is not in order", data.display());
    Err(Refusal::new(ErrorKind::Internal, text)
        .hint("a damaged row is set aside when the manager starts; see `sublet manager rebuild --reconcile`"))
}
