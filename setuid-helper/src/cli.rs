//! The command line of both programs: `run PLAN ENV [INDEX=FD ...] -- [argv ...]` and `version`.

use crate::environment::Environment;
use crate::error::{Doing, Failure, LAUNCHER_FAILED, Outcome, printable};
use crate::plan::{self, FIRST_VERSION, LAST_VERSION, MAX_BYTES, Mode, Plan};
use crate::sources::Handed;
use crate::{supervisor, sys};
use rustix::io::Errno;
use std::ffi::CString;
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

const USAGE: &str = "usage: run PLAN ENV [INDEX=FD ...] -- [argv ...], or: version";
/// The kernel takes at most 6 MiB of arguments and environment together (execve(2)).
const MAX_ENVIRONMENT: usize = 6 << 20;

/// Which of the two programs this is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Never setuid.
    Engine,
    /// May be installed setuid-root.
    Helper,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Program::Engine => "sandbox-engine",
            Program::Helper => "sandbox-helper",
        }
    }
}

/// Run the program; does not return.
pub fn main(program: Program) -> ! {
    let arguments: Vec<Vec<u8>> = std::env::args_os().skip(1).map(OsStringExt::into_vec).collect();
    let result = match arguments.first().map(Vec::as_slice) {
        Some(b"version") if arguments.len() == 1 => version(program),
        Some(b"run") => run(program, arguments),
        _ => Err(Failure::new(USAGE)),
    };
    match result {
        Ok(code) => std::process::exit(code),
        Err(failure) => {
            complain(&failure.message);
            std::process::exit(failure.code)
        }
    }
}

/// One line on descriptor 2, in one write, so that lines of parallel launches do not mix.
pub fn complain(message: &str) {
    let _ = std::io::stderr().write_all(format!("sandbox: {message}\n").as_bytes());
}

fn version(program: Program) -> Outcome<i32> {
    let line = format!("{} {} plans {FIRST_VERSION}-{LAST_VERSION}\n", program.name(), env!("CARGO_PKG_VERSION"));
    let written = std::io::stdout().write_all(line.as_bytes());
    Ok(if written.is_ok() { 0 } else { LAUNCHER_FAILED })
}

fn run(program: Program, arguments: Vec<Vec<u8>>) -> Outcome<i32> {
    refuse_borrowed_rights(program)?;
    let mut arguments = arguments.into_iter().skip(1);
    let plan_fd = descriptor(&arguments.next().unwrap_or_default())?;
    let environment = arguments.next().ok_or_else(|| Failure::new(USAGE))?;
    let environment_fd = if environment == b"-" { None } else { Some(descriptor(&environment)?) };
    let mut handed = Handed::default();
    loop {
        match arguments.next() {
            None => return Err(Failure::new(USAGE)),
            Some(separator) if separator == b"--" => break,
            Some(pair) => handed.add(&pair)?,
        }
    }
    refuse_shared(plan_fd, environment_fd, &handed)?;
    let command = arguments.map(CString::new).collect::<Result<Vec<_>, _>>().map_err(|_| Failure::new(USAGE))?;
    let bytes = read_all(adopt(plan_fd)?, MAX_BYTES, "plan")?;
    let plan = plan::decode(&bytes)
        .map_err(|invalid| Failure::new(format!("cannot decode the plan: {} (at {})", invalid.why, invalid.at)))?;
    refuse_foreign(&plan)?;
    let text = environment_fd.map(|fd| read_all(adopt(fd)?, MAX_ENVIRONMENT, "environment")).transpose()?;
    let environment = match &text {
        Some(text) => Environment::parse(text)?,
        None => Environment::own(),
    };
    supervisor::launch(&plan, handed, environment, command)
}

/// An engine with more rights than its caller must go through the setuid surface, which this is not.
fn refuse_borrowed_rights(program: Program) -> Outcome<()> {
    use rustix::process::{getegid, geteuid, getgid, getuid};
    if sys::is_secure_execution() || getuid() != geteuid() || getgid() != getegid() {
        let message = format!("{} must not run with more rights than its caller", program.name());
        return Err(Failure::new(message).hint("remove its setuid and setgid bits and its file capabilities"));
    }
    Ok(())
}

fn refuse_foreign(plan: &Plan) -> Outcome<()> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    if (plan.uid, plan.gid) != (uid, gid) {
        let message = format!("the plan is for user {} and group {}, not {uid} and {gid}", plan.uid, plan.gid);
        return Err(Failure::new(message).hint("compile it again as this user"));
    }
    match plan.mode {
        Mode::Setuid => {
            Err(Failure::new("the plan needs setuid mode").hint("install the setuid helper, or choose another mode"))
        }
        Mode::Root if uid != 0 => {
            Err(Failure::new("the plan needs root mode").hint("run as root, or choose another mode"))
        }
        _ => Ok(()),
    }
}

/// A descriptor number on the command line.
pub fn descriptor(text: &[u8]) -> Outcome<i32> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(text).ok().filter(|_| digits).and_then(|text| text.parse().ok());
    number.ok_or_else(|| Failure::new(format!("not a descriptor number: '{}'", printable(text))).hint(USAGE))
}

/// Two owners of one number would close it twice.
fn refuse_shared(plan: i32, environment: Option<i32>, handed: &Handed) -> Outcome<()> {
    let mut numbers: Vec<i32> = handed.numbers().chain(environment).chain([plan]).collect();
    numbers.sort_unstable();
    match numbers.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Failure::new(format!("descriptor {} is named twice", pair[0]))),
        None => Ok(()),
    }
}

fn adopt(number: i32) -> Outcome<OwnedFd> {
    sys::adopt(number).doing("use descriptor", number.to_string().as_bytes())
}

/// Everything in a file, from its start, or in a pipe; more than `limit` bytes are refused.
fn read_all(fd: OwnedFd, limit: usize, what: &str) -> Outcome<Vec<u8>> {
    let seekable = rustix::fs::tell(&fd).is_ok();
    let mut bytes = Vec::with_capacity(4096);
    loop {
        if bytes.len() == bytes.capacity() {
            bytes.reserve(bytes.len());
        }
        match read_some(&fd, seekable, &mut bytes).doing("read the", what.as_bytes())? {
            0 => return Ok(bytes),
            _ if bytes.len() > limit => return Err(Failure::new(format!("the {what} is longer than {limit} bytes"))),
            _ => {}
        }
    }
}

fn read_some(fd: &OwnedFd, seekable: bool, bytes: &mut Vec<u8>) -> Result<usize, Errno> {
    let offset = bytes.len() as u64;
    let spare = rustix::buffer::spare_capacity(bytes);
    let fd: BorrowedFd = std::os::fd::AsFd::as_fd(fd);
    if seekable { rustix::io::pread(fd, spare, offset) } else { rustix::io::read(fd, spare) }
}
