//! What the layout alone cannot say: indices within bounds, slots made once and before use, option bits.

use super::reader::Invalid;
use super::{Base, MAX_HOSTNAME, MAX_NAME, Plan, Slot, SourceKind, Step, Words, attr, overlay};
use crate::prelude::*;

pub fn check(plan: &Plan) -> Result<(), Invalid> {
    if plan.home.kind != SourceKind::Directory {
        return Err(Invalid { why: "the home is not a directory source", at: 0 });
    }
    let count = |is: fn(&Step) -> bool| plan.steps.iter().filter(|step| is(step)).count();
    let once: [fn(&Step) -> bool; 8] = [
        |step| matches!(step, Step::Timeout { .. }),
        |step| matches!(step, Step::Cgroup { .. }),
        |step| matches!(step, Step::Landlock { .. }),
        |step| matches!(step, Step::Network { .. }),
        |step| matches!(step, Step::Name { .. }),
        |step| matches!(step, Step::Label { .. }),
        |step| matches!(step, Step::NewRoot { .. }),
        |step| matches!(step, Step::PivotRoot { .. }),
    ];
    if once.into_iter().any(|is| count(is) > 1) {
        return Err(Invalid { why: "more than one of what there is one of", at: 0 });
    }
    check_pivot(&plan.steps)?;
    let mut defined = Defined(Vec::new());
    for (index, step) in plan.steps.iter().enumerate() {
        step_fault(step, plan, &mut defined).map_err(|why| Invalid { why, at: index })?;
    }
    Ok(())
}

/// There is a new root to go to, and nothing afterwards that would believe a /proc of somebody's choice.
fn check_pivot(steps: &[Step]) -> Result<(), Invalid> {
    let Some(at) = steps.iter().position(|step| matches!(step, Step::PivotRoot { .. })) else { return Ok(()) };
    if !steps[..at].iter().any(|step| matches!(step, Step::NewRoot { .. })) {
        return Err(Invalid { why: "PivotRoot without a new root", at });
    }
    match steps[at..].iter().position(Step::is_before_pivot) {
        Some(late) => Err(Invalid { why: "a step that makes something after PivotRoot", at: at + late }),
        None => Ok(()),
    }
}

/// The slots made so far, sorted: a hostile plan may hold thousands.
struct Defined(Vec<Slot>);

type Fault = Result<(), &'static str>;

impl Defined {
    fn used(&self, slot: Slot) -> Fault {
        self.0.binary_search(&slot).map(|_| ()).map_err(|_| "a slot is used before it is made")
    }

    fn made(&mut self, slot: Slot) -> Fault {
        match self.0.binary_search(&slot) {
            Ok(_) => Err("a slot is made twice"),
            Err(at) => {
                self.0.insert(at, slot);
                Ok(())
            }
        }
    }
}

