//! The Plan: plain data that borrows from the bytes it was decoded from. `docs/plan.md` is the specification.

use crate::prelude::Vec;

mod check;
mod decode;
mod encode;
pub(crate) mod reader;
pub mod version;

pub use decode::decode;
pub use encode::encode;
pub use reader::{Invalid, Slots, Strings, Words};
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

/// One step; the fields are those of the table in `docs/plan.md`, in that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the table there says what each field is
pub enum Step<'a> {
    Unshare {
        flags: u64,
    },
    IdMap {
        uid_inside: u32,
        uid_outside: u32,
        gid_inside: u32,
        gid_outside: u32,
    },
    SetPropagation {
        kind: Propagation,
    },
    Guard,
    Tmpfs {
        slot: Slot,
        size: u64,
        inodes: u64,
        mode: u32,
    },
    /// A new directory in the tmpfs of another slot, as a detached mount.
    Part {
        slot: Slot,
        of: Slot,
        mode: u32,
    },
    Scratch {
        source: u32,
        slot: Slot,
        overlay_slot: Slot,
    },
    Tree {
        slot: Slot,
        source: u32,
        recursive: bool,
    },
    Image {
        slot: Slot,
        source: u32,
    },
    Erofs {
        slot: Slot,
        source: u32,
    },
    Fuse {
        slot: Slot,
        source: u32,
        program: &'a [u8],
    },
    Extract {
        slot: Slot,
        source: u32,
        argv: Strings<'a>,
    },
    Overlay {
        slot: Slot,
        lowers: Slots<'a>,
        upper: Slot,
        options: u32,
    },
    Stack {
        slot: Slot,
        lowers: Slots<'a>,
        options: u32,
    },
    Attach {
        slot: Slot,
        place: Place<'a>,
        attrs: u32,
    },
    Mkdir {
        place: Place<'a>,
        mode: u32,
    },
    PlaceEnv {
        name: &'a [u8],
        place: Place<'a>,
    },
    UnsetEnv {
        name: &'a [u8],
    },
    Chdir {
        place: Place<'a>,
    },
    Run {
        place: Place<'a>,
        path: &'a [u8],
    },
    NoNewPrivs,
    DeathSignal {
        signal: u32,
    },
    Init {
        as_pid_1: bool,
    },
    LockTree {
        attrs: u32,
    },
    Procdir {
        place: Place<'a>,
    },
    Proc,
    Dev,
    Hide {
        path: &'a [u8],
    },
    Loopback,
    Hostname {
        name: &'a [u8],
    },
    Identity {
        uid: u32,
        gid: u32,
    },
    DropCapabilities,
    Idmap {
        slot: Slot,
        uid: u32,
        shown_uid: u32,
        gid: u32,
        shown_gid: u32,
    },
    KeepDescriptors {
        fds: Slots<'a>,
    },
    Seccomp {
        filter: Words<'a>,
    },
    Bind {
        slot: Slot,
        place: Place<'a>,
    },
    Text {
        slot: Slot,
        mode: u32,
        content: &'a [u8],
    },
    File {
        place: Place<'a>,
        mode: u32,
        content: &'a [u8],
    },
    Symlink {
        place: Place<'a>,
        target: &'a [u8],
    },
    Node {
        slot: Slot,
        path: &'a [u8],
    },
    NewRoot {
        slot: Slot,
        attrs: u32,
    },
    PivotRoot {
        read_only: bool,
    },
    Limit {
        resource: Resource,
        soft: u64,
        hard: u64,
    },
    Nice {
        value: u8,
    },
    Timeout {
        limit_ns: u64,
        kill_after_ns: u64,
    },
    Cgroup {
        source: u32,
        memory: u64,
        swap: u64,
        pids: u64,
        cpu_us: u64,
    },
    Allow {
        place: Place<'a>,
        access: u64,
        optional: bool,
    },
    Landlock {
        handled: u64,
        scoped: u64,
    },
    Network {
        source: u32,
    },
    Name {
        name: &'a [u8],
    },
    Label {
        level: &'a [u8],
        images: Strings<'a>,
    },
    Expose,
    Audit,
    Terminal,
    CountChanges {
        slot: Slot,
    },
    Protect {
        place: Place<'a>,
        attrs: u32,
    },
    UserNamespace {
        uids: Words<'a>,
        gids: Words<'a>,
        programs: Strings<'a>,
    },
    Shift {
        slot: Slot,
        uids: Words<'a>,
        gids: Words<'a>,
    },
}

