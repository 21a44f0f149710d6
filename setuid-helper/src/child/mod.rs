//! The process that becomes the command: executes the steps of the plan in their order, then the command.

mod attended;
mod birth;
mod changes;
mod command;
mod extract;
mod fence;
mod fuse;
mod identity;
mod image;
mod init;
mod limits;
mod loopdev;
mod mounts;
mod namespaces;
mod network;
mod newroot;
mod overlay;
mod place;
mod ranges;
mod remedy;
mod rtnetlink;
mod spawn;
mod world;

pub use birth::{birth, fork};
pub use command::{candidates, execute};
pub use identity::id_maps;
pub use init::die_with_supervisor;
pub use loopdev::{Bounds, Devices};
pub use ranges::user_namespaces;
pub use spawn::{c_strings, last_words, open_null, spawn};

use crate::attendance::Attendance;
use crate::cgroup::Cgroup;
use crate::environment::Environment;
use crate::error::{Failure, Outcome, printable};
use crate::home::Home;
use crate::plan::{Plan, Slot, Step};
use crate::prelude::*;
use crate::report::Marks;
use crate::setuid::Rights;
use crate::sources::Sources;
use crate::supervisor::Inherited;
use alloc::borrow::Cow;
use alloc::ffi::CString;
use core::ffi::CStr;
use mounts::Mount;
use overlay::Layers;
use rustix::fd::OwnedFd;
use rustix::fs::Stat;
use rustix::process::Pid;

/// What the supervisor prepared before the fork.
pub struct Prepared<'p> {
    /// What is to be done.
    pub plan: &'p Plan<'p>,
    /// Directories of the host.
    pub home: &'p Home,
    /// The open files of the plan.
    pub sources: &'p Sources,
    /// The id of the run.
    pub id: &'p str,
    /// The name of its procdir.
    pub name: &'p str,
    /// Where loop devices are, if there are images.
    pub devices: Option<&'p Devices>,
    /// Who supervises, as the parent; None where it has no number.
    pub supervisor: Option<Pid>,
    /// Where the init of a pid namespace reports, if the plan has one.
    pub status: Option<&'p OwnedFd>,
    /// Whose rights mounts are made with.
    pub rights: Rights,
    /// Those of `UserNamespace` steps, in their order.
    pub user_namespaces: &'p [OwnedFd],
    /// The caller's, for the command. An init to come does without its signal mask: it would ignore what it does not
    /// block; what is made for the run has the mode it is meant to have; and steps wait for programs that they start.
    pub inherited: &'p Inherited,
    /// What the rules of setuid mode leave to every tmpfs at most.
    pub tmpfs_bytes: Option<u64>,
    /// What the child was born in, or enters first.
    pub cgroup: Option<&'p Cgroup>,
    /// Who attends the run, if anybody does.
    pub attendance: Option<&'p Attendance>,
    /// Where the supervisor hands over user namespaces, and takes what is to be counted and let go of.
    pub exchange: Option<&'p OwnedFd>,
    /// Where times are noted, if anybody wants to know.
    pub marks: Option<&'p Marks>,
}

impl Prepared<'_> {
    fn mark(&self) {
        if let Some(marks) = self.marks {
            marks.mark();
        }
    }
}

