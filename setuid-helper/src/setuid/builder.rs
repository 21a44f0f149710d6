//! Rebuilding an image: unpacked and packed again by programs that run as a user of their own, so that the kernel sees
//! metadata that the caller did not write. Nothing of the caller's but the image's bytes reaches them.

use super::policy::is_roots;
use super::rights::{IDENTITY, MOUNT, Rights};
use super::{Policy, copy, ground, refused};
use crate::child::{c_strings, last_words, open_null, spawn};
use crate::error::{Doing, Failure, Outcome, printable};
use crate::prelude::*;
use crate::sys::{self, Forked};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, MemfdFlags, Mode, memfd_create, statat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Resource, Rlimit, getrlimit, pidfd_open, set_dumpable_behavior, setrlimit, umask,
};
use rustix::thread::{Gid, Timespec, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

const UNPACK: [&[u8]; 6] = [b"/usr/bin/sqfs2tar", b"-X", b"-s", b"-r", b".", b"/proc/self/fd/3"];
/// A fixed number of threads: of all processors it would take one each, and the builders of all users are one user's.
const PACK: [&[u8]; 9] = [b"/usr/bin/tar2sqfs", b"-q", b"-f", b"-x", b"-c", b"lz4", b"-j", b"4", b"/proc/self/fd/3"];
/// What the builder may use at most, whatever the image says. The kernel counts the processes of all builders together,
/// each of which has 8: what a crafted image starts ends with its pid namespace.
const LIMITS: [(Resource, u64); 5] = [
    (Resource::As, 4 << 30),
    (Resource::Cpu, 1800),
    (Resource::Nproc, 4096),
    (Resource::Nofile, 64),
    (Resource::Core, 0),
];
/// The longest message of the programs that is shown, in bytes.
const MESSAGE: usize = 300;

/// A sealed image with the content of `image`.
pub fn rebuild(image: &OwnedFd, path: &[u8], policy: &Policy, limit: u64, rights: Rights) -> Outcome<OwnedFd> {
    let (uid, gid) = if policy.builder == (0, 0) { ground::builder()? } else { policy.builder };
    let own = rustix::process::getuid().as_raw();
    if uid == 0 || gid == 0 || uid == own {
        let message = format!("{} would have to be rebuilt, and the policy names no builder", shown(path));
        return Err(refused(message).hint("sandbox setuid status says what is missing; or use --mode userns"));
    }
    for program in [UNPACK[0], PACK[0]] {
        if !statat(CWD, program, AtFlags::empty()).is_ok_and(|status| is_roots(&status)) {
            let message = format!("{} would have to be rebuilt, and {} is missing", shown(path), printable(program));
            return Err(refused(message).hint("install squashfs-tools-ng, or use --mode userns"));
        }
    }
    let output = copy::empty()?;
    let said = memfd_create("sandbox-message", MemfdFlags::CLOEXEC).doing("make a file in memory", b"")?;
    // The builder ends when nobody holds the other end any more: this process cannot kill another user's.
    let (alive, held) = pipe_with(PipeFlags::CLOEXEC).doing("make a pipe", b"")?;
    let middle = match sys::fork().doing("fork", b"")? {
        Forked::Parent(pid) => pid,
        Forked::Child => {
            drop(held);
            let done =
                become_builder(rights, uid, gid, limit).and_then(|()| build_as_init(image, &output, &said, &alive));
            if let Err(failure) = &done {
                let _ = rustix::io::write(&said, failure.text().as_bytes());
            }
            sys::exit_now(done.is_err().into())
        }
    };
    drop(alive);
    let status = watch(middle, &output, image, path)?;
    drop(held);
    if !status {
        let mut why = last_words(&said, MESSAGE);
        if why.is_empty() {
            "its programs failed, or needed more than they may use".clone_into(&mut why);
        }
        return Err(refused(format!("{} cannot be rebuilt: {why}", shown(path))));
    }
    copy::seal(&output)?;
    Ok(output)
}

fn shown(path: &[u8]) -> String {
    if path.is_empty() { "the image in memory".to_owned() } else { printable(path) }
}

/// Become the builder for good: its ids, no groups, no capability, nothing that could be gained, and limits.
fn become_builder(rights: Rights, uid: u32, gid: u32, output: u64) -> Outcome<()> {
    // Nothing that a crafted image starts sees or outlives anything else of the machine, or has a network.
    let apart = libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWIPC;
    let raised = rights.raise(MOUNT);
    raised.and_then(|_raised| sys::unshare(apart as u64)).doing("make the builder's namespaces", b"")?;
    {
        let _raised = rights.raise(IDENTITY).doing("become the builder", b"")?;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        set_thread_groups(&[]).doing("leave all groups", b"")?;
        set_thread_res_gid(gid, gid, gid).doing("become the builder", b"")?;
        set_thread_res_uid(uid, uid, uid).doing("become the builder", b"")?;
    }
    rights.lift(false)?.drop_for_good()?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).doing("hide the memory of the helper", b"")?;
    for (resource, most) in LIMITS.into_iter().chain([(Resource::Fsize, output)]) {
        let most = getrlimit(resource).maximum.map_or(most, |maximum| maximum.min(most));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) }).doing("limit the builder", b"")?;
    }
    umask(Mode::from_raw_mode(0o077));
    rustix::process::setsid().doing("leave the session of the caller", b"")?;
    rustix::process::chdir("/").doing("change to the directory", b"/")?;
    // What the caller left open is not for the builder.
    sys::close_all_on_exec().doing("close descriptors", b"")
}

