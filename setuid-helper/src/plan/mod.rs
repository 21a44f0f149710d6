//! The Plan: plain data that borrows from the bytes it was decoded from. `docs/plan.md` is the specification.

use crate::prelude::Vec;

mod check;
mod decode;
mod encode;
pub(crate) mod reader;
mod step;
pub mod version;

pub use decode::decode;
pub use encode::encode;
pub use reader::{Invalid, Slots, Strings, Words};
pub use step::Step;
pub use version::version_of;

/// The first version of the encoding that this program takes.
pub const FIRST_VERSION: u16 = 1;
/// The last one.
pub const LAST_VERSION: u16 = 2;
/// The first bytes of every plan.
pub const MAGIC: &[u8; 8] = b"SBXPLAN\0";
/// The longest plan, in bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// The longest list.
pub const MAX_ITEMS: u32 = 4096;
/// The longest string, in bytes.
pub const MAX_STRING: u32 = 65536;
/// The longest path, in bytes: `PATH_MAX` without its NUL.
pub const MAX_PATH: u32 = 4095;

/// The longest host name: `HOST_NAME_MAX`.
pub const MAX_HOSTNAME: usize = 64;
/// The longest name of a run, in bytes.
pub const MAX_NAME: usize = 63;

/// Where the right to mount comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Real root.
    Root = 1,
    /// The helper, installed setuid-root.
    Setuid = 2,
    /// An unprivileged user namespace.
    Userns = 3,
    /// No right to mount at all, only a fence (since version 2).
    Landlock = 4,
}

impl Mode {
    /// The word for it, as records hold it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Root => "root",
            Mode::Setuid => "setuid",
            Mode::Userns => "userns",
            Mode::Landlock => "landlock",
        }
    }
}

/// What a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SourceKind {
    /// A regular file.
    File = 1,
    /// A directory.
    Directory = 2,
    /// A sealed memory file, handed over as a descriptor.
    Memory = 3,
}

/// Something of the user's that is opened with the user's rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source<'a> {
    /// What it must be.
    pub kind: SourceKind,
    /// Absolute, but empty for a memory source.
    pub path: &'a [u8],
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// Bytes; files only.
    pub size: u64,
    /// Files only.
    pub mtime_ns: u64,
    /// Files only.
    pub ctime_ns: u64,
}

/// What a place's path is relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Base {
    /// The root directory.
    Root = 1,
    /// The procdir.
    Procdir = 2,
}

/// A directory inside the run's mount namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// What `path` is relative to.
    pub base: Base,
    /// Absolute, or plain components below the procdir (empty: the procdir itself).
    pub path: &'a [u8],
    /// `st_dev`, compared unless it and `ino` are 0.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

/// Propagation of the whole mount tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Propagation {
    /// Mounts of the host come in, ours do not go out.
    Slave = 1,
    /// Neither.
    Private = 2,
}

/// What a `Limit` limits, each in its own unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Resource {
    /// Seconds of processor time.
    CpuSeconds = 1,
    /// Bytes in a file.
    FileBytes = 2,
    /// Open files.
    OpenFiles = 3,
    /// Bytes of private memory that can be written to.
    DataBytes = 4,
    /// Processes of the user.
    Processes = 5,
    /// Bytes of a core; 1 is none at all (core(5)).
    CoreBytes = 6,
}

/// Bits of `Attach::attrs`.
pub mod attr {
    /// Read-only.
    pub const READ_ONLY: u32 = 1;
    /// Set-user-id bits have no effect.
    pub const NOSUID: u32 = 2;
    /// Device nodes cannot be opened.
    pub const NODEV: u32 = 4;
    /// Nothing is executed.
    pub const NOEXEC: u32 = 8;
    /// Symlinks are not followed.
    pub const NOSYMFOLLOW: u32 = 16;
    /// All of them.
    pub const ALL: u32 = 31;
}

/// Bits of `Overlay::options`.
pub mod overlay {
    /// Extended attributes in the `user.` namespace.
    pub const USERXATTR: u32 = 1;
    /// Renames of lower directories.
    pub const REDIRECT_DIR: u32 = 2;
    /// All of them.
    pub const ALL: u32 = 3;
}

/// Bit of `Plan::flags`: what the command leaves behind is not ended.
pub const LEAVE_RUNNING: u8 = 1;
/// Bit of `Plan::flags`, since version 2: images that the setuid helper rebuilds are kept for later launches.
pub const KEEP_IMAGES: u8 = 2;
/// Bit of `Plan::flags`, since version 2: in setuid mode the command may gain privileges, if the policy allows it.
pub const ALLOW_NEW_PRIVS: u8 = 4;
/// All of them.
pub const FLAGS: u8 = LEAVE_RUNNING | KEEP_IMAGES | ALLOW_NEW_PRIVS;

/// A number that the plan gives to a mount.
pub type Slot = u32;

/// One launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan<'a> {
    /// Where the right to mount comes from.
    pub mode: Mode,
    /// `LEAVE_RUNNING`, `KEEP_IMAGES`, `ALLOW_NEW_PRIVS`.
    pub flags: u8,
    /// The real user id of who launches.
    pub uid: u32,
    /// The real group id.
    pub gid: u32,
    /// The directory that holds `procdirs/` and `records/`.
    pub home: Source<'a>,
    /// What steps refer to by index.
    pub sources: Vec<Source<'a>>,
    /// In the order of their execution.
    pub steps: Vec<Step<'a>>,
}

impl Plan<'_> {
    /// Whether the command has a terminal of its own.
    pub fn has_terminal(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Terminal))
    }

    /// Whether it has a private network.
    pub fn has_network(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Network { .. }))
    }

    /// Whether one of the first `before` steps makes a pid namespace.
    pub fn has_init(&self, before: usize) -> bool {
        self.steps[..before].iter().any(|step| matches!(step, Step::Init { .. }))
    }
}