impl Step<'_> {
    /// Whether it is one of the isolating levels: what the command sees then is not what a program of root's may believe.
    pub fn isolates(&self) -> bool {
        matches!(
            self,
            Step::Init { .. }
                | Step::LockTree { .. }
                | Step::Procdir { .. }
                | Step::Proc
                | Step::Dev
                | Step::Hide { .. }
                | Step::Hostname { .. }
                | Step::Loopback
                | Step::KeepDescriptors { .. }
                | Step::Seccomp { .. }
                | Step::Allow { .. }
                | Step::Landlock { .. }
                | Step::Network { .. }
                | Step::Audit
                | Step::Terminal
                | Step::Protect { .. }
                | Step::Bind { .. }
                | Step::Text { .. }
                | Step::File { .. }
                | Step::Symlink { .. }
                | Step::Node { .. }
                | Step::NewRoot { .. }
                | Step::PivotRoot { .. }
        )
    }

    /// Whether it takes a user namespace, or ids that are not the caller's.
    pub fn maps_ids(&self) -> bool {
        matches!(
            self,
            Step::IdMap { .. }
                | Step::Identity { .. }
                | Step::Idmap { .. }
                | Step::UserNamespace { .. }
                | Step::Shift { .. }
        )
    }

    /// Whether it makes namespaces, mounts or files: in the old root only, where /proc is the kernel's.
    pub fn is_before_pivot(&self) -> bool {
        !matches!(
            self,
            Step::PivotRoot { .. }
                | Step::Unshare { .. }
                | Step::IdMap { .. }
                | Step::UserNamespace { .. }
                | Step::PlaceEnv { .. }
                | Step::UnsetEnv { .. }
                | Step::Chdir { .. }
                | Step::Run { .. }
                | Step::NoNewPrivs
                | Step::DeathSignal { .. }
                | Step::Loopback
                | Step::Hostname { .. }
                | Step::Identity { .. }
                | Step::DropCapabilities
                | Step::KeepDescriptors { .. }
                | Step::Seccomp { .. }
                | Step::Limit { .. }
                | Step::Nice { .. }
                | Step::Timeout { .. }
                | Step::Cgroup { .. }
                | Step::Allow { .. }
                | Step::Landlock { .. }
                | Step::Name { .. }
                | Step::Label { .. }
                | Step::Expose
                | Step::Audit
                | Step::Terminal
        )
    }

    /// Whether the supervisor makes a user namespace for it.
    pub fn maps_mount_ids(&self) -> bool {
        matches!(self, Step::Idmap { .. } | Step::Shift { .. })
    }

    /// Its name, as errors show it.
    pub fn name(&self) -> &'static str {
        match self {
            Step::Unshare { .. } => "Unshare",
            Step::IdMap { .. } => "IdMap",
            Step::SetPropagation { .. } => "SetPropagation",
            Step::Guard => "Guard",
            Step::Tmpfs { .. } => "Tmpfs",
            Step::Part { .. } => "Part",
            Step::Scratch { .. } => "Scratch",
            Step::Tree { .. } => "Tree",
            Step::Image { .. } => "Image",
            Step::Erofs { .. } => "Erofs",
            Step::Fuse { .. } => "Fuse",
            Step::Extract { .. } => "Extract",
            Step::Overlay { .. } => "Overlay",
            Step::Stack { .. } => "Stack",
            Step::Attach { .. } => "Attach",
            Step::Mkdir { .. } => "Mkdir",
            Step::PlaceEnv { .. } => "PlaceEnv",
            Step::UnsetEnv { .. } => "UnsetEnv",
            Step::Chdir { .. } => "Chdir",
            Step::Run { .. } => "Run",
            Step::NoNewPrivs => "NoNewPrivs",
            Step::DeathSignal { .. } => "DeathSignal",
            Step::Init { .. } => "Init",
            Step::LockTree { .. } => "LockTree",
            Step::Procdir { .. } => "Procdir",
            Step::Proc => "Proc",
            Step::Dev => "Dev",
            Step::Hide { .. } => "Hide",
            Step::Loopback => "Loopback",
            Step::Hostname { .. } => "Hostname",
            Step::Identity { .. } => "Identity",
            Step::DropCapabilities => "DropCapabilities",
            Step::Idmap { .. } => "Idmap",
            Step::KeepDescriptors { .. } => "KeepDescriptors",
            Step::Seccomp { .. } => "Seccomp",
            Step::Bind { .. } => "Bind",
            Step::Text { .. } => "Text",
            Step::File { .. } => "File",
            Step::Symlink { .. } => "Symlink",
            Step::Node { .. } => "Node",
            Step::NewRoot { .. } => "NewRoot",
            Step::PivotRoot { .. } => "PivotRoot",
            Step::Limit { .. } => "Limit",
            Step::Nice { .. } => "Nice",
            Step::Timeout { .. } => "Timeout",
            Step::Cgroup { .. } => "Cgroup",
            Step::Allow { .. } => "Allow",
            Step::Landlock { .. } => "Landlock",
            Step::Network { .. } => "Network",
            Step::Name { .. } => "Name",
            Step::Label { .. } => "Label",
            Step::Expose => "Expose",
            Step::Audit => "Audit",
            Step::Terminal => "Terminal",
            Step::CountChanges { .. } => "CountChanges",
            Step::Protect { .. } => "Protect",
            Step::UserNamespace { .. } => "UserNamespace",
            Step::Shift { .. } => "Shift",
        }
    }
}

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

    /// Whether one of the first `before` steps makes a pid namespace.
    pub fn has_init(&self, before: usize) -> bool {
        self.steps[..before].iter().any(|step| matches!(step, Step::Init { .. }))
    }
}
