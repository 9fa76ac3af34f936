//! `token`, `person`, `login`, `audit`, `server revoke`: who may come in, who is put out, and who has done what.

use std::time::Duration;

use sublet_api::Refusal;
use sublet_api::access::{AddPerson, AuditLine, ChangePerson, CreateToken, NewToken, PersonView, TokenUse, TokenView};
use sublet_api::request::Request;
use sublet_api::view::ServerView;
use sublet_link::entry;
use sublet_trust::{Invitation, InvitationKind};

use crate::args::{self, Person, Token};
use crate::context::Context;
use crate::output::{Columns, or_dash, print, print_json, utc};

/// How long strings that let a server in are valid unless something else is said.
const ENTRY_TTL: Duration = Duration::from_secs(3600);
/// How long a program's token is.
const API_TTL: Duration = Duration::from_secs(90 * 24 * 3600);

fn make(c: &Context, what: TokenUse, ttl: Duration, uses: u32) -> Result<NewToken, Refusal> {
    c.manager().call(&Request::CreateToken(CreateToken { what, ttl_s: ttl.as_secs(), uses }))
}

/// Prints what is given away; beside it, on standard error, what it is for: so that a script gets the string alone.
fn show_new(c: &Context, made: &NewToken, what_to_do: &str) {
    if c.json {
        print_json(made);
    } else {
        print(&format!("{}\n", made.text));
        eprintln!("{what_to_do}; valid until {}", utc(made.token.expires_ms));
    }
}

pub(super) fn token(c: &Context, command: Token) -> Result<(), Refusal> {
    match command {
        Token::Create(options) => create(c, options),
        Token::Ls => {
            let tokens: Vec<TokenView> = c.manager().call(&Request::Tokens)?;
            if c.json {
                print_json(&tokens)
            } else {
                print(&tokens_table(&tokens))
            }
            Ok(())
        }
        Token::Revoke { token } => {
            let revoked: TokenView = c.manager().call(&Request::RevokeToken { token })?;
            if c.json {
                print_json(&revoked)
            } else {
                print(&format!("revoked: {}\n", revoked.what))
            }
            Ok(())
        }
    }
}

fn create(c: &Context, options: args::CreateToken) -> Result<(), Refusal> {
    let ttl = options.ttl;
    let (made, what_to_do) = match (options.rejoin, options.role, options.name) {
        (Some(server), _, _) => {
            let made = make(c, TokenUse::Rejoin { server }, ttl.unwrap_or(ENTRY_TTL), 1)?;
            (made, "on that server: sublet server --rejoin STRING")
        }
        (None, Some(role), Some(name)) => {
            let made = make(c, TokenUse::Api { role, name }, ttl.unwrap_or(API_TTL), 1)?;
            (made, "in requests to the manager: Authorization: Bearer STRING; it is shown this once")
        }
        _ => {
            let made = make(c, TokenUse::Join, ttl.unwrap_or(ENTRY_TTL), options.uses)?;
            (made, "on the new server: sublet server --join STRING")
        }
    };
    show_new(c, &made, what_to_do);
    Ok(())
}

fn tokens_table(tokens: &[TokenView]) -> String {
    let mut columns = Columns::new(&["TOKEN", "FOR", "USES LEFT", "VALID UNTIL", "MADE BY"]);
    for token in tokens {
        columns.row(vec![
            token.id.short(),
            token.what.to_string(),
            token.uses_left.to_string(),
            utc(token.expires_ms),
            token.made_by.clone(),
        ]);
    }
    columns.render()
}

pub(super) fn person(c: &Context, command: Person) -> Result<(), Refusal> {
    match command {
        Person::Add { name, role, ttl } => {
            let text = name.to_string();
            let _: PersonView = c.manager().call(&Request::AddPerson(AddPerson { name, role }))?;
            login_link(c, text, ttl)
        }
        Person::Login { person, ttl } => login_link(c, person, ttl),
        Person::Ls => {
            let people: Vec<PersonView> = c.manager().call(&Request::People)?;
            if c.json {
                print_json(&people)
            } else {
                print(&people_table(&people))
            }
            Ok(())
        }
        Person::Role { person, role } => change(c, person, ChangePerson::Role { role }),
        Person::Revoke { person } => change(c, person, ChangePerson::Revoke),
        Person::Rm { person } => change(c, person, ChangePerson::Remove),
    }
}

