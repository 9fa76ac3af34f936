//! The option phase of the handshake, without sockets: from an option's bytes to the bytes of the answer.

use super::protocol::*;

/// What is served, under the empty name and under its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Export {
    /// The volume's name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// True if writes are refused.
    pub read_only: bool,
}

/// What was agreed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Agreed {
    /// Structured replies.
    pub structured: bool,
    /// `base:allocation` was selected.
    pub allocation: bool,
}

/// What to do after an option.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Send this and read the next option.
    Answer(Vec<u8>),
    /// Send this and begin with requests.
    Transmit(Vec<u8>, Agreed),
    /// Send this and close.
    End(Vec<u8>),
}

/// The client sent flags that were not offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownFlags(pub u32);

/// The state of one handshake.
#[derive(Clone, Debug)]
pub struct Negotiation {
    export: Export,
    no_zeroes: bool,
    structured: bool,
    /// The export name for which `base:allocation` was selected; the selection holds for that name only.
    allocation_for: Option<Vec<u8>>,
}

/// Reads big-endian fields; `None` at the end.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }
    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes(2)?.try_into().ok()?))
    }
    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes(4)?.try_into().ok()?))
    }
    fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.bytes(length as usize)
    }
    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// An option's refusal: its number and the text for people.
type Refused = (u32, &'static str);

const MALFORMED: Refused = (REP_ERR_INVALID, "the option's data is malformed");
const TOO_LONG: Refused = (REP_ERR_TOO_BIG, "a string of the option is longer than 4096 bytes");
const NEED_STRUCTURED: Refused = (REP_ERR_INVALID, "metadata contexts need structured replies: ask for these first");
const UNKNOWN_EXPORT: Refused = (REP_ERR_UNKNOWN, "there is no export of that name: use the empty name or the volume's");

fn reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(data);
}

impl Negotiation {
    /// A handshake for this export.
    pub const fn new(export: Export) -> Self {
        Self { export, no_zeroes: false, structured: false, allocation_for: None }
    }

    /// The first bytes of the server.
    pub fn greeting() -> Vec<u8> {
        let mut out = Vec::with_capacity(18);
        out.extend_from_slice(&MAGIC.to_be_bytes());
        out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        out.extend_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        out
    }

