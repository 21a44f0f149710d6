//! Stored launches: where they lie, and what is in them. Every doubt means that there is none.

use super::conditions::{self, Condition};
use super::recipe::{self, Recipe};
use crate::fsops::{open_dir, read_all};
use crate::plan::reader::{Read, Reader};
use crate::plan::{MAX_BYTES, Slots};
use crate::prelude::*;
use core::ffi::CStr;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, openat, unlinkat};
use rustix::process::{getcwd, getpid, getuid};
use sha2::{Digest, Sha256};

const MAGIC: &[u8; 8] = b"SBXFRONT";
/// Of the format; sandbox/stored.py writes the same.
const VERSION: u16 = 3;
const DIRECTORY: &[u8] = b"plans";
/// Beside a plan there is little more than paths and digests.
const MAX_STORED: usize = 2 * MAX_BYTES;

/// A file that holds a launch for these very words.
pub struct Kept {
    directory: OwnedFd,
    name: String,
    bytes: Vec<u8>,
}

/// What is in it.
pub struct Stored<'a> {
    /// Where in the words the command starts.
    pub command_at: usize,
    /// The setuid helper, if it is the one to carry out the plan; else empty.
    pub helper: &'a [u8],
    /// Whether what is said is for a program.
    pub speaks_json: bool,
    /// What the command's environment is made of.
    pub recipe: Recipe<'a>,
    /// What must be as it was.
    conditions: Vec<Condition<'a>>,
    own: OwnNumbers<'a>,
    /// The encoded plan, as it was compiled.
    plan: &'a [u8],
}

/// Where a plan has the uid of the job that it was compiled for, which no other job shares.
struct OwnNumbers<'a> {
    uid: u32,
    as_number: Slots<'a>,
    as_digits: Slots<'a>,
}

/// What the uids of root's jobs start at, as in sandbox/isolation.py: with a pid on top, all have as many digits.
const FIRST_UID: u32 = 0x7000_0000;

/// What was stored for these words, here or for any working directory, if all it depended on is unchanged.
pub fn find(words: &[&CStr], environment: &[&CStr]) -> Option<Kept> {
    let variable = |name: &[u8]| conditions::value(environment, name);
    if variable(b"SANDBOX_PLAN_CACHE") == Some(b"0") {
        return None;
    }
    let directory = open_dir(home(environment)?, DIRECTORY).ok()?;
    is_private(&fstat(&directory).ok()?).then_some(())?;
    let key = key(words);
    let anywhere = open(directory, hexadecimal(&key));
    let kept = match anywhere {
        Ok(kept) => kept,
        Err(directory) => {
            let here = getcwd(Vec::new()).ok()?;
            let name = Sha256::new().chain_update(key).chain_update(here.to_bytes()).finalize();
            open(directory, hexadecimal(&name.into())).ok()?
        }
    };
    let holds = {
        let stored = kept.stored()?;
        stored.conditions.iter().all(|condition| condition.holds(environment))
    };
    holds.then_some(kept)
}

/// The home, if there is no doubt about it: inside a sandbox there is.
pub fn home(environment: &[&CStr]) -> Option<OwnedFd> {
    let variable = |name: &[u8]| conditions::value(environment, name);
    if variable(b"SANDBOX_TMPDIR").is_some() {
        return None;
    }
    match variable(b"SANDBOX_HOME").filter(|path| !path.is_empty()) {
        Some(path) => open_path_of(path),
        None => open_path_of(&[variable(b"HOME").filter(|path| !path.is_empty())?, b"/.sandbox"].concat()),
    }
}

impl Stored<'_> {
    /// The plan for a run of this process.
    pub fn plan(&self) -> Option<Vec<u8>> {
        let mut plan = self.plan.to_vec();
        if self.own.uid != 0 {
            let uid = FIRST_UID.checked_add(getpid().as_raw_nonzero().get().unsigned_abs())?;
            put(&mut plan, self.own.as_number, &uid.to_le_bytes())?;
            put(&mut plan, self.own.as_digits, uid.to_string().as_bytes())?;
        }
        Some(plan)
    }
}

fn put(plan: &mut [u8], places: Slots, text: &[u8]) -> Option<()> {
    for place in places.iter() {
        plan.get_mut(place as usize..)?.get_mut(..text.len())?.copy_from_slice(text);
    }
    Some(())
}

impl Kept {
    /// What is in the file; None if it is damaged or of another version.
    pub fn stored(&self) -> Option<Stored<'_>> {
        parse(&self.bytes).ok().flatten()
    }

    /// It is of no use any more.
    pub fn forget(&self) {
        let _ = unlinkat(&self.directory, self.name.as_str(), AtFlags::empty());
    }
}

fn open_path_of(path: &[u8]) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat(CWD, path, flags, Mode::empty()).ok()?;
    is_private(&fstat(&fd).ok()?).then_some(fd)
}

/// Whether nobody else could have written it.
pub fn is_private(status: &Stat) -> bool {
    status.st_uid == getuid().as_raw() && status.st_mode & 0o022 == 0
}

fn open(directory: OwnedFd, name: String) -> Result<Kept, OwnedFd> {
    match read(directory.as_fd(), &name) {
        Some(bytes) => Ok(Kept { directory, name, bytes }),
        None => Err(directory),
    }
}

fn read(directory: impl AsFd, name: &str) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = openat(directory, name, flags, Mode::empty()).ok()?;
    let status = fstat(&fd).ok()?;
    let is_file = FileType::from_raw_mode(status.st_mode) == FileType::RegularFile;
    let bytes = if is_file && is_private(&status) { read_all(&fd, MAX_STORED).ok()? } else { return None };
    (bytes.len() < MAX_STORED).then_some(bytes)
}

/// The words up to and including `--`, or all of them. A digest, because they may hold secrets.
fn key(words: &[&CStr]) -> [u8; 32] {
    let end = words.iter().position(|word| *word == c"--").map_or(words.len(), |at| at + 1);
    let mut digest = Sha256::new();
    for word in &words[..end] {
        digest.update(word.to_bytes_with_nul());
    }
    digest.finalize().into()
}

fn hexadecimal(digest: &[u8; 32]) -> String {
    use core::fmt::Write;
    let mut text = String::with_capacity(64);
    for byte in digest {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn parse(bytes: &[u8]) -> Read<Option<Stored<'_>>> {
    let mut reader = Reader::new(bytes);
    if reader.take(MAGIC.len())? != MAGIC || reader.u16()? != VERSION {
        return Ok(None);
    }
    let command_at = reader.u32()? as usize;
    let helper = reader.path()?;
    let speaks_json = reader.u8()? != 0;
    let recipe = recipe::read(&mut reader)?;
    let conditions = reader.list(1, conditions::read)?;
    let own = OwnNumbers { uid: reader.u32()?, as_number: reader.slots()?, as_digits: reader.slots()? };
    let plan = reader.take(reader.remaining())?;
    Ok(Some(Stored { command_at, helper, speaks_json, recipe, conditions, own, plan }))
}
