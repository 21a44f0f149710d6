//! What a plan may ask of a helper that is more powerful than its caller. Whatever a user namespace would have
//! forbidden is forbidden here by a rule.

use super::{Images, Policy, refused};
use crate::error::{Doing, Outcome, printable};
use crate::fsops;
use crate::plan::{ALLOW_NEW_PRIVS, Base, Plan, Slot, SourceKind, Step, overlay};
use crate::prelude::*;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{CWD, Stat, fstat, fstatfs};

/// `PROC_SUPER_MAGIC`
const PROC: u64 = 0x9fa0;
/// The smallest tmpfs, in bytes: a page would hold nothing.
const SMALLEST_TMPFS: u64 = 1 << 16;
const MOUNTS: u64 = libc::CLONE_NEWNS as u64;
/// Namespaces that a run may have beside its own mounts; a user namespace is not among them.
const APART: u64 = (libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP | libc::CLONE_NEWNET) as u64;

/// What made a slot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tmpfs,
    Image,
    Other,
}

struct Rules<'p> {
    plan: &'p Plan<'p>,
    policy: &'p Policy,
    slots: Vec<(Slot, Kind)>,
    uppers: Vec<Slot>,
    /// Slots that the user has a way to: they were attached, or given to a program of his.
    reachable: Vec<Slot>,
    attached: Vec<Slot>,
}

type Verdict = Result<(), &'static str>;

/// Refuse a plan that breaks a rule, before anything is done; what every tmpfs has at most, in bytes.
pub fn check_plan(plan: &Plan, policy: &Policy) -> Outcome<u64> {
    policy.check_groups()?;
    // Descriptors are named to the kernel by it, with capabilities.
    let proc = fsops::open_path(CWD, b"/proc").doing("open", b"/proc")?;
    if !is_proc(proc.as_fd())? {
        return Err(refused("setuid mode needs a /proc that the kernel serves"));
    }
    judge(plan, policy).map_err(|why| refused(format!("setuid mode: {why}")))
}

/// What the plan's words alone say; nothing is asked of the system.
pub fn judge(plan: &Plan, policy: &Policy) -> Result<u64, String> {
    let mut rules =
        Rules { plan, policy, slots: Vec::new(), uppers: Vec::new(), reachable: Vec::new(), attached: Vec::new() };
    for (index, step) in plan.steps.iter().enumerate() {
        rules.step(index, step).map_err(|why| format!("{}: {why}", step.name()))?;
    }
    if plan.steps.len() < 2 {
        return Err("the plan makes no namespace".to_string());
    }
    if plan.flags & ALLOW_NEW_PRIVS != 0 {
        may_lift(plan, policy)?;
    }
    let count = plan.steps.iter().filter(|step| matches!(step, Step::Tmpfs { .. })).count() as u64;
    Ok((policy.tmpfs_bytes / count.max(1)).max(SMALLEST_TMPFS))
}

/// A program of root's believes what it finds on its usual paths: none of them may be covered.
fn may_lift(plan: &Plan, policy: &Policy) -> Verdict {
    if !policy.allow_new_privs {
        return Err("the policy allows no command to gain privileges (leave out --allow-new-privs)");
    }
    let is_inside = |step: &Step| match *step {
        Step::Attach { place, .. } => place.base == Base::Procdir,
        Step::Unshare { flags } => flags == MOUNTS,
        _ => !step.isolates(),
    };
    if plan.steps.iter().all(is_inside) {
        Ok(())
    } else {
        Err("with --allow-new-privs nothing is mounted over the host's own directories")
    }
}