/// What the steps have made so far.
pub struct Child<'p> {
    prepared: Prepared<'p>,
    environment: Environment<'p>,
    argv: Vec<Cow<'p, CStr>>,
    /// What a `Run` step found, in place of what `argv` names.
    executable: Option<CString>,
    mounts: Vec<(Slot, Mount)>,
    /// Those whose ids are to be mapped, and by which of the namespaces that the supervisor hands over.
    unmapped: Vec<(Slot, usize)>,
    id_maps: Vec<OwnedFd>,
    id_maps_asked: usize,
    /// The one that is being used, for who asks what failed.
    mapping: Option<usize>,
    /// `procdirs/` as this mount namespace has it, with the guard if there is one.
    procdirs: Option<OwnedFd>,
    /// How many of the user namespaces have been entered.
    entered: usize,
    /// The root of what is mounted on the procdir, or the procdir itself.
    procdir: Option<OwnedFd>,
    /// Where base root starts, while that is not the root directory.
    root: Option<OwnedFd>,
    /// The minimal /dev.
    dev: Option<OwnedFd>,
    layers: Option<Layers>,
    /// Where the network namespace comes from that the init makes meanwhile.
    network: Option<OwnedFd>,
    /// The network namespace that was left for one of the run's own, where that is to be attached with root's rights.
    left_network: Option<Stat>,
    /// Whether this process is the init's child already.
    has_init: bool,
    /// The command's ids where they are not the user's: whose the things are that the run makes.
    owner: Option<(u32, u32)>,
    /// Where the procdir is, once a `Procdir` step has moved it.
    procdir_path: Option<Vec<u8>>,
    /// What covers a directory somewhere, and what covers something else.
    empty: Option<OwnedFd>,
    null: Option<OwnedFd>,
    /// The names of files of `Text` steps, until all is set up.
    texts: Vec<(OwnedFd, String)>,
    /// Instructions of a `Seccomp` step.
    filter: Vec<u64>,
    /// What `Allow` steps have opened, until the `Landlock` step.
    allowed: Vec<(OwnedFd, u64)>,
    /// The ruleset of a `Landlock` step.
    fence: Option<OwnedFd>,
    /// Whether that filter asks.
    audited: bool,
    /// What is set last: nothing that is still to be done may run into it.
    limits: Vec<Step<'p>>,
}

/// Execute the plan and become the command. Returns only to say why that failed.
pub fn become_command(prepared: Prepared, environment: Environment, argv: &[&CStr]) -> Failure {
    let steps = &prepared.plan.steps;
    let mut child = Child {
        prepared,
        environment,
        argv: argv.iter().map(|word| Cow::Borrowed(*word)).collect(),
        executable: None,
        mounts: Vec::new(),
        unmapped: Vec::new(),
        id_maps: Vec::new(),
        id_maps_asked: 0,
        mapping: None,
        procdirs: None,
        entered: 0,
        procdir: None,
        root: None,
        dev: None,
        layers: None,
        network: None,
        left_network: None,
        has_init: false,
        owner: steps
            .iter()
            .find_map(|step| if let Step::Identity { uid, gid } = *step { Some((uid, gid)) } else { None }),
        procdir_path: None,
        empty: None,
        null: None,
        texts: Vec::new(),
        filter: Vec::new(),
        allowed: Vec::new(),
        fence: None,
        audited: false,
        limits: Vec::new(),
    };
    if let Some(Err(failure)) = child.prepared.cgroup.map(Cgroup::enter) {
        return failure;
    }
    child.prepared.mark();
    for step in steps {
        if let Err(failure) = child.execute(step) {
            return explained(child.to_blame(step, steps), failure, child.prepared.plan);
        }
        child.prepared.mark();
    }
    if let Err(failure) = child.remove_layers() {
        return failure;
    }
    // The last drop: from here on nothing of root's is left, and nothing brings it back.
    let rights = child.prepared.rights;
    let own = rights.drop_for_good().and_then(|()| child.hand_out_trees()).and_then(|()| rights.restore_limits());
    if let Err(failure) = own {
        return failure;
    }
    child.let_go_of_layers();
    rustix::process::umask(child.prepared.inherited.umask);
    child.prepared.inherited.restore_children();
    if let Err(failure) = limits::apply(&child.limits) {
        return failure;
    }
    child.prepared.mark();
    child.run_command()
}

/// A failure of a step names the step, unless what it started speaks for itself, and what the user can do.
fn explained(step: &Step, mut failure: Failure, plan: &Plan) -> Failure {
    let image = match *step {
        Step::Image { source, .. } | Step::Erofs { source, .. } | Step::Fuse { source, .. } => {
            plan.sources[source as usize].path
        }
        _ => b"",
    };
    let what = if image.is_empty() { String::new() } else { format!("{}: ", printable(image)) };
    if !matches!(step, Step::Extract { .. }) {
        failure.message.insert_str(0, &format!("{}: {what}", step.name()));
    }
    let hint = failure.errno.map_or("", |errno| remedy::remedy(step, errno));
    failure.hint(hint)
}