/// In the first process of the new pid namespace: the others die with it.
fn build_as_init(image: &OwnedFd, output: &OwnedFd, said: &OwnedFd, alive: &OwnedFd) -> Outcome<()> {
    match sys::fork().doing("fork", b"")? {
        Forked::Parent(init) => wait_for(init)?.then_some(()).ok_or_else(|| Failure::new("")),
        Forked::Child => {
            let done = build(image, output, said, alive);
            if let Err(failure) = &done {
                let _ = rustix::io::write(said, failure.text().as_bytes());
            }
            sys::exit_now(done.is_err().into())
        }
    }
}

fn build(image: &OwnedFd, output: &OwnedFd, said: &OwnedFd, alive: &OwnedFd) -> Outcome<()> {
    let null = open_null()?;
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).doing("make a pipe", b"")?;
    // Each in a domain of its own: a program that a crafted image took over cannot reach into the one that packs. Old
    // kernels have no Landlock; there the two are only apart as processes. No other reason counts.
    let confine = || matches!(sys::forbid_changes(), Ok(()) | Err(Errno::NOSYS | Errno::OPNOTSUPP));
    let unpack = [(null.as_fd(), 0), (writer.as_fd(), 1), (said.as_fd(), 2), (image.as_fd(), 3)];
    let unpacker = spawn(&c_strings(UNPACK.into_iter()), &unpack, Rights::Own, confine)?;
    let pack = [(reader.as_fd(), 0), (null.as_fd(), 1), (said.as_fd(), 2), (output.as_fd(), 3)];
    let packer = spawn(&c_strings(PACK.into_iter()), &pack, Rights::Own, confine)?;
    drop((reader, writer));
    for program in [unpacker, packer] {
        let ended = pidfd_open(program, PidfdFlags::empty()).doing("watch the builder", b"")?;
        let mut events = [PollFd::new(&ended, PollFlags::IN), PollFd::new(alive, PollFlags::empty())];
        while poll(&mut events, None) == Err(Errno::INTR) {}
        // Who launches is gone. The programs die with this process.
        if !events[1].revents().is_empty() || !wait_for(program)? {
            return Err(Failure::new(""));
        }
    }
    Ok(())
}

/// The same as `wait_for`, with a line about it on a terminal.
fn watch(builder: Pid, output: &OwnedFd, image: &OwnedFd, path: &[u8]) -> Outcome<bool> {
    let terminal = sys::standard(2);
    if !rustix::termios::isatty(terminal) {
        return wait_for(builder);
    }
    let ended = pidfd_open(builder, PidfdFlags::empty()).doing("watch the builder", b"")?;
    let second_fifth = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    let mut start = "sandbox: ";
    while poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&second_fifth)).is_ok_and(|events| events == 0) {
        let (made, given) = (copy::size(output) >> 20, copy::size(image) >> 20);
        let line = format!("{start}rebuilding {}: {made} MiB made from {given} MiB", shown(path));
        let _ = rustix::io::write(terminal, line.as_bytes());
        start = "\r\x1b[Ksandbox: ";
    }
    if start.starts_with('\r') {
        let _ = rustix::io::write(terminal, b"\r\x1b[K");
    }
    wait_for(builder)
}

/// Whether it exited with 0.
fn wait_for(pid: Pid) -> Outcome<bool> {
    Ok(sys::wait_for(pid).doing("wait for the builder", b"")?.exit_code() == Some(0))
}
