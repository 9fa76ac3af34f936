//! One file for each group of commands.

mod access;
mod areas;
mod contents;
mod daemons;
mod key;
mod limits;
mod local;
mod mount;
mod reading;
mod recovery;
mod status;
mod unmount;
mod volumes;
mod work;

use sublet_api::Refusal;

use crate::args::{Area, Cli, Command, Servers, Volume};
use crate::context::Context;
use crate::{demo, playground};

/// Carries out the command.
///
/// # Errors
/// What happened, why, and what to do.
pub fn run(cli: Cli) -> Result<(), Refusal> {
    // The server's --data is its home.
    let data = if let Command::Server(options) = &cli.command { options.data.clone() } else { None };
    let context = Context::new(&cli.manager, data.or(cli.home), cli.credentials, cli.json)?;
    let c = &context;
    match cli.command {
        Command::Playground(options) => playground::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Manager(mut options) => match options.command.take() {
            None => daemons::manager(options),
            Some(command) => recovery::table(c, command),
        },
        Command::Client(options) => daemons::client(options),
        Command::Server(mut options) => match options.command.take() {
            None => daemons::server(c, options),
            Some(Servers::Ls) => reading::servers(c),
            Some(Servers::Rename { server, name }) => areas::rename_server(c, &server, name),
            Some(Servers::Leave { server }) => areas::leave(c, server),
            Some(Servers::Forget(options)) => recovery::forget(c, options),
            Some(Servers::Revoke { server }) => access::revoke_server(c, server),
        },
        Command::Lend(options) => areas::lend(c, options),
        Command::Reclaim { area } => areas::reclaim(c, &area),
        Command::Area(Area::Ls) => reading::areas(c),
        Command::Area(Area::Accept { area }) => recovery::accept_area(c, &area),
        Command::Area(Area::Rename { area, name }) => areas::rename(c, &area, name),
        Command::Volume(Volume::Create { name, way, on, copies }) => volumes::create(c, name, way, &on, copies),
        Command::Volume(Volume::SetWay { volume, way, on, copies }) => volumes::set_way(c, &volume, way, &on, copies),
        Command::Volume(Volume::Init { volume, key }) => contents::init(c, &volume, &key),
        Command::Volume(Volume::Rekey(options)) => key::rekey(c, &options),
        Command::Volume(Volume::Replace(options)) => work::replace(c, options),
        Command::Volume(Volume::Scrub(options)) => work::scrub(c, options),
        Command::Volume(Volume::Ls) => reading::volumes(c),
        Command::Volume(Volume::Show { volume }) => reading::volume(c, &volume),
        Command::Volume(Volume::Accept(options)) => recovery::accept_volume(c, options),
        Command::Volume(Volume::Rename { volume, name }) => volumes::rename(c, &volume, name),
        Command::Borrow(options) => volumes::borrow(c, options),
        Command::Transfer { volume, to, force } => volumes::transfer(c, &volume, to, force),
        Command::Return { volume, dissolve } => volumes::give_back(c, &volume, dissolve),
        Command::Mount(options) => mount::run(c, &options),
        Command::Unmount { volume, force } => unmount::run(c, &volume, force),
        Command::Token(command) => access::token(c, command),
        Command::Person(command) => access::person(c, command),
        Command::Login { link } => access::login(c, &link),
        Command::Audit { limit } => access::audit(c, limit),
        Command::Limits(options) => limits::run(c, &options),
        Command::Search(options) => contents::search(c, &options),
        Command::Table { watch } => reading::table(c, watch),
        Command::Task(task) => work::task(c, task),
        Command::Events { limit, after } => reading::events(c, after, limit),
        Command::Status => status::run(c),
    }
}