    /// The client's flags. The specification asks to close on unknown ones.
    ///
    /// # Errors
    /// [`UnknownFlags`].
    pub fn client_flags(&mut self, flags: u32) -> Result<(), UnknownFlags> {
        if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
            return Err(UnknownFlags(flags));
        }
        self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
        Ok(())
    }

    /// The answer to an option whose data was too long to be read.
    pub fn too_big(option: u32) -> Vec<u8> {
        let mut out = Vec::new();
        reply(&mut out, option, REP_ERR_TOO_BIG, b"the option's data is too long");
        out
    }

    /// Handles one option.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Step {
        let mut out = Vec::new();
        let result = match option {
            OPT_EXPORT_NAME => return self.export_name(data),
            OPT_ABORT => {
                reply(&mut out, option, REP_ACK, b"");
                return Step::End(out);
            }
            OPT_LIST => self.list(&mut out, data),
            OPT_INFO => self.info(&mut out, option, data).map(|_| ()),
            OPT_GO => match self.info(&mut out, option, data) {
                Ok(name) => {
                    let allocation = self.allocation_for.as_ref() == Some(&name);
                    return Step::Transmit(out, Agreed { structured: self.structured, allocation });
                }
                Err(refused) => Err(refused),
            },
            OPT_STRUCTURED_REPLY => self.structured_reply(&mut out, data),
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => self.meta_context(&mut out, option, data),
            _ => Err((REP_ERR_UNSUP, "this option is not supported")),
        };
        if let Err((kind, text)) = result {
            out.clear();
            reply(&mut out, option, kind, text.as_bytes());
        }
        Step::Answer(out)
    }

    /// Transmission flags. `SEND_DF` is only allowed with structured replies.
    fn flags(&self) -> u16 {
        let mut flags = TRANSMIT_HAS_FLAGS
            | TRANSMIT_SEND_FLUSH
            | TRANSMIT_SEND_FUA
            | TRANSMIT_SEND_TRIM
            | TRANSMIT_SEND_WRITE_ZEROES
            | TRANSMIT_CAN_MULTI_CONN
            | TRANSMIT_SEND_CACHE
            | TRANSMIT_SEND_FAST_ZERO;
        if self.export.read_only {
            flags |= TRANSMIT_READ_ONLY;
        }
        if self.structured {
            flags |= TRANSMIT_SEND_DF;
        }
        flags
    }

    fn is_ours(&self, name: &[u8]) -> Result<(), Refused> {
        if name.len() > STRING_LENGTH_MAX {
            return Err(TOO_LONG);
        }
        if name.is_empty() || name == self.export.name.as_bytes() { Ok(()) } else { Err(UNKNOWN_EXPORT) }
    }

    /// The old way to begin; it knows no error answer, so a wrong name ends the connection.
    fn export_name(&self, data: &[u8]) -> Step {
        if self.is_ours(data).is_err() {
            return Step::End(Vec::new());
        }
        let mut out = Vec::with_capacity(134);
        out.extend_from_slice(&self.export.size.to_be_bytes());
        out.extend_from_slice(&self.flags().to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        let allocation = self.allocation_for.as_deref() == Some(data);
        Step::Transmit(out, Agreed { structured: self.structured, allocation })
    }

    fn list(&self, out: &mut Vec<u8>, data: &[u8]) -> Result<(), Refused> {
        if !data.is_empty() {
            return Err((REP_ERR_INVALID, "the option LIST has no data"));
        }
        // The default export first; both are the same bytes.
        reply(out, OPT_LIST, REP_SERVER, &0u32.to_be_bytes());
        let mut named = u32::try_from(self.export.name.len()).unwrap_or(0).to_be_bytes().to_vec();
        named.extend_from_slice(self.export.name.as_bytes());
        reply(out, OPT_LIST, REP_SERVER, &named);
        reply(out, OPT_LIST, REP_ACK, b"");
        Ok(())
    }

    /// `INFO` and `GO`; returns the name that was asked for.
    fn info(&self, out: &mut Vec<u8>, option: u32, data: &[u8]) -> Result<Vec<u8>, Refused> {
        let mut fields = Fields(data);
        let name = fields.string().ok_or(MALFORMED)?;
        let count = fields.u16().ok_or(MALFORMED)?;
        let wished = (0..count).map(|_| fields.u16()).collect::<Option<Vec<_>>>().ok_or(MALFORMED)?;
        fields.end().ok_or(MALFORMED)?;
        self.is_ours(name)?;

        let mut export = INFO_EXPORT.to_be_bytes().to_vec();
        export.extend_from_slice(&self.export.size.to_be_bytes());
        export.extend_from_slice(&self.flags().to_be_bytes());
        reply(out, option, REP_INFO, &export);
        if wished.contains(&INFO_NAME) {
            let mut info = INFO_NAME.to_be_bytes().to_vec();
            info.extend_from_slice(self.export.name.as_bytes());
            reply(out, option, REP_INFO, &info);
        }
        if wished.contains(&INFO_DESCRIPTION) {
            let mut info = INFO_DESCRIPTION.to_be_bytes().to_vec();
            info.extend_from_slice(format!("Sublet volume {}", self.export.name).as_bytes());
            reply(out, option, REP_INFO, &info);
        }
        // Told to everyone: whoever did not ask ignores it.
        let mut info = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [1u64, sublet_types::limits::BLOCK_SIZE, sublet_types::limits::FRONT_REQUEST_SIZE_MAX] {
            info.extend_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
        }
        reply(out, option, REP_INFO, &info);
        reply(out, option, REP_ACK, b"");
        Ok(name.to_vec())
    }

    fn structured_reply(&mut self, out: &mut Vec<u8>, data: &[u8]) -> Result<(), Refused> {
        if !data.is_empty() {
            return Err((REP_ERR_INVALID, "the option STRUCTURED_REPLY has no data"));
        }
        self.structured = true;
        reply(out, OPT_STRUCTURED_REPLY, REP_ACK, b"");
        Ok(())
    }

    fn meta_context(&mut self, out: &mut Vec<u8>, option: u32, data: &[u8]) -> Result<(), Refused> {
        let setting = option == OPT_SET_META_CONTEXT;
        if setting {
            // Even a failed attempt replaces an earlier selection.
            self.allocation_for = None;
        }
        if !self.structured {
            return Err(NEED_STRUCTURED);
        }
        let mut fields = Fields(data);
        let name = fields.string().ok_or(MALFORMED)?;
        let count = fields.u32().ok_or(MALFORMED)?;
        // A listing without queries asks for everything; a wildcard works in a listing only.
        let mut found = !setting && count == 0;
        for _ in 0..count {
            let query = fields.string().ok_or(MALFORMED)?;
            if query.len() > STRING_LENGTH_MAX {
                return Err(TOO_LONG);
            }
            found |= query == BASE_ALLOCATION || (!setting && query == b"base:");
        }
        fields.end().ok_or(MALFORMED)?;
        self.is_ours(name)?;
        if found {
            let id = if setting { BASE_ALLOCATION_ID } else { 0 };
            let mut context = id.to_be_bytes().to_vec();
            context.extend_from_slice(BASE_ALLOCATION);
            reply(out, option, REP_META_CONTEXT, &context);
        }
        if setting && found {
            self.allocation_for = Some(name.to_vec());
        }
        reply(out, option, REP_ACK, b"");
        Ok(())
    }
}
