//! What there is to join: the command of a run, as the kernel describes it, and all that whoever joins must be held to.

use super::find::Run;
use crate::cgroup::Cgroup;
use crate::fsops::same_inode;
use crate::plan::{Mode, Plan, Step};
use crate::prelude::*;
use crate::procfs;
use crate::sys::{self, Namespace};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, Mode as FileMode, OFlags, openat, readlinkat, statat};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, getgid, getgroups, getpriority_process, getuid, pidfd_open};

const NEWPID: i32 = libc::CLONE_NEWPID;
/// Kinds of namespaces, and what setns(2) calls them.
const KINDS: [(Namespace, i32); 7] = [
    (Namespace("mnt", 0xff03), libc::CLONE_NEWNS),
    (Namespace("cgroup", 0xff01), libc::CLONE_NEWCGROUP),
    (Namespace("uts", 0xff0a), libc::CLONE_NEWUTS),
    (Namespace("ipc", 0xff02), libc::CLONE_NEWIPC),
    (Namespace("user", 0xff09), libc::CLONE_NEWUSER),
    (Namespace::PID, NEWPID),
    (Namespace::NET, libc::CLONE_NEWNET),
];
/// As /proc/PID/limits has them, which is in the order of their numbers: proc_pid_limits(5).
const RESOURCES: [Resource; 16] = [
    Resource::Cpu,
    Resource::Fsize,
    Resource::Data,
    Resource::Stack,
    Resource::Core,
    Resource::Rss,
    Resource::Nproc,
    Resource::Nofile,
    Resource::Memlock,
    Resource::As,
    Resource::Locks,
    Resource::Sigpending,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Rtprio,
    Resource::Rttime,
];
/// Where the numbers of a line of it start.
const LIMITS_AT: usize = 26;

/// The command.
pub struct Target {
    /// Itself.
    pub pidfd: OwnedFd,
    /// `CLONE_NEW*` of its namespaces that are not ours.
    pub namespaces: i32,
    /// Real, effective and saved user ids, then the same of the group.
    pub ids: [u32; 6],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Capabilities that it may have: bit N for capability N.
    pub permitted: u64,
    /// Those that programs which it executes could have.
    pub bounding: u64,
    /// Whether nothing that it executes can have more.
    pub no_new_privs: bool,
    /// Of the plan, where that is all that holds it.
    pub filter: Vec<u64>,
    /// For files that it makes.
    pub umask: FileMode,
    /// What it may use.
    pub limits: Vec<(Resource, Rlimit)>,
    /// From -20 to 19.
    pub nice: i32,
    /// `NAME=VALUE`, each with a NUL.
    pub environment: Vec<u8>,
    /// Its working directory.
    pub directory: OwnedFd,
    /// The run's.
    pub cgroup: Option<Cgroup>,
    /// Whether the run has a session of its own.
    pub own_session: bool,
}

impl Target {
    /// Look at it. None when it cannot be joined with no more rights than it has, or not yet.
    pub fn look(run: &Run, plan: &Plan) -> Option<Target> {
        let is_fenced = plan.steps.iter().any(|step| matches!(step, Step::Landlock { .. }));
        let is_own = (plan.uid, plan.gid) == (getuid().as_raw(), getgid().as_raw());
        if is_fenced || !is_own || !matches!(plan.mode, Mode::Root | Mode::Userns) {
            return None;
        }
        let (pid, process) = command(run, plan)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let status = Status(procfs::read(&process, "status").ok()?);
        let (namespaces, has_user) = namespaces(&process)?;
        let is_confined = status.number("NoNewPrivs", 10)? == 1;
        has_started(run, plan, &process, namespaces, is_confined)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(&process, "cwd", flags, FileMode::empty()).ok()?;
        if readlinkat(&process, "root", Vec::new()).ok()?.as_c_str() != c"/" {
            return None;
        }
        let no_new_privs = is_confined || plan.mode != Mode::Root;
        let permitted = status.number("CapPrm", 16)?;
        let is_powerless = no_new_privs && permitted == 0;
        let target = Target {
            namespaces,
            ids: status.ids()?,
            groups: status.numbers("Groups")?,
            permitted,
            // Where nothing can come of it, it is as the command's; else what the command has.
            bounding: status.number("CapBnd", 16)? & if is_powerless { u64::MAX } else { permitted },
            no_new_privs,
            filter: filter(plan, &status)?,
            umask: FileMode::from_raw_mode(u32::try_from(status.number("Umask", 8)?).ok()?),
            limits: limits(&procfs::read(&process, "limits").ok()?)?,
            nice: getpriority_process(Some(pid)).ok()?,
            environment: procfs::read(&process, "environ").ok()?,
            directory,
            cgroup: own_cgroup(run, plan)?,
            own_session: plan.has_init(plan.steps.len()),
            pidfd,
        };
        // What was asked by number was of this process, which has it still: the directory in /proc is not empty yet.
        let lives = procfs::read(&process, "stat").is_ok() && !has_ended(&target.pidfd);
        (lives && has_no_more_groups(&target, has_user)).then_some(target)
    }
}

