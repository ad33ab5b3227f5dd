//! Requests, parsed.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;

use super::{Fields, REQUEST_HEADER};

/// The kinds of requests (`enum fuse_opcode`).
mod opcode {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const READLINK: u32 = 5;
    pub(super) const SYMLINK: u32 = 6;
    pub(super) const MKNOD: u32 = 8;
    pub(super) const MKDIR: u32 = 9;
    pub(super) const UNLINK: u32 = 10;
    pub(super) const RMDIR: u32 = 11;
    pub(super) const RENAME: u32 = 12;
    pub(super) const LINK: u32 = 13;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const SETXATTR: u32 = 21;
    pub(super) const GETXATTR: u32 = 22;
    pub(super) const LISTXATTR: u32 = 23;
    pub(super) const REMOVEXATTR: u32 = 24;
    pub(super) const INIT: u32 = 26;
    pub(super) const OPENDIR: u32 = 27;
    pub(super) const READDIR: u32 = 28;
    pub(super) const RELEASEDIR: u32 = 29;
    pub(super) const CREATE: u32 = 35;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const DESTROY: u32 = 38;
    pub(super) const BATCH_FORGET: u32 = 42;
    pub(super) const FALLOCATE: u32 = 43;
    pub(super) const READDIRPLUS: u32 = 44;
    pub(super) const RENAME2: u32 = 45;
    pub(super) const LSEEK: u32 = 46;
    pub(super) const TMPFILE: u32 = 51;
}

/// A request of the kernel's.
#[derive(Debug)]
pub(in crate::fuse) struct Request<'a> {
    /// Its number, which the reply has to give.
    pub(in crate::fuse) unique: u64,
    /// The node it is about.
    pub(in crate::fuse) node: u64,
    /// The user it is made for.
    pub(in crate::fuse) user: u32,
    /// The thread that makes it, by its number where the server runs; 0 if it has none there.
    pub(in crate::fuse) thread: u32,
    /// What is asked.
    pub(in crate::fuse) operation: Operation<'a>,
}

/// The flag of a request for attributes that says that it names an open file.
const GETATTR_FH: u32 = 1;

/// What is asked of a server.
#[derive(Debug)]
pub(in crate::fuse) enum Operation<'a> {
    Lookup {
        name: &'a OsStr,
    },
    Forget {
        lookups: u64,
    },
    ForgetMany(Forgotten<'a>),
    GetAttributes {
        /// That of the open file that is meant, if one is.
        handle: Option<u64>,
    },
    ReadLink,
    Open {
        flags: u32,
    },
    Read {
        handle: u64,
        offset: u64,
        size: u32,
        flags: u32,
    },
    Release {
        handle: u64,
    },
    StatFileSystem,
    GetExtendedAttribute {
        name: &'a OsStr,
        size: u32,
    },
    ListExtendedAttributes {
        size: u32,
    },
    OpenDirectory,
    ReadDirectory {
        handle: u64,
        offset: u64,
        size: u32,
        with_attributes: bool,
    },
    ReleaseDirectory {
        handle: u64,
    },
    Seek {
        handle: u64,
        offset: u64,
        whence: u32,
    },
    /// Who has asked for something that is not answered yet has got a signal.
    Interrupt {
        /// The number of what was asked for.
        unique: u64,
    },
    /// The first request of all, parsed by `initialization`.
    Initialize,
    /// The last one, of some mounts.
    Destroy,
    /// Anything that would change the file system.
    Change,
    /// What this server has no answer to: the kernel makes do without.
    Unknown,
}

/// Nodes and how many of their lookups are forgotten.
#[derive(Debug, Clone, Copy)]
pub(in crate::fuse) struct Forgotten<'a>(Fields<'a>);

impl Iterator for Forgotten<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<Self::Item> {
        Some((self.0.u64()?, self.0.u64()?))
    }
}