fn step_fault(step: &Step, plan: &Plan, defined: &mut Defined) -> Fault {
    let sources = plan.sources.len();
    match *step {
        Step::Tmpfs { slot, .. } | Step::Text { slot, .. } => defined.made(slot),
        Step::Bind { slot, place } => {
            if place.base != Base::Root {
                return Err("a bind is of the host");
            }
            defined.made(slot)
        }
        Step::Symlink { target: b"", .. } => Err("an empty target"),
        Step::Scratch { source, slot, overlay_slot } => {
            source_exists(source, sources)?;
            defined.made(slot)?;
            defined.made(overlay_slot)
        }
        Step::Tree { slot, source, .. } | Step::Image { slot, source } | Step::Erofs { slot, source } => {
            source_exists(source, sources)?;
            defined.made(slot)
        }
        Step::Fuse { slot, source, program } => {
            source_exists(source, sources)?;
            absolute(program)?;
            defined.made(slot)
        }
        Step::Extract { slot, source, argv } => {
            source_exists(source, sources)?;
            absolute(argv.iter().next().unwrap_or_default())?;
            defined.used(slot)
        }
        Step::Overlay { slot, lowers, upper, options } => {
            if lowers.is_empty() || options & !overlay::ALL != 0 {
                return Err("no lower, or unknown options");
            }
            lowers.iter().try_for_each(|lower| defined.used(lower))?;
            defined.used(upper)?;
            defined.made(slot)
        }
        Step::Part { slot, of, .. } => {
            let is_tmpfs = |step: &Step| matches!(*step, Step::Tmpfs { slot, .. } if slot == of);
            if !plan.steps.iter().any(is_tmpfs) {
                return Err("a part of what is no tmpfs");
            }
            defined.used(of)?;
            defined.made(slot)
        }
        Step::Stack { slot, lowers, options } => {
            if lowers.len() < 2 || options & !overlay::USERXATTR != 0 {
                return Err("less than two lowers, or unknown options");
            }
            lowers.iter().try_for_each(|lower| defined.used(lower))?;
            defined.made(slot)
        }
        Step::Attach { slot, attrs, .. } | Step::NewRoot { slot, attrs } => {
            if attrs & !attr::ALL != 0 {
                return Err("unknown attributes");
            }
            defined.used(slot)
        }
        Step::LockTree { attrs } | Step::Protect { attrs, .. } if attrs & !attr::ALL != 0 => Err("unknown attributes"),
        Step::Hide { path } if !path.starts_with(b"/") => Err("the path is not absolute"),
        Step::Hostname { name } if name.is_empty() || name.len() > MAX_HOSTNAME => Err("not a host name"),
        Step::Seccomp { filter } if filter.is_empty() => Err("an empty filter"),
        Step::Name { name } if !is_run_name(name) => Err("not a name for a run"),
        Step::Idmap { slot, .. } | Step::CountChanges { slot } | Step::Node { slot, .. } => defined.used(slot),
        Step::PlaceEnv { name, .. } | Step::UnsetEnv { name } => variable_name(name),
        Step::Network { address, closed, .. } if !closed.iter().chain([address]).all(is_network) => {
            Err("no IPv4 network")
        }
        Step::Network { source, .. } => match plan.sources.get(source as usize) {
            Some(handed) if handed.kind == SourceKind::Memory => Ok(()),
            _ => Err("a network is a source that is handed over"),
        },
        Step::Cgroup { source, .. } => source_exists(source, sources),
        Step::Limit { soft, hard, .. } if soft > hard => Err("a limit beyond its own maximum"),
        Step::Allow { access: 0, .. } => Err("it allows nothing"),
        Step::UserNamespace { uids, gids, programs } => {
            id_map(uids).and_then(|()| id_map(gids))?;
            match programs.count() {
                0 | 2 => programs.iter().try_for_each(absolute),
                _ => Err("neither no program nor two"),
            }
        }
        Step::Shift { slot, uids, gids } => id_map(uids).and_then(|()| id_map(gids)).and_then(|()| defined.used(slot)),
        Step::Nice { value } if value > 39 => Err("no such nice value"),
        _ => Ok(()),
    }
}

/// Ranges of ids: where each starts on both sides, and how many there are.
fn id_map(words: Words) -> Fault {
    let all: Vec<u64> = words.iter().collect();
    let (ranges, rest) = all.as_chunks::<3>();
    let last = u64::from(u32::MAX);
    let fits = |[one, other, count]: &[u64; 3]| {
        *count > 0 && [one, other].into_iter().all(|start| start.saturating_add(*count) <= last)
    };
    if !ranges.is_empty() && rest.is_empty() && ranges.iter().all(fits) { Ok(()) } else { Err("no map of ids") }
}

/// An IPv4 address above the length of a prefix.
fn is_network(word: u64) -> bool {
    word >> 40 == 0 && word & 0xff <= 32
}

fn source_exists(source: u32, sources: usize) -> Fault {
    if (source as usize) < sources { Ok(()) } else { Err("no such source") }
}

fn absolute(program: &[u8]) -> Fault {
    if program.starts_with(b"/") { Ok(()) } else { Err("the program's path is not absolute") }
}

/// One component of a path, and never a number: what runs without a name are called.
fn is_run_name(name: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    name.first().is_some_and(u8::is_ascii_alphabetic) && name.len() <= MAX_NAME && name.iter().all(plain)
}

fn variable_name(name: &[u8]) -> Fault {
    if name.is_empty() || name.contains(&b'=') { Err("bad variable name") } else { Ok(()) }
}