/// The command, and its `/proc/PID`. In a pid namespace it is number 2, after its init, or 1; elsewhere the first that
/// the supervisor started.
fn command(run: &Run, plan: &Plan) -> Option<(Pid, OwnedFd)> {
    let init =
        plan.steps.iter().find_map(|step| if let Step::Init { as_pid_1 } = *step { Some(as_pid_1) } else { None });
    let Some(as_pid_1) = init else {
        let all = children(run.pid, &run.supervisor)?.into_iter().filter_map(|child| {
            let start = procfs::number(&procfs::read(&child.process, "stat").ok()?, 22)?;
            Some((start, child))
        });
        return all
            .min_by_key(|(start, child)| (*start, child.pid.as_raw_nonzero()))
            .map(|(_, child)| (child.pid, child.process));
    };
    let depth = Status(procfs::read(&run.supervisor, "status").ok()?).numbers("NSpid")?.len() + 1;
    let numbered = |parent: Pid, process: &OwnedFd, wanted: u32| {
        children(parent, process)?.into_iter().find(|child| {
            let numbers = child.status.numbers("NSpid").unwrap_or_default();
            numbers.len() == depth && numbers.last() == Some(&wanted)
        })
    };
    let mut found = numbered(run.pid, &run.supervisor, 1)?;
    if !as_pid_1 {
        found = numbered(found.pid, &found.process, 2)?;
    }
    Some((found.pid, found.process))
}

struct Child {
    pid: Pid,
    process: OwnedFd,
    /// As it was when it was found.
    status: Status,
}

/// The children of a process, whichever thread started them: proc_tid_children(5).
fn children(parent: Pid, process: &OwnedFd) -> Option<Vec<Child>> {
    let tasks =
        openat(process, "task", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, FileMode::empty()).ok()?;
    let mut found = Vec::new();
    let mut entries = Dir::read_from(&tasks).ok()?;
    while let Some(entry) = entries.read() {
        let entry = entry.ok()?;
        let Some(name) = entry.file_name().to_str().ok().filter(|name| !name.starts_with('.')) else { continue };
        let Ok(text) = procfs::read(&tasks, &format!("{name}/children")) else { continue };
        for word in text.split(|byte| *byte == b' ').filter(|word| !word.is_empty()) {
            let Some(pid) = procfs::parse(word).and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) else {
                continue;
            };
            let Ok(process) = procfs::open(pid) else { continue };
            let Ok(status) = procfs::read(&process, "status").map(Status) else { continue };
            // The number may be somebody else's by now.
            if status.number("PPid", 10) == u64::try_from(parent.as_raw_nonzero().get()).ok() {
                found.push(Child { pid, process, status });
            }
        }
    }
    Some(found)
}

/// `CLONE_NEW*` of the namespaces that are not ours, and whether the user namespace is among them. The kernel shows them
/// to who may trace the process: ptrace(2).
fn namespaces(process: &OwnedFd) -> Option<(i32, bool)> {
    let mut found = 0;
    for ((kind, flag), ours) in KINDS.into_iter().zip(sys::own_namespaces(KINDS.map(|(kind, _)| kind)).ok()?) {
        let theirs = statat(process, format!("ns/{}", kind.0), AtFlags::empty()).ok()?;
        if !same_inode(&theirs, &ours) {
            found |= flag;
        }
    }
    Some((found, found & libc::CLONE_NEWUSER != 0))
}

/// Whether it is the command by now: in its namespaces, without the rights that it lets go of, and executed.
fn has_started(run: &Run, plan: &Plan, process: &OwnedFd, namespaces: i32, is_confined: bool) -> Option<()> {
    let first = plan.steps.iter().find_map(|step| if let Step::Unshare { flags } = *step { Some(flags) } else { None });
    let wanted = i32::try_from(first.unwrap_or(0)).ok()? | if plan.has_init(plan.steps.len()) { NEWPID } else { 0 };
    let confines = plan.steps.iter().any(|step| matches!(step, Step::NoNewPrivs));
    let words = |of: &OwnedFd| procfs::read(of, "cmdline").ok();
    let executed = words(&run.supervisor)? != words(process)?;
    (namespaces & wanted == wanted && executed && (is_confined || !confines)).then_some(())
}

