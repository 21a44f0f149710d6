//! fork(2), execve(2), and what a process is given at its start.

use super::fd::last_error;
use rustix::io::Errno;
use rustix::process::Pid;
use std::ffi::{CStr, c_char};
use std::marker::PhantomData;

/// Which of the two processes this is.
pub enum Forked {
    /// The new one.
    Child,
    /// The old one, with the id of the new one.
    Parent(Pid),
}

/// fork(2). These programs never have a second thread, so the child may do anything.
pub fn fork() -> Result<Forked, Errno> {
    // SAFETY: no other thread exists (the crate starts none), so no lock is held by a thread that the child lacks.
    match unsafe { libc::fork() } {
        -1 => Err(last_error()),
        pid => Ok(Pid::from_raw(pid).map_or(Forked::Child, Forked::Parent)),
    }
}

/// End this process now: no destructors, no buffers flushed, so a forked child undoes nothing of its parent's.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// A NULL-terminated array of C strings, as execve wants it.
pub struct CStrings<'a> {
    pointers: Vec<*const c_char>,
    strings: PhantomData<&'a CStr>,
}

impl<'a> FromIterator<&'a CStr> for CStrings<'a> {
    fn from_iter<I: IntoIterator<Item = &'a CStr>>(strings: I) -> Self {
        let mut pointers: Vec<_> = strings.into_iter().map(CStr::as_ptr).collect();
        pointers.push(std::ptr::null());
        CStrings { pointers, strings: PhantomData }
    }
}

/// execve(2); returns only to say why not.
pub fn execute(path: &CStr, argv: &CStrings, environment: &CStrings) -> Errno {
    // SAFETY: all three are valid for the call: a C string, and two NULL-terminated arrays of C strings whose
    // lifetimes CStrings carries.
    unsafe { libc::execve(path.as_ptr(), argv.pointers.as_ptr(), environment.pointers.as_ptr()) };
    last_error()
}

/// The environment that this process was started with.
pub fn environment() -> Vec<&'static CStr> {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    let mut entries = Vec::new();
    // SAFETY: no thread exists and nothing in this crate changes the environment, so the array and its strings stay
    // as the kernel placed them: NULL-terminated, and valid until exit.
    unsafe {
        let mut next = environ;
        while !next.is_null() && !(*next).is_null() {
            entries.push(CStr::from_ptr(*next));
            next = next.add(1);
        }
    }
    entries
}

/// Whether the kernel started this program with more rights than its caller has (`AT_SECURE`).
pub fn is_secure_execution() -> bool {
    // SAFETY: getauxval has no preconditions.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// The kernel's word for an errno, as in "No space left on device".
pub fn error_text(error: Errno) -> String {
    let mut buffer = [0u8; 128];
    // SAFETY: strerror_r writes at most the given length into the buffer and ends it with a NUL.
    unsafe { libc::strerror_r(error.raw_os_error(), buffer.as_mut_ptr().cast(), buffer.len()) };
    let text = CStr::from_bytes_until_nul(&buffer).unwrap_or_default();
    text.to_string_lossy().into_owned()
}
