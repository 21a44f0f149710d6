//! The command line of both programs: `run PLAN ENV [INDEX=FD ...] [tree=SLOT,FD ...] [report=META,OUT ...] [attend=FD]
//! [parent=FD] [log=json] -- [argv ...]` and `version`.

use crate::environment::Environment;
use crate::error::{Doing, Failure, LAUNCHER_FAILED, Outcome, printable};
use crate::messages::{self, complain};
use crate::plan::{self, FIRST_VERSION, LAST_VERSION, MAX_BYTES, Mode, Plan};
use crate::prelude::*;
use crate::report::{self, Account, Ending, Reports};
use crate::setuid::{self, Rights, refused};
use crate::sources::Handed;
use crate::{Start, supervisor, sys};
use core::ffi::CStr;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;

const USAGE: &str = "usage: run PLAN ENV [INDEX=FD ...] [tree=SLOT,FD ...] [report=META,OUT ...] [attend=FD] \
    [parent=FD] [log=json] -- [argv ...], or: version";
/// What is said is for a program to read.
pub const LOG_JSON: &CStr = c"log=json";
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
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Program::Engine => "sandbox-engine",
            Program::Helper => "sandbox-helper",
        }
    }
}

/// Run the program; does not return.
pub fn main(program: Program, start: Start) -> ! {
    // First, before anything of the caller's is looked at.
    let rights = setuid::close(program, &start);
    sys::occupy_standard();
    let words: Vec<&CStr> = start.arguments.get(1..).unwrap_or_default().to_vec();
    if words.iter().take_while(|word| **word != c"--").any(|word| *word == LOG_JSON) {
        messages::speak_json();
    }
    let result = rights.and_then(|rights| match words.first().map(|word| word.to_bytes()) {
        Some(b"version") if words.len() == 1 => rights.drop_for_good().and_then(|()| version(program)),
        Some(b"run") => run(&words[1..], start.environment, rights),
        _ => Err(Failure::new(USAGE)),
    });
    let code = result.unwrap_or_else(|failure| {
        complain(&failure);
        failure.code
    });
    sys::exit_now(code)
}

fn version(program: Program) -> Outcome<i32> {
    let line = format!("{} {} plans {FIRST_VERSION}-{LAST_VERSION}\n", program.name(), env!("CARGO_PKG_VERSION"));
    rustix::io::write(sys::standard(1), line.as_bytes()).doing("write the version", b"").map(|_| 0)
}

fn run(words: &[&'static CStr], environment: Vec<&'static CStr>, rights: Rights) -> Outcome<i32> {
    let end = words.iter().position(|word| *word == c"--").ok_or_else(|| Failure::new(USAGE))?;
    let (&[plan_fd, environment_fd, ref pairs @ ..], command) = (&words[..end], &words[end + 1..]) else {
        return Err(Failure::new(USAGE));
    };
    let plan_fd = descriptor(plan_fd.to_bytes())?;
    let environment_fd = if environment_fd == c"-" { None } else { Some(descriptor(environment_fd.to_bytes())?) };
    let mut handed = Handed::default();
    let mut pairs_of_reports = Vec::new();
    for pair in pairs {
        let pair = pair.to_bytes();
        if let Some(numbers) = pair.strip_prefix(b"report=") {
            pairs_of_reports.push(report::descriptors(numbers)?);
        } else if let Some(number) = pair.strip_prefix(b"attend=") {
            handed.add_attendant(number)?;
        } else if let Some(number) = pair.strip_prefix(b"parent=") {
            handed.add_parent(number)?;
        } else if pair != LOG_JSON.to_bytes() {
            handed.add(pair)?;
        }
    }
    let metas = pairs_of_reports.iter().flat_map(|(meta, out)| [*meta, *out]);
    refuse_shared(handed.numbers().chain(environment_fd).chain([plan_fd]).chain(metas).collect())?;
    let mut reports = Reports::default();
    for (meta, out) in pairs_of_reports {
        reports.add(&read_all(adopt(meta)?, MAX_BYTES, "report", rights)?, report::adopt_out(out)?)?;
    }
    let mut account = Account::start();
    let wanted = (&mut account, &reports);
    let ended = prepare(plan_fd, environment_fd, environment, handed, command, rights, wanted);
    if let Err(failure) = &ended {
        account.failed(failure);
        complain(failure);
        // What is written is the caller's affair, and so are the rights to do it.
        rights.drop_for_good()?;
    }
    match (ended, reports.write(&account)) {
        // Whatever is wrong with its report, the failure itself is what counts.
        (Err(failure), _) => Ok(failure.code),
        (_, Err(failure)) => {
            complain(&failure);
            Ok(LAUNCHER_FAILED)
        }
        (Ok(Ending::Exited(code)), _) => Ok(code),
        (Ok(Ending::Killed(signal)), _) => sys::die_of(signal),
    }
}

/// Read what was handed over, and launch.
fn prepare(
    plan_fd: i32,
    environment_fd: Option<i32>,
    environment: Vec<&'static CStr>,
    handed: Handed,
    command: &[&'static CStr],
    rights: Rights,
    account: (&mut Account, &Reports),
) -> Outcome<Ending> {
    let bytes = read_all(adopt(plan_fd)?, MAX_BYTES, "plan", rights)?;
    let plan = plan::decode(&bytes)
        .map_err(|invalid| Failure::new(format!("cannot decode the plan: {} (at {})", invalid.why, invalid.at)))?;
    refuse_foreign(&plan, rights)?;
    let text = environment_fd.map(|fd| read_all(adopt(fd)?, MAX_ENVIRONMENT, "environment", rights)).transpose()?;
    let environment = match &text {
        Some(text) => Environment::parse(text)?,
        // What a setuid program is started with is the caller's word to the helper, and the helper does not listen.
        None if rights.are_lent() => return Err(refused("the environment must be handed over in a descriptor")),
        None => Environment::own(environment),
    };
    supervisor::launch(&plan, handed, environment, command, rights, account)
}

/// Whether the plan is for this user, and for the rights that this program has.
pub fn refuse_foreign(plan: &Plan, rights: Rights) -> Outcome<()> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    if (plan.uid, plan.gid) != (uid, gid) {
        let message = format!("the plan is for user {} and group {}, not {uid} and {gid}", plan.uid, plan.gid);
        let failure = if rights.are_lent() { refused(message) } else { Failure::new(message) };
        return Err(failure.hint("compile it again as this user"));
    }
    match plan.mode {
        Mode::Setuid if rights.are_lent() => Ok(()),
        _ if rights.are_lent() => Err(refused("the setuid helper takes plans of setuid mode only")),
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
    let number = core::str::from_utf8(text).ok().filter(|_| digits).and_then(|text| text.parse().ok());
    number.ok_or_else(|| Failure::new(format!("not a descriptor number: '{}'", printable(text))).hint(USAGE))
}

/// Two owners of one number would close it twice.
fn refuse_shared(mut numbers: Vec<i32>) -> Outcome<()> {
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
fn read_all(fd: OwnedFd, limit: usize, what: &str, rights: Rights) -> Outcome<Vec<u8>> {
    let is_file = fstat(&fd).is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::RegularFile);
    if rights.are_lent() && !is_file {
        return Err(refused(format!("the {what} must be handed over as a file")));
    }
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
    if seekable { rustix::io::pread(fd, spare, offset) } else { rustix::io::read(fd, spare) }
}
