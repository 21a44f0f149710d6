//! The front: `sandbox` as typed. Starts a launch that Python compiled earlier, if nothing it depended on has changed,
//! and joins a run where that is possible; everything else is Python's. It understands no option: the key of a launch is
//! the words up to and including `--` (docs/performance.md, "Compiled plans"). Never setuid.

mod conditions;
mod join;
mod recipe;
mod stored;

use crate::environment::Environment;
use crate::error::{Doing, Failure, LAUNCHER_FAILED, Outcome};
use crate::fsops::write_all;
use crate::messages;
use crate::plan::{self, version};
use crate::prelude::*;
use crate::report::{Account, Ending, Reports};
use crate::setuid::{self, Rights};
use crate::sources::Handed;
use crate::sys::{self, CStrings};
use crate::{Program, Start, cli, supervisor};
use alloc::ffi::CString;
use core::ffi::CStr;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{CWD, MemfdFlags, memfd_create, readlinkat};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{PidfdFlags, Resource, getppid, getrlimit, parent_process_death_signal, pidfd_open};
use stored::{Kept, Stored};

/// The name under which the program is the engine alone, and not the front.
const ENGINE: &[u8] = b"sandbox-engine";
/// Tells Python that SIGINT waits until it can end silently: while it starts it would say where it was interrupted.
const HELD: &CStr = c"SANDBOX_HELD=INT";
/// With less CPython (3.11) dies of SIGSEGV before its first line of ours, in bytes.
const LEAST_STACK: u64 = 84 << 10;
/// Python's own command, beside the front.
const PYTHON: &[u8] = b"sandbox-python";

/// Run the program; does not return.
pub fn main(start: Start) -> ! {
    let name = start.arguments.first().map_or(ENGINE, |name| name.to_bytes());
    if name.rsplit(|byte| *byte == b'/').next() == Some(ENGINE) {
        cli::main(Program::Engine, start);
    }
    match setuid::close(Program::Engine, &start) {
        Ok(rights) => front(&start, rights),
        Err(failure) => leave(&failure),
    }
}

fn front(start: &Start, rights: Rights) -> ! {
    sys::occupy_standard();
    let words = start.arguments.get(1..).unwrap_or_default();
    if words.first() == Some(&c"run")
        && let Some(kept) = stored::find(words, &start.environment)
    {
        match launch(&kept, words, start.environment.clone(), rights) {
            Some(ending) => end_like(ending),
            // Not a word of it: Python compiles anew, and says what is wrong if that fails as well.
            None => kept.forget(),
        }
    }
    if words.first() == Some(&c"exec") {
        match join::run(words, &start.environment, rights) {
            Some(Ok(ending)) => end_like(ending),
            Some(Err(failure)) => leave(&failure),
            None => {}
        }
    }
    become_python(words, &start.environment)
}

/// Whether an option before the command says so. Only for what goes wrong before Python, which knows the options.
fn asks_for_json(words: &[&CStr]) -> bool {
    let end = words.iter().position(|word| *word == c"--").unwrap_or(words.len());
    words[..end].windows(2).any(|pair| pair == [c"--log-format", c"json"])
        || words[..end].contains(&c"--log-format=json")
}

fn end_like(ending: Ending) -> ! {
    match ending {
        Ending::Exited(code) => sys::exit_now(code),
        Ending::Killed(signal) => sys::die_of(signal),
    }
}