fn login_link(c: &Context, person: String, ttl: Duration) -> Result<(), Refusal> {
    let made = make(c, TokenUse::Login { person }, ttl, 1)?;
    show_new(c, &made, "there: sublet login LINK, once");
    Ok(())
}

fn change(c: &Context, person: String, change: ChangePerson) -> Result<(), Refusal> {
    let view: PersonView = c.manager().call(&Request::ChangePerson { person, change })?;
    let done = match change {
        ChangePerson::Role { role } => format!("is {role} now"),
        ChangePerson::Revoke => "has to log in again".to_owned(),
        ChangePerson::Remove => "is removed".to_owned(),
    };
    if c.json {
        print_json(&view)
    } else {
        print(&format!("{} {done}\n", view.name))
    }
    Ok(())
}

fn people_table(people: &[PersonView]) -> String {
    let mut columns = Columns::new(&["PERSON", "ROLE", "LOGGED IN"]);
    for person in people {
        columns.row(vec![
            person.name.to_string(),
            person.role.to_string(),
            or_dash(&person.entered_ms.map(utc).unwrap_or_default()),
        ]);
    }
    columns.render()
}

/// Sets up the command line of this user.
pub(super) fn login(c: &Context, link: &str) -> Result<(), Refusal> {
    let invitation: Invitation = parsed(link)?;
    if invitation.kind != InvitationKind::Login {
        return Err(Refusal::new(sublet_api::ErrorKind::BadRequest, "this string lets a server in, not a person")
            .hint("on the server: sublet server --join STRING"));
    }
    let path = c.login_path()?;
    if let Some(dir) = path.parent() {
        let made = std::fs::create_dir_all(dir);
        made.map_err(|e| Refusal::new(sublet_api::ErrorKind::Io, format!("cannot make {}: {e}", dir.display())))?;
    }
    let credentials = entry::enter(&invitation, None, &path)?;
    let place = path.display().to_string();
    if c.json {
        print_json(&serde_json::json!({ "credentials": place, "managers": credentials.managers }));
    } else {
        print(&format!("logged in at {}; the certificate is in {place}\n", credentials.managers.join(", ")));
    }
    Ok(())
}

/// Reads an invitation; `-` is the first line of the standard input, so that it is in no command line that others can see.
///
/// # Errors
/// It is none, or cannot be read.
pub fn parsed(text: &str) -> Result<Invitation, Refusal> {
    let mut line = String::new();
    let text = if text == "-" {
        let read = std::io::stdin().read_line(&mut line);
        read.map_err(|e| Refusal::new(sublet_api::ErrorKind::Io, format!("the standard input cannot be read: {e}")))?;
        line.as_str()
    } else {
        text
    };
    text.parse()
        .map_err(|e: sublet_trust::TrustError| Refusal::new(sublet_api::ErrorKind::BadRequest, e.message()).hint(e.advice()))
}

pub(super) fn revoke_server(c: &Context, server: String) -> Result<(), Refusal> {
    let view: ServerView = c.manager().call(&Request::RevokeServer { server })?;
    if c.json {
        print_json(&view);
    } else {
        print(&format!(
            "{} is cut off; what it had mounted is unmounted by force. To let it in again: sublet token create --rejoin {}\n",
            view.name, view.name
        ));
    }
    Ok(())
}

pub(super) fn audit(c: &Context, limit: usize) -> Result<(), Refusal> {
    let lines: Vec<AuditLine> = c.manager().call(&Request::Audit { limit })?;
    if c.json {
        print_json(&lines);
        return Ok(());
    }
    let mut columns = Columns::new(&["WHEN", "WHO", "FROM", "WHAT", "ON", "RESULT"]);
    for line in &lines {
        columns.row(vec![
            utc(line.at_ms),
            line.who.clone(),
            or_dash(&line.from),
            line.what.clone(),
            or_dash(&line.subject),
            line.result.clone(),
        ]);
    }
    print(&columns.render());
    Ok(())
}
