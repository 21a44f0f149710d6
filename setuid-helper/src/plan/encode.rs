//! Plan to bytes. Nothing is checked here: `decode` knows the limits, and tests compare the two.

use super::{MAGIC, Place, Plan, Source, Step, Words};
use crate::prelude::*;

/// The plan as bytes of a version that has all it says (`version_of`).
pub fn encode(plan: &Plan, version: u16) -> Vec<u8> {
    let mut out = Writer(MAGIC.to_vec());
    out.u16(version).u8(plan.mode as u8).u8(plan.flags).u32(plan.uid).u32(plan.gid).source(&plan.home);
    out.u32(plan.sources.len() as u32);
    for source in &plan.sources {
        out.source(source);
    }
    out.u32(plan.steps.len() as u32);
    for step in &plan.steps {
        let mut body = Writer(Vec::new());
        let opcode = body.step(step);
        out.u16(opcode).bytes(&body.0);
    }
    out.0
}

struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.u32(value.len() as u32);
        self.0.extend(value);
        self
    }

    fn source(&mut self, source: &Source) -> &mut Self {
        self.u8(source.kind as u8).bytes(source.path).u64(source.dev).u64(source.ino);
        self.u64(source.size).u64(source.mtime_ns).u64(source.ctime_ns)
    }

    fn place(&mut self, place: &Place) -> &mut Self {
        self.u8(place.base as u8).bytes(place.path).u64(place.dev).u64(place.ino)
    }

    fn words(&mut self, words: Words) -> &mut Self {
        self.u32(words.len() as u32);
        self.0.extend(words.raw());
        self
    }

    /// The body; returns the opcode.
    fn step(&mut self, step: &Step) -> u16 {
        match *step {
            Step::Unshare { flags } => self.u64(flags).code(0x01),
            Step::IdMap { uid_inside, uid_outside, gid_inside, gid_outside } => {
                self.u32(uid_inside).u32(uid_outside).u32(gid_inside).u32(gid_outside).code(0x02)
            }
            Step::SetPropagation { kind } => self.u8(kind as u8).code(0x03),
            Step::Guard => 0x04,
            Step::Tmpfs { slot, size, inodes, mode } => self.u32(slot).u64(size).u64(inodes).u32(mode).code(0x05),
            Step::Scratch { source, slot, overlay_slot } => self.u32(source).u32(slot).u32(overlay_slot).code(0x06),
            Step::Tree { slot, source, recursive } => self.u32(slot).u32(source).u8(recursive.into()).code(0x07),
            Step::Image { slot, source } => self.u32(slot).u32(source).code(0x08),
            Step::Erofs { slot, source } => self.u32(slot).u32(source).code(0x2B),
            Step::Fuse { slot, source, program } => self.u32(slot).u32(source).bytes(program).code(0x09),
            Step::Extract { slot, source, argv } => {
                self.u32(slot).u32(source).u32(argv.count());
                self.0.extend(argv.raw());
                0x0a
            }
            Step::Overlay { slot, lowers, upper, options } => {
                self.u32(slot).u32(lowers.len() as u32);
                self.0.extend(lowers.raw());
                self.u32(upper).u32(options).code(0x0b)
            }
            Step::Stack { slot, lowers, options } => {
                self.u32(slot).u32(lowers.len() as u32);
                self.0.extend(lowers.raw());
                self.u32(options).code(0x40)
            }
            Step::Attach { slot, ref place, attrs } => self.u32(slot).place(place).u32(attrs).code(0x0c),
            Step::Mkdir { ref place, mode } => self.place(place).u32(mode).code(0x0d),
            Step::PlaceEnv { name, ref place } => self.bytes(name).place(place).code(0x0e),
            Step::UnsetEnv { name } => self.bytes(name).code(0x0f),
            Step::Chdir { ref place } => self.place(place).code(0x10),
            Step::Run { ref place, path } => self.place(place).bytes(path).code(0x11),
            Step::NoNewPrivs => 0x12,
            Step::DeathSignal { signal } => self.u32(signal).code(0x13),
            Step::Init { as_pid_1 } => self.u8(as_pid_1.into()).code(0x14),
            Step::LockTree { attrs } => self.u32(attrs).code(0x15),
            Step::Procdir { ref place } => self.place(place).code(0x16),
            Step::Proc => 0x17,
            Step::Dev => 0x18,
            Step::Hide { path } => self.bytes(path).code(0x19),
            Step::Loopback => 0x1a,
            Step::Hostname { name } => self.bytes(name).code(0x1b),
            Step::Identity { uid, gid } => self.u32(uid).u32(gid).code(0x1c),
            Step::DropCapabilities => 0x1d,
            Step::Idmap { slot, uid, shown_uid, gid, shown_gid } => {
                self.u32(slot).u32(uid).u32(shown_uid).u32(gid).u32(shown_gid).code(0x1e)
            }
            Step::KeepDescriptors { fds } => {
                self.u32(fds.len() as u32);
                self.0.extend(fds.raw());
                0x1f
            }
            Step::Seccomp { filter } => self.words(filter).code(0x20),
            Step::Bind { slot, ref place } => self.u32(slot).place(place).code(0x24),
            Step::Text { slot, mode, content } => self.u32(slot).u32(mode).bytes(content).code(0x25),
            Step::File { ref place, mode, content } => self.place(place).u32(mode).bytes(content).code(0x26),
            Step::Symlink { ref place, target } => self.place(place).bytes(target).code(0x27),
            Step::Node { slot, path } => self.u32(slot).bytes(path).code(0x2a),
            Step::NewRoot { slot, attrs } => self.u32(slot).u32(attrs).code(0x28),
            Step::PivotRoot { read_only } => self.u8(read_only.into()).code(0x29),
            Step::Limit { resource, soft, hard } => self.u8(resource as u8).u64(soft).u64(hard).code(0x30),
            Step::Nice { value } => self.u8(value).code(0x31),
            Step::Cgroup { source, memory, swap, pids, cpu_us } => {
                self.u32(source).u64(memory).u64(swap).u64(pids).u64(cpu_us).code(0x33)
            }
            Step::Allow { ref place, access, optional } => self.place(place).u64(access).u8(optional.into()).code(0x34),
            Step::Landlock { handled, scoped } => self.u64(handled).u64(scoped).code(0x35),
            Step::Network { source, address, gateway, resolver, closed } => {
                self.u32(source).u64(address).u32(gateway).u32(resolver).words(closed).code(0x36)
            }
            Step::Expose => 0x50,
            Step::Audit => 0x51,
            Step::Terminal => 0x52,
            Step::CountChanges { slot } => self.u32(slot).code(0x53),
            Step::Part { slot, of, mode } => self.u32(slot).u32(of).u32(mode).code(0x70),
            Step::Protect { ref place, attrs } => self.place(place).u32(attrs).code(0x54),
            Step::UserNamespace { uids, gids, programs } => {
                self.words(uids).words(gids).u32(programs.count());
                self.0.extend(programs.raw());
                0x55
            }
            Step::Shift { slot, uids, gids } => self.u32(slot).words(uids).words(gids).code(0x56),
            Step::Timeout { limit_ns, kill_after_ns } => self.u64(limit_ns).u64(kill_after_ns).code(0x32),
            Step::Name { name } => self.bytes(name).code(0x60),
            Step::Label { level, images } => {
                self.bytes(level).u32(images.count());
                self.0.extend(images.raw());
                0x61
            }
        }
    }

    fn code(&self, opcode: u16) -> u16 {
        opcode
    }
}