impl Rules<'_> {
    fn step(&mut self, index: usize, step: &Step) -> Verdict {
        let is_start = match *step {
            Step::Unshare { flags } => index == 0 && flags & !APART == MOUNTS,
            Step::SetPropagation { .. } => index == 1,
            _ => index > 1,
        };
        if !is_start {
            return Err("a plan starts with a mount namespace of its own and its propagation, and has no other");
        }
        match *step {
            step if step.maps_ids() => return Err("no user namespace"),
            Step::Hostname { .. } => self.needs(libc::CLONE_NEWUTS, "a host name needs a UTS namespace")?,
            Step::Loopback => self.needs(libc::CLONE_NEWNET, "a loopback device needs a network namespace")?,
            Step::Network { .. } if index != 2 => return Err("a private network comes before all that is mounted"),
            Step::Network { .. } => self.needs(libc::CLONE_NEWNET, "it needs a network namespace")?,
            Step::Init { .. } if self.plan.has_init(index) => return Err("there is one init"),
            Step::Proc if !self.plan.has_init(index) => return Err("a /proc shows a pid namespace of the run's own"),
            Step::Scratch { .. } => return Err("a scratch directory on a disk is not supported (leave out --scratch)"),
            Step::Erofs { .. } => return Err("the kernel reads no erofs image for a user (use a squashfs image)"),
            Step::Tmpfs { size: 0, .. } | Step::Part { .. } => return Err("a size is needed"),
            Step::Tmpfs { slot, .. } => self.slots.push((slot, Kind::Tmpfs)),
            Step::Image { slot, source } => {
                if self.plan.sources[source as usize].kind == SourceKind::Directory {
                    return Err("an image is a file");
                }
                // The descriptor of a kept image holds its lock in the store: who has it can let go of that.
                if self.plan.steps.iter().any(|step| step.gives_away(source)) {
                    return Err("the image of a mount is given to no program");
                }
                self.slots.push((slot, Kind::Image));
            }
            Step::Overlay { slot, lowers, upper, options } => {
                self.overlay(lowers.iter(), upper, options)?;
                self.slots.push((slot, Kind::Other));
            }
            Step::Stack { slot, lowers, options } => {
                if options != 0 || !lowers.iter().all(|lower| self.kind(lower) == Kind::Image) {
                    return Err("only images are stacked, and without options");
                }
                self.slots.push((slot, Kind::Other));
            }
            Step::Attach { slot, .. } | Step::NewRoot { slot, .. } | Step::Node { slot, .. } => {
                if self.attached.contains(&slot) || self.uppers.contains(&slot) {
                    return Err("a mount is attached once, and the upper layer of an overlay nowhere");
                }
                self.attached.push(slot);
                self.reachable.push(slot);
            }
            Step::Extract { slot, .. } => {
                if self.kind(slot) != Kind::Tmpfs || self.uppers.contains(&slot) {
                    return Err("a program unpacks into a tmpfs that is no upper layer");
                }
                self.reachable.push(slot);
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the first step made the namespace that a step is about, which must not be the host's.
    fn needs(&self, flag: libc::c_int, why: &'static str) -> Verdict {
        let made = matches!(self.plan.steps.first(), Some(Step::Unshare { flags }) if flags & flag as u64 != 0);
        if made { Ok(()) } else { Err(why) }
    }

    /// An overlay works with the rights that it was made with, among them to pass any directory. So it is made of
    /// nothing that its user can reach by another way, or fill with names and links of his choice.
    fn overlay(&mut self, mut lowers: impl Iterator<Item = Slot>, upper: Slot, options: u32) -> Verdict {
        if !lowers.all(|lower| self.kind(lower) == Kind::Image) {
            return Err("only an image can be made writable (copy a directory, or use --mode userns)");
        }
        if self.kind(upper) != Kind::Tmpfs || self.reachable.contains(&upper) {
            return Err("the upper layer must be a tmpfs that is attached nowhere, and only that");
        }
        if options & overlay::USERXATTR != 0 || self.policy.images == Images::Any && options != 0 {
            return Err("an option that is not allowed");
        }
        if !self.uppers.contains(&upper) {
            self.uppers.push(upper);
        }
        Ok(())
    }

    /// What is neither a tmpfs nor an image need not be noted.
    fn kind(&self, slot: Slot) -> Kind {
        self.slots.iter().find(|(other, _)| *other == slot).map_or(Kind::Other, |(_, kind)| *kind)
    }
}

/// Whether this is of a /proc that the kernel serves.
pub fn is_proc(fd: BorrowedFd) -> Outcome<bool> {
    Ok(fstatfs(fd).doing("look at the filesystem of", b"/proc")?.f_type as u64 & 0xffff_ffff == PROC)
}

/// Refuse to mount over /proc, by which descriptors are named to the kernel, and over the guard.
pub fn check_target(target: BorrowedFd, procdirs: &Stat, path: &[u8]) -> Outcome<()> {
    let status = fstat(target).doing("look at", path)?;
    if is_proc(target)? || fsops::same_inode(&status, procdirs) {
        return Err(refused(format!("setuid mode does not mount over {}", printable(path))));
    }
    Ok(())
}
