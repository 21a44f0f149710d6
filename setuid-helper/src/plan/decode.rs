//! Bytes to Plan. The input is hostile: the first doubt rejects the whole plan.

use super::check::check;
use super::reader::{Invalid, Read, Reader};
use super::version::version_of;
use super::{
    Base, FIRST_VERSION, FLAGS, LAST_VERSION, MAGIC, MAX_BYTES, Mode, Place, Plan, Propagation, Resource, Source,
    SourceKind, Step,
};

const SMALLEST_SOURCE: usize = 1 + 4 + 5 * 8;
const SMALLEST_STEP: usize = 2 + 4;

/// The plan in `data`, or why there is none.
pub fn decode(data: &[u8]) -> Result<Plan<'_>, Invalid> {
    if data.len() > MAX_BYTES {
        return Err(Invalid { why: "longer than 1,048,576 bytes", at: MAX_BYTES });
    }
    let mut r = Reader::new(data);
    if r.take(MAGIC.len())? != MAGIC {
        return Err(r.fail("it does not start with the magic bytes"));
    }
    let version = r.u16()?;
    if !(FIRST_VERSION..=LAST_VERSION).contains(&version) {
        return Err(r.fail("a version that this program does not take"));
    }
    let mode = mode(&mut r)?;
    let flags = r.u8()?;
    if flags & !FLAGS != 0 {
        return Err(r.fail("unknown flags"));
    }
    let (uid, gid) = (r.u32()?, r.u32()?);
    let home = source(&mut r)?;
    let sources = r.list(SMALLEST_SOURCE, source)?;
    let steps = r.list(SMALLEST_STEP, step)?;
    if r.remaining() != 0 {
        return Err(r.fail("trailing bytes"));
    }
    let plan = Plan { mode, flags, uid, gid, home, sources, steps };
    if version_of(&plan) > version {
        return Err(Invalid { why: "it holds something that its version has not", at: MAGIC.len() });
    }
    check(&plan)?;
    Ok(plan)
}

fn mode(r: &mut Reader) -> Read<Mode> {
    match r.u8()? {
        1 => Ok(Mode::Root),
        2 => Ok(Mode::Setuid),
        3 => Ok(Mode::Userns),
        4 => Ok(Mode::Landlock),
        _ => Err(r.fail("unknown mode")),
    }
}

fn source<'a>(r: &mut Reader<'a>) -> Read<Source<'a>> {
    let kind = match r.u8()? {
        1 => SourceKind::File,
        2 => SourceKind::Directory,
        3 => SourceKind::Memory,
        _ => return Err(r.fail("unknown source kind")),
    };
    let path = r.path()?;
    let well_formed = match kind {
        SourceKind::Memory => path.is_empty(),
        _ => path.starts_with(b"/"),
    };
    if !well_formed {
        return Err(r.fail("a source's path is not absolute, or a memory source has one"));
    }
    Ok(Source { kind, path, dev: r.u64()?, ino: r.u64()?, size: r.u64()?, mtime_ns: r.u64()?, ctime_ns: r.u64()? })
}

fn place<'a>(r: &mut Reader<'a>) -> Read<Place<'a>> {
    let base = match r.u8()? {
        1 => Base::Root,
        2 => Base::Procdir,
        _ => return Err(r.fail("unknown base")),
    };
    let path = r.path()?;
    let well_formed = match base {
        Base::Root => path.starts_with(b"/"),
        Base::Procdir => path.is_empty() || is_plain(path),
    };
    if !well_formed {
        return Err(r.fail("a place's path is not absolute, or not of plain components below the procdir"));
    }
    Ok(Place { base, path, dev: r.u64()?, ino: r.u64()? })
}

fn is_plain(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').all(|part| !matches!(part, b"" | b"." | b".."))
}

fn plain<'a>(r: &mut Reader<'a>) -> Read<&'a [u8]> {
    let path = r.path()?;
    if is_plain(path) { Ok(path) } else { Err(r.fail("a node needs plain components")) }
}

fn step<'a>(r: &mut Reader<'a>) -> Read<Step<'a>> {
    let opcode = r.u16()?;
    let length = r.u32()? as usize;
    let start = r.at();
    let step = body(opcode, r)?;
    if r.at() - start != length {
        return Err(r.fail("a step does not fill its length"));
    }
    Ok(step)
}