/// Carry out a stored plan; None when that, or what it is for, is not possible any more.
fn launch(kept: &Kept, words: &[&'static CStr], environment: Vec<&'static CStr>, rights: Rights) -> Option<Ending> {
    let stored = kept.stored()?;
    if stored.speaks_json {
        messages::speak_json();
    }
    // Which Python refuses, before it looks for anything.
    let command = words.get(stored.command_at..).filter(|words| words.first().is_none_or(|name| !name.is_empty()))?;
    let environment = recipe::apply(&stored.recipe, environment, words)?;
    let encoded = stored.plan()?;
    if !stored.helper.is_empty() {
        become_helper(&stored, &encoded, &environment, command);
        return None;
    }
    let plan = plan::decode(&encoded).ok()?;
    cli::refuse_foreign(&plan, rights).ok()?;
    let mut account = Account::start();
    let ended =
        supervisor::launch(&plan, Handed::default(), environment, command, rights, (&mut account, &Reports::default()));
    match ended {
        Ok(ending) => Some(ending),
        Err(failure) if failure.code == LAUNCHER_FAILED => None,
        Err(failure) => leave(&failure),
    }
}

/// Hand plan and environment to the setuid helper, as Python would; returns only when that fails.
fn become_helper(stored: &Stored, plan: &[u8], environment: &Environment, command: &[&'static CStr]) {
    let Ok(files) = [plan, &environment.text()].map(memory).into_iter().collect::<Outcome<Vec<_>>>() else {
        return;
    };
    let Ok(helper) = CString::new(stored.helper) else { return };
    let numbers: Vec<CString> =
        files.iter().map(|fd| CString::new(fd.as_raw_fd().to_string()).unwrap_or_default()).collect();
    let parent = if version::told(plan) >= version::BESIDE { parent_to_die_with() } else { None };
    let pair = parent.as_ref().and_then(|fd| CString::new(format!("parent={}", fd.as_raw_fd())).ok());
    let own = [helper.as_c_str(), c"run"].into_iter().chain(numbers.iter().chain(&pair).map(|text| text.as_c_str()));
    let own = own.chain(stored.speaks_json.then_some(cli::LOG_JSON));
    let argv: CStrings = own.chain([c"--"]).chain(command.iter().copied()).collect();
    // The helper is to see nothing of the caller's environment.
    let _ = sys::execute(&helper, &argv, &[].into_iter().collect());
}

/// Where this process is to die with its parent, which the helper would not be told: a pidfd of that, which outlives
/// exec.
fn parent_to_die_with() -> Option<OwnedFd> {
    parent_process_death_signal().ok().flatten()?;
    let fd = pidfd_open(getppid()?, PidfdFlags::empty()).ok()?;
    fcntl_setfd(&fd, FdFlags::empty()).ok()?;
    Some(fd)
}

/// A file in memory that outlives exec.
fn memory(data: &[u8]) -> Outcome<OwnedFd> {
    let fd = memfd_create(c"sandbox-plan", MemfdFlags::empty()).doing("make a file in memory", b"")?;
    write_all(&fd, data).doing("write a file in memory", b"")?;
    Ok(fd)
}

/// The same command in Python, which lies beside this program wherever it was installed.
fn become_python(words: &[&'static CStr], environment: &[&'static CStr]) -> ! {
    if asks_for_json(words) {
        messages::speak_json();
    }
    if let Some(fd) = (0..3).find(|&fd| sys::is_directory(fd)) {
        let failure = Failure::new(format!("cannot start with a directory as descriptor {fd}"));
        leave(&failure.hint("give it a file there, or /dev/null"));
    }
    if let Some(stack @ ..LEAST_STACK) = getrlimit(Resource::Stack).current {
        let failure = Failure::new(format!("cannot start Python with a stack of {} KiB", stack >> 10));
        leave(&failure.hint("allow more: ulimit -s 1024"));
    }
    let own = readlinkat(CWD, "/proc/self/exe", Vec::new()).unwrap_or_default();
    let directory = own.to_bytes().rsplitn(2, |byte| *byte == b'/').nth(1).unwrap_or_default();
    let path = CString::new([directory, b"/", PYTHON].concat()).unwrap_or_default();
    let argv: CStrings = [path.as_c_str()].into_iter().chain(words.iter().copied()).collect();
    let held = sys::hold(libc::SIGINT).then_some(HELD);
    let error = sys::execute(&path, &argv, &environment.iter().copied().chain(held).collect());
    let failure = Failure::os("start", path.to_bytes(), error);
    leave(&failure.hint(match error {
        Errno::ACCESS => {
            "you may not execute it, or not the Python in its first line: install with a Python for all users"
        }
        _ => "it, or the Python in its first line, is gone: install sandbox again",
    }))
}

fn leave(failure: &Failure) -> ! {
    messages::complain(failure);
    sys::exit_now(failure.code)
}
