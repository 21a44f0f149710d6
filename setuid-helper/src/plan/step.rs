//! The steps of a plan, and what the engine has to know of each.

use super::{Place, Propagation, Resource, Slot, Slots, Strings, Words};

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
        address: u64,
        gateway: u32,
        resolver: u32,
        closed: Words<'a>,
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

    /// Whether a program of the user's gets the descriptor of this source.
    pub fn gives_away(&self, source: u32) -> bool {
        matches!(*self, Step::Extract { source: given, .. } | Step::Fuse { source: given, .. } if given == source)
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