fn body<'a>(opcode: u16, r: &mut Reader<'a>) -> Read<Step<'a>> {
    // Fields of a struct expression are evaluated in the order they are written, which is that of the encoding.
    Ok(match opcode {
        0x01 => Step::Unshare { flags: r.u64()? },
        0x02 => {
            Step::IdMap { uid_inside: r.u32()?, uid_outside: r.u32()?, gid_inside: r.u32()?, gid_outside: r.u32()? }
        }
        0x03 => Step::SetPropagation { kind: propagation(r)? },
        0x04 => Step::Guard,
        0x05 => Step::Tmpfs { slot: r.u32()?, size: r.u64()?, inodes: r.u64()?, mode: r.u32()? },
        0x06 => Step::Scratch { source: r.u32()?, slot: r.u32()?, overlay_slot: r.u32()? },
        0x07 => Step::Tree { slot: r.u32()?, source: r.u32()?, recursive: boolean(r)? },
        0x08 => Step::Image { slot: r.u32()?, source: r.u32()? },
        0x2B => Step::Erofs { slot: r.u32()?, source: r.u32()? },
        0x09 => Step::Fuse { slot: r.u32()?, source: r.u32()?, program: r.path()? },
        0x0a => Step::Extract { slot: r.u32()?, source: r.u32()?, argv: r.strings()? },
        0x0b => Step::Overlay { slot: r.u32()?, lowers: r.slots()?, upper: r.u32()?, options: r.u32()? },
        0x0c => Step::Attach { slot: r.u32()?, place: place(r)?, attrs: r.u32()? },
        0x0d => Step::Mkdir { place: place(r)?, mode: r.u32()? },
        0x0e => Step::PlaceEnv { name: r.string()?, place: place(r)? },
        0x0f => Step::UnsetEnv { name: r.string()? },
        0x10 => Step::Chdir { place: place(r)? },
        0x11 => Step::Run { place: place(r)?, path: r.path()? },
        0x12 => Step::NoNewPrivs,
        0x13 => Step::DeathSignal { signal: r.u32()? },
        0x14 => Step::Init { as_pid_1: boolean(r)? },
        0x15 => Step::LockTree { attrs: r.u32()? },
        0x16 => Step::Procdir { place: place(r)? },
        0x17 => Step::Proc,
        0x18 => Step::Dev,
        0x19 => Step::Hide { path: r.path()? },
        0x1a => Step::Loopback,
        0x1b => Step::Hostname { name: r.string()? },
        0x1c => Step::Identity { uid: r.u32()?, gid: r.u32()? },
        0x1d => Step::DropCapabilities,
        0x1e => Step::Idmap { slot: r.u32()?, uid: r.u32()?, shown_uid: r.u32()?, gid: r.u32()?, shown_gid: r.u32()? },
        0x1f => Step::KeepDescriptors { fds: r.slots()? },
        0x20 => Step::Seccomp { filter: r.words()? },
        0x24 => Step::Bind { slot: r.u32()?, place: place(r)? },
        0x25 => Step::Text { slot: r.u32()?, mode: r.u32()?, content: r.string()? },
        0x26 => Step::File { place: place(r)?, mode: r.u32()?, content: r.string()? },
        0x27 => Step::Symlink { place: place(r)?, target: r.path()? },
        0x28 => Step::NewRoot { slot: r.u32()?, attrs: r.u32()? },
        0x29 => Step::PivotRoot { read_only: boolean(r)? },
        0x2a => Step::Node { slot: r.u32()?, path: plain(r)? },
        0x30 => Step::Limit { resource: resource(r)?, soft: r.u64()?, hard: r.u64()? },
        0x31 => Step::Nice { value: r.u8()? },
        0x33 => Step::Cgroup { source: r.u32()?, memory: r.u64()?, swap: r.u64()?, pids: r.u64()?, cpu_us: r.u64()? },
        0x32 => Step::Timeout { limit_ns: r.u64()?, kill_after_ns: r.u64()? },
        0x34 => Step::Allow { place: place(r)?, access: r.u64()?, optional: boolean(r)? },
        0x35 => Step::Landlock { handled: r.u64()?, scoped: r.u64()? },
        0x36 => {
            let (source, address, gateway, resolver) = (r.u32()?, r.u64()?, r.u32()?, r.u32()?);
            Step::Network { source, address, gateway, resolver, closed: r.words()? }
        }
        0x60 => Step::Name { name: r.string()? },
        0x61 => Step::Label { level: r.string()?, images: r.strings()? },
        0x40 => Step::Stack { slot: r.u32()?, lowers: r.slots()?, options: r.u32()? },
        0x50 => Step::Expose,
        0x51 => Step::Audit,
        0x52 => Step::Terminal,
        0x53 => Step::CountChanges { slot: r.u32()? },
        0x70 => Step::Part { slot: r.u32()?, of: r.u32()?, mode: r.u32()? },
        0x54 => Step::Protect { place: place(r)?, attrs: r.u32()? },
        0x55 => Step::UserNamespace { uids: r.words()?, gids: r.words()?, programs: r.strings()? },
        0x56 => Step::Shift { slot: r.u32()?, uids: r.words()?, gids: r.words()? },
        _ => return Err(r.fail("unknown step")),
    })
}

fn propagation(r: &mut Reader) -> Read<Propagation> {
    match r.u8()? {
        1 => Ok(Propagation::Slave),
        2 => Ok(Propagation::Private),
        _ => Err(r.fail("unknown propagation")),
    }
}

fn resource(r: &mut Reader) -> Read<Resource> {
    match r.u8()? {
        1 => Ok(Resource::CpuSeconds),
        2 => Ok(Resource::FileBytes),
        3 => Ok(Resource::OpenFiles),
        4 => Ok(Resource::DataBytes),
        5 => Ok(Resource::Processes),
        6 => Ok(Resource::CoreBytes),
        _ => Err(r.fail("unknown resource")),
    }
}

fn boolean(r: &mut Reader) -> Read<bool> {
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(r.fail("neither 0 nor 1")),
    }
}