impl<'a> Request<'a> {
    /// Whether somebody waits for the reply: he who closes a file does not.
    pub(in crate::fuse) fn is_awaited(&self) -> bool {
        !matches!(
            self.operation,
            Operation::Release { .. } | Operation::ReleaseDirectory { .. }
        )
    }

    /// Parses a request that came in one piece; `None` if it is none.
    pub(in crate::fuse) fn from_message(message: &'a [u8]) -> Option<Self> {
        let (header, body) = message.split_at_checked(REQUEST_HEADER)?;
        let kind = Header::parse(header)?.kind;
        let (arguments, rest) = body.split_at_checked(arguments_len(kind))?;
        Self::parse(header, arguments, rest)
    }

    /// Parses a request from its header, the arguments of its kind (which may have room behind them) and what follows them;
    /// `None` if it is none.
    pub(in crate::fuse) fn parse(
        header: &[u8],
        arguments: &'a [u8],
        rest: &'a [u8],
    ) -> Option<Self> {
        let header = Header::parse(header)?;
        Some(Self {
            unique: header.unique,
            node: header.node,
            user: header.user,
            thread: header.thread,
            operation: operation(header.kind, Fields(arguments), rest)?,
        })
    }
}

/// What is of use of `struct fuse_in_header`.
struct Header {
    kind: u32,
    unique: u64,
    node: u64,
    user: u32,
    thread: u32,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let _length = fields.u32()?;
        let (kind, unique, node) = (fields.u32()?, fields.u64()?, fields.u64()?);
        let (user, _group, thread) = (fields.u32()?, fields.u32()?, fields.u32()?);
        Some(Self {
            kind,
            unique,
            node,
            user,
            thread,
        })
    }
}

/// How long the arguments are that every request of a kind has, in bytes, of those kinds that are parsed any further.
fn arguments_len(kind: u32) -> usize {
    match kind {
        opcode::FORGET
        | opcode::OPEN
        | opcode::OPENDIR
        | opcode::GETXATTR
        | opcode::LISTXATTR
        | opcode::INTERRUPT
        | opcode::BATCH_FORGET => 8,
        opcode::GETATTR => 16,
        opcode::RELEASE | opcode::RELEASEDIR | opcode::LSEEK => 24,
        opcode::READ | opcode::READDIR | opcode::READDIRPLUS => 40,
        _ => 0,
    }
}

fn operation<'a>(kind: u32, mut arguments: Fields<'a>, rest: &'a [u8]) -> Option<Operation<'a>> {
    Some(match kind {
        opcode::LOOKUP => Operation::Lookup { name: name(rest)? },
        opcode::FORGET => Operation::Forget {
            lookups: arguments.u64()?,
        },
        opcode::BATCH_FORGET => Operation::ForgetMany(Forgotten(Fields(rest))),
        opcode::GETATTR => {
            let flags = arguments.u32()?;
            arguments.skip(4)?;
            let handle = arguments.u64()?;
            Operation::GetAttributes {
                handle: (flags & GETATTR_FH != 0).then_some(handle),
            }
        }
        opcode::READLINK => Operation::ReadLink,
        opcode::OPEN => Operation::Open {
            flags: arguments.u32()?,
        },
        opcode::READ => {
            let (handle, offset, size) = (arguments.u64()?, arguments.u64()?, arguments.u32()?);
            // Flags of this read alone, and the owner of its locks.
            arguments.skip(4 + 8)?;
            Operation::Read {
                handle,
                offset,
                size,
                flags: arguments.u32()?,
            }
        }
        opcode::RELEASE => Operation::Release {
            handle: arguments.u64()?,
        },
        opcode::STATFS => Operation::StatFileSystem,
        opcode::GETXATTR => Operation::GetExtendedAttribute {
            size: arguments.u32()?,
            name: name(rest)?,
        },
        opcode::LISTXATTR => Operation::ListExtendedAttributes {
            size: arguments.u32()?,
        },
        opcode::OPENDIR => Operation::OpenDirectory,
        opcode::READDIR | opcode::READDIRPLUS => Operation::ReadDirectory {
            handle: arguments.u64()?,
            offset: arguments.u64()?,
            size: arguments.u32()?,
            with_attributes: kind == opcode::READDIRPLUS,
        },
        opcode::RELEASEDIR => Operation::ReleaseDirectory {
            handle: arguments.u64()?,
        },
        opcode::LSEEK => Operation::Seek {
            handle: arguments.u64()?,
            offset: arguments.u64()?,
            whence: arguments.u32()?,
        },
        opcode::INTERRUPT => Operation::Interrupt {
            unique: arguments.u64()?,
        },
        opcode::INIT => Operation::Initialize,
        opcode::DESTROY => Operation::Destroy,
        opcode::SETATTR
        | opcode::SYMLINK
        | opcode::MKNOD
        | opcode::MKDIR
        | opcode::UNLINK
        | opcode::RMDIR
        | opcode::RENAME
        | opcode::RENAME2
        | opcode::LINK
        | opcode::WRITE
        | opcode::SETXATTR
        | opcode::REMOVEXATTR
        | opcode::CREATE
        | opcode::FALLOCATE
        | opcode::TMPFILE => Operation::Change,
        _ => Operation::Unknown,
    })
}