impl<'p> Child<'p> {
    fn execute(&mut self, step: &Step<'p>) -> Outcome<()> {
        match *step {
            Step::Unshare { flags } => self.unshare(birth::left_to_unshare(self.prepared.plan, flags)),
            Step::IdMap { uid_inside, uid_outside, gid_inside, gid_outside } => {
                namespaces::id_map((uid_inside, uid_outside), (gid_inside, gid_outside))
            }
            Step::SetPropagation { kind } => namespaces::set_propagation(kind, self.prepared.rights),
            Step::Guard => self.guard(),
            Step::Tmpfs { slot, size, inodes, mode } => self.tmpfs(slot, size, inodes, mode),
            Step::Part { slot, of, mode } => self.part(slot, of, mode),
            Step::Scratch { source, slot, overlay_slot } => self.scratch(source, slot, overlay_slot),
            Step::Tree { slot, source, recursive } => self.tree(slot, source, recursive),
            Step::Image { slot, source } => self.image(slot, source),
            Step::Erofs { slot, source } => self.erofs(slot, source),
            Step::Fuse { slot, source, program } => self.fuse(slot, source, program),
            Step::Extract { slot, source, argv } => self.extract(slot, source, argv),
            Step::Overlay { slot, lowers, upper, options } => self.overlay(slot, lowers, upper, options),
            Step::Stack { slot, lowers, options } => self.stack(slot, lowers, options),
            Step::Attach { slot, ref place, attrs } => self.attach(slot, place, attrs),
            Step::Mkdir { ref place, mode } => self.mkdir(place, mode),
            Step::PlaceEnv { name, ref place } => {
                let path = self.path_of(place);
                self.environment.set(name, &path);
                Ok(())
            }
            Step::UnsetEnv { name } => {
                self.environment.unset(name);
                Ok(())
            }
            Step::Chdir { ref place } => self.chdir(place),
            Step::Run { ref place, path } => self.find_in_tree(place, path),
            Step::NoNewPrivs => namespaces::no_new_privs(),
            Step::DeathSignal { signal } => namespaces::death_signal(signal, self.prepared.supervisor),
            Step::Init { as_pid_1 } => self.enter_pid_namespace(as_pid_1),
            Step::LockTree { attrs } => self.lock_tree(attrs),
            Step::Procdir { ref place } => self.set_procdir(place),
            Step::Proc => self.proc(),
            Step::Dev => self.dev(),
            Step::Hide { path } => self.hide(path),
            Step::Loopback => self.loopback(),
            Step::Hostname { name } => self.hostname(name),
            Step::Identity { uid, gid } => self.identity(uid, gid),
            Step::DropCapabilities => self.drop_capabilities(),
            Step::Idmap { slot, .. } | Step::Shift { slot, .. } => self.idmap(slot),
            Step::UserNamespace { .. } => self.enter_user_namespace(),
            Step::KeepDescriptors { fds } => self.keep_descriptors(fds),
            Step::Seccomp { filter } => {
                self.filter = filter.iter().collect();
                Ok(())
            }
            Step::Bind { slot, ref place } => self.bind(slot, place),
            Step::Text { slot, mode, content } => self.text(slot, mode, content),
            Step::File { ref place, mode, content } => self.file(place, mode, content),
            Step::Symlink { ref place, target } => self.symlink(place, target),
            Step::Node { slot, path } => self.node(slot, path),
            Step::NewRoot { slot, attrs } => self.new_root(slot, attrs),
            Step::PivotRoot { read_only } => self.pivot_root(read_only),
            Step::Audit => {
                self.audited = true;
                Ok(())
            }
            Step::Expose => self.expose(),
            Step::Terminal => self.terminal(),
            Step::CountChanges { slot } => self.count_changes(slot),
            Step::Protect { ref place, attrs } => self.protect(place, attrs),
            Step::Limit { .. } | Step::Nice { .. } => {
                self.limits.push(*step);
                Ok(())
            }
            Step::Allow { ref place, access, optional } => self.allow(place, access, optional),
            Step::Landlock { handled, scoped } => self.build_fence(handled, scoped),
            Step::Network { .. } => self.attach_network(step),
            // The supervisor's, and what was done before the first step.
            Step::Timeout { .. } | Step::Cgroup { .. } | Step::Name { .. } | Step::Label { .. } => Ok(()),
        }
    }
}
