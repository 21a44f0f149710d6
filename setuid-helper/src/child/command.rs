//! Finding and executing the command.

use super::Child;
use super::place::resolve;
use crate::attendance::Given;
use crate::environment::Environment;
use crate::error::{Doing, Failure, NOT_EXECUTABLE, NOT_FOUND, Outcome, printable};
use crate::fsops::proc_fd;
use crate::plan::Place;
use crate::prelude::*;
use crate::sys::{self, CStrings};
use alloc::borrow::Cow;
use alloc::ffi::CString;
use core::ffi::CStr;
use rustix::fd::AsFd;
use rustix::fs::{Access, AtFlags, CWD, FileType, OFlags, ResolveFlags, accessat, fstat, readlinkat, statat};
use rustix::io::Errno;

/// Where a command is looked up when its environment has no `PATH`.
const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

impl Child<'_> {
    /// A `Run` step: the command is an executable inside a tree, and no link leads out of it.
    pub fn find_in_tree(&mut self, place: &Place, path: &[u8]) -> Outcome<()> {
        let tree = self.open_place(place)?;
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let fd = resolve(tree.as_fd(), path, OFlags::PATH | OFlags::CLOEXEC, how).map_err(|error| {
            let code = if error == Errno::NOENT { NOT_FOUND } else { NOT_EXECUTABLE };
            Failure::os("find in its tree", path, error).code(code)
        })?;
        let status = fstat(&fd).doing("look at", path)?;
        let is_file = FileType::from_raw_mode(status.st_mode) == FileType::RegularFile;
        if !is_file || accessat(CWD, proc_fd(&fd), Access::EXEC_OK, AtFlags::empty()).is_err() {
            let failure = Failure::new(format!("{} is not an executable file", printable(path)));
            return Err(failure.code(NOT_EXECUTABLE).hint("name a regular file with an execute bit"));
        }
        self.executable = Some(readlinkat(CWD, proc_fd(&fd), Vec::new()).doing("find the path of", path)?);
        let shown = [&self.path_of(place), &b"/"[..], path].concat();
        self.argv.insert(0, Cow::Owned(CString::new(shown).unwrap_or_default()));
        Ok(())
    }

    /// Become the command. Returns only when that fails.
    pub fn run_command(&self) -> Failure {
        let Some(name) = self.argv.first() else { return Failure::new("no command was given") };
        let argv: CStrings = self.argv.iter().map(AsRef::as_ref).collect();
        let environment = self.environment.pointers();
        if let Some(fence) = &self.fence
            && let Err(error) = sys::restrict_self(fence)
        {
            return Failure::os("put up the Landlock fence", b"", error);
        }
        if let Err(failure) = self.install_filter() {
            return failure;
        }
        let candidates = match &self.executable {
            Some(found) => vec![found.clone()],
            None => candidates(name.to_bytes(), &self.environment),
        };
        execute(name, &candidates, &argv, &environment)
    }

    fn install_filter(&self) -> Outcome<()> {
        if self.filter.is_empty() {
            return Ok(());
        }
        let listener = sys::install_filter(&self.filter, self.audited).doing("install the seccomp filter", b"")?;
        let Some(listener) = listener else { return Ok(()) };
        let attendance = self.attendance()?;
        attendance.hand_over(Given::Listener, &[listener.as_fd()]).doing("hand over the questions of the filter", b"")
    }
}

/// Where a command of this name may be.
pub fn candidates(name: &[u8], environment: &Environment) -> Vec<CString> {
    let own = |path: &[u8]| CString::new(path).unwrap_or_default();
    if name.contains(&b'/') || name.is_empty() {
        return vec![own(name)];
    }
    let path = environment.get(b"PATH").unwrap_or(DEFAULT_PATH);
    let directories = path.split(|byte| *byte == b':');
    directories
        .map(|directory| if directory.is_empty() { &b"."[..] } else { directory })
        .map(|directory| own(&[directory, b"/", name].concat()))
        .collect()
}

/// Become the first of these that can be executed. Returns only when none can.
pub fn execute(name: &CStr, candidates: &[CString], argv: &CStrings, environment: &CStrings) -> Failure {
    let mut failure = None;
    let mut missing = Vec::new();
    for candidate in candidates {
        match sys::execute(candidate, argv, environment) {
            Errno::NOENT | Errno::NOTDIR => missing.push(candidate),
            // A directory of PATH that may not be searched holds nothing for this user.
            Errno::ACCESS if !name.to_bytes().contains(&b'/') && !exists(candidate) => {}
            // As a shell does: what was found and cannot be executed counts more than what was not found.
            error => drop(failure.get_or_insert_with(|| Failure::os("run", name.to_bytes(), error))),
        }
    }
    if failure.is_none() && missing.iter().any(|candidate| exists(candidate)) {
        failure = Some(Failure::new(format!("cannot run {}: its interpreter does not exist", shown(name))));
    }
    match failure {
        Some(failure) => failure.code(NOT_EXECUTABLE),
        None => Failure::new(format!("cannot run {}: command not found", shown(name))).code(NOT_FOUND),
    }
}

fn exists(path: &CStr) -> bool {
    statat(CWD, path, AtFlags::empty()).is_ok()
}

fn shown(name: &CStr) -> String {
    printable(name.to_bytes())
}