/// The filter of the plan, if it is all that holds the command.
fn filter(plan: &Plan, status: &Status) -> Option<Vec<u64>> {
    let filter =
        plan.steps.iter().find_map(|step| if let Step::Seccomp { filter } = *step { Some(filter) } else { None });
    let kind = status.number("Seccomp", 10)?;
    let count = |status: &Status| status.number("Seccomp_filters", 10);
    let theirs = count(status).unwrap_or(u64::from(kind == 2));
    let most = u64::from(filter.is_some());
    if kind == 1 || theirs > most && theirs > most + own_filters()? {
        return None;
    }
    Some(filter.map(|filter| filter.iter().collect()).unwrap_or_default())
}

fn own_filters() -> Option<u64> {
    Some(Status(procfs::read(procfs::own().ok()?, "status").ok()?).number("Seccomp_filters", 10).unwrap_or(0))
}

/// Who is in more groups than the command would gain by joining. Only root can leave a group or change its ids, and in
/// a user namespace not even root, which would stay root there.
fn has_no_more_groups(target: &Target, has_user: bool) -> bool {
    if getuid().is_root() && !has_user {
        return true;
    }
    let Ok(groups) = getgroups() else { return false };
    let is_theirs = |group: u32| target.groups.contains(&group) || group == target.ids[3];
    sys::all_ids() == target.ids && groups.into_iter().all(|group| is_theirs(group.as_raw()))
}

/// None: the run has one that cannot be entered.
fn own_cgroup(run: &Run, plan: &Plan) -> Option<Option<Cgroup>> {
    if !plan.steps.iter().any(|step| matches!(step, Step::Cgroup { .. })) {
        return Some(None);
    }
    Cgroup::open(run.scratch.last()?).ok().map(Some)
}

fn limits(text: &[u8]) -> Option<Vec<(Resource, Rlimit)>> {
    let lines = text.split(|byte| *byte == b'\n').skip(1).filter(|line| !line.is_empty());
    let limits = lines.zip(RESOURCES).map(|(line, resource)| {
        let mut words = line.get(LIMITS_AT..)?.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        let mut limit = || match words.next()? {
            b"unlimited" => Some(None),
            number => procfs::parse(number).map(Some),
        };
        Some((resource, Rlimit { current: limit()?, maximum: limit()? }))
    });
    limits.collect::<Option<Vec<_>>>().filter(|limits| limits.len() == RESOURCES.len())
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut look = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut look, Some(&Timespec::default())) != Ok(0)
}

/// proc_pid_status(5).
struct Status(Vec<u8>);

impl Status {
    fn value(&self, name: &str) -> Option<&[u8]> {
        let mut lines = self.0.split(|byte| *byte == b'\n');
        lines.find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b":")).map(<[u8]>::trim_ascii)
    }

    fn number(&self, name: &str, radix: u32) -> Option<u64> {
        u64::from_str_radix(core::str::from_utf8(self.value(name)?).ok()?, radix).ok()
    }

    fn numbers(&self, name: &str) -> Option<Vec<u32>> {
        let words = self.value(name)?.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        words.map(|word| procfs::parse(word).and_then(|number| u32::try_from(number).ok())).collect()
    }

    /// Real, effective and saved ones.
    fn ids(&self) -> Option<[u32; 6]> {
        let (uids, gids) = (self.numbers("Uid")?, self.numbers("Gid")?);
        [uids.get(..3)?, gids.get(..3)?].concat().try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_limits_are_read_as_they_are() {
        let text = procfs::read(procfs::own().expect("/proc/self"), "limits").expect("limits");
        for (resource, limit) in limits(&text).expect("all sixteen") {
            let is = rustix::process::getrlimit(resource);
            assert_eq!((limit.current, limit.maximum), (is.current, is.maximum), "{resource:?}");
        }
        assert!(limits(b"Limit\nMax cpu time   1\n").is_none());
    }

    #[test]
    fn a_status_without_a_line_has_no_value() {
        let status = Status(b"Name:\tUid: 0\nUid:\t1\t2\t3\t4\nGid:\t5 6 7\nGroups:\t\nCapPrm:\tff\n".to_vec());
        assert_eq!(status.ids(), Some([1, 2, 3, 5, 6, 7]));
        assert_eq!((status.numbers("Groups"), status.number("CapPrm", 16)), (Some(Vec::new()), Some(255)));
        assert_eq!((status.number("Umask", 8), status.number("Name", 10)), (None, None));
    }
}