/// A name with a zero byte behind it.
fn name(bytes: &[u8]) -> Option<&OsStr> {
    let name = CStr::from_bytes_until_nul(bytes).ok()?;
    Some(OsStr::from_bytes(name.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        message.extend((REQUEST_HEADER as u32 + body.len() as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(7_u64.to_ne_bytes());
        message.extend(3_u64.to_ne_bytes());
        message.extend(1000_u32.to_ne_bytes());
        message.resize(REQUEST_HEADER, 0);
        message.extend(body);
        message
    }

    #[test]
    fn a_read_is_parsed_alike_in_one_piece_and_in_three() {
        let mut arguments = Vec::new();
        arguments.extend(9_u64.to_ne_bytes());
        arguments.extend((1_u64 << 40).to_ne_bytes());
        arguments.extend(4096_u32.to_ne_bytes());
        arguments.extend([0xff; 12]);
        arguments.extend(0o40000_u32.to_ne_bytes());
        arguments.extend([0; 4]);
        let whole = message(opcode::READ, &arguments);
        let (header, body) = whole.split_at(REQUEST_HEADER);
        let mut roomy = body.to_vec();
        roomy.resize(128, 0xee);
        for request in [
            Request::from_message(&whole).unwrap(),
            Request::parse(header, &roomy, &[]).unwrap(),
        ] {
            assert_eq!((request.unique, request.node, request.user), (7, 3, 1000));
            assert!(matches!(
                request.operation,
                Operation::Read {
                    handle: 9,
                    offset: 0x100_0000_0000,
                    size: 4096,
                    flags: 0o40000,
                }
            ));
        }
    }

    #[test]
    fn a_message_cut_short_is_none() {
        let mut body = vec![5, 0, 0, 0, 0, 0, 0, 0];
        body.extend(b"user.x\0");
        let whole = message(opcode::GETXATTR, &body);
        let request = Request::from_message(&whole).unwrap();
        assert!(matches!(
            request.operation,
            Operation::GetExtendedAttribute { name, size: 5 } if name == "user.x"
        ));
        for length in 0..whole.len() {
            assert!(
                Request::from_message(&whole[..length]).is_none(),
                "{length}"
            );
        }
    }

    #[test]
    fn many_nodes_are_forgotten_by_one_request_and_a_torn_pair_is_not_one() {
        let mut body = vec![0; 8];
        for number in [4_u64, 1, 6, 2, 9] {
            body.extend(number.to_ne_bytes());
        }
        let whole = message(opcode::BATCH_FORGET, &body);
        let request = Request::from_message(&whole).unwrap();
        let Operation::ForgetMany(forgotten) = request.operation else {
            panic!("{request:?}");
        };
        assert_eq!(forgotten.collect::<Vec<_>>(), [(4, 1), (6, 2)]);
    }
}
