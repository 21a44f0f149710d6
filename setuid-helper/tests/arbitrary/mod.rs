//! Arbitrary valid plans, with every kind of step.

use proptest::prelude::*;
use sandbox_native::plan::{
    Base, LAST_VERSION, Mode, Place, Plan, Propagation, Resource, Source, SourceKind, Step, decode, encode,
};

/// Bytes without NUL, of at most `limit`.
pub fn text(limit: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(1..=255u8, 0..limit)
}

/// What a step is made from; bytes are owned here, and borrowed by the step.
#[derive(Clone, Debug)]
pub struct Seed {
    kind: u8,
    numbers: [u64; 3],
    name: Vec<u8>,
    rooted: Vec<u8>,
    below: Vec<u8>,
    called: Vec<u8>,
    lists: Vec<u8>,
}

/// What a plan is made from.
#[derive(Clone, Debug)]
pub struct PlanSeed {
    steps: Vec<Seed>,
    home: Vec<u8>,
    numbers: [u64; 5],
}

const KINDS: u8 = 58;

fn seed() -> impl Strategy<Value = Seed> {
    let component = prop::collection::vec(b'a'..=b'z', 1..8);
    let below = prop::collection::vec(component, 0..4).prop_map(|parts| parts.join(&b'/'));
    let name = prop::collection::vec((1..=255u8).prop_filter("=", |byte| *byte != b'='), 1..64);
    let words = prop::collection::vec(any::<u64>(), 1..4);
    let called = prop::collection::vec(b'a'..=b'z', 1..64);
    (0..KINDS, any::<[u64; 3]>(), name, text(64), below, called, words, text(20)).prop_map(
        |(kind, numbers, name, rest, below, called, words, argument)| {
            let rooted = [b"/".as_slice(), &rest].concat();
            let lists = lists(&words, &[&rooted, &argument]);
            Seed { kind, numbers, name, rooted, below, called, lists }
        },
    )
}

/// Seeds of plans.
pub fn plan_seed() -> impl Strategy<Value = PlanSeed> {
    (prop::collection::vec(seed(), 0..20), text(100), any::<[u64; 5]>()).prop_map(|(steps, home, numbers)| PlanSeed {
        steps,
        home: [b"/".as_slice(), &home].concat(),
        numbers,
    })
}

/// Lists exist only as parts of a decoded plan: this one has one of each kind, and one that says slot 0 twice.
fn lists(words: &[u64], strings: &[&[u8]]) -> Vec<u8> {
    let count = |length: usize| (length as u32).to_le_bytes().to_vec();
    let body = |head: &[u32], length: usize, items: Vec<u8>| {
        let head: Vec<u8> = head.iter().flat_map(|number| number.to_le_bytes()).collect();
        [head, count(length), items].concat()
    };
    let fds = words.iter().flat_map(|word| (*word as u32).to_le_bytes()).collect();
    let filter = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let networks = words.iter().flat_map(|word| network(*word).to_le_bytes()).collect();
    let argv = strings.iter().flat_map(|string| [count(string.len()), string.to_vec()].concat()).collect();
    let range = |word: &u64| [word >> 33, (word << 32) >> 33, 1 + word % 1000];
    let ranges: Vec<u8> = words.iter().flat_map(range).flat_map(u64::to_le_bytes).collect();
    let map = [count(words.len() * 3), ranges].concat();
    let bodies = [
        (0x05u16, [0u32; 6].iter().flat_map(|number| number.to_le_bytes()).collect()),
        (0x40, body(&[1], 2, vec![0; 12])),
        (0x0a, body(&[0, 0], strings.len(), argv)),
        (0x1f, body(&[], words.len(), fds)),
        (0x20, body(&[], words.len(), filter)),
        (0x20, body(&[], words.len(), networks)),
        (0x55, [map.clone(), map, count(0)].concat()),
    ];
    let mut bytes = encode(&bare(b"/", 1), LAST_VERSION);
    bytes.truncate(bytes.len() - 4);
    bytes.extend(count(bodies.len()));
    for (opcode, body) in bodies {
        bytes.extend(opcode.to_le_bytes());
        bytes.extend(count(body.len()));
        bytes.extend(body);
    }
    bytes
}

/// An IPv4 network.
fn network(word: u64) -> u64 {
    (word & 0xff_ffff_ff00) | (word % 33)
}

/// A plan without steps.
pub fn bare(home: &[u8], sources: usize) -> Plan<'_> {
    let home = Source { kind: SourceKind::Directory, path: home, dev: 1, ino: 2, size: 0, mtime_ns: 0, ctime_ns: 0 };
    Plan { mode: Mode::Userns, flags: 0, uid: 1, gid: 2, home, sources: vec![home; sources], steps: Vec::new() }
}

/// The plan that a seed stands for; it has two sources.
pub fn plan(seed: &PlanSeed) -> Plan<'_> {
    let [a, b, c, d, e] = seed.numbers;
    let mut plan = bare(&seed.home, 0);
    plan.mode = [Mode::Root, Mode::Setuid, Mode::Userns, Mode::Landlock][(a % 4) as usize];
    (plan.flags, plan.uid, plan.gid) = ((a >> 8) as u8 % 8, b as u32, c as u32);
    let file = Source { kind: SourceKind::File, dev: a, ino: b, size: c, mtime_ns: d, ctime_ns: e, ..plan.home };
    plan.sources = vec![file, Source { kind: SourceKind::Memory, path: b"", ..file }];
    let mut made = 0;
    for seed in &seed.steps {
        let whole = plan.steps.iter().find_map(|step| match *step {
            Step::Tmpfs { slot, .. } => Some(slot),
            _ => None,
        });
        let step = step(seed, &mut made, whole);
        if may_follow(&plan.steps, &step) {
            plan.steps.push(step);
        }
    }
    plan
}

/// What there is one of, and what a new root wants before and after it is entered.
fn may_follow(steps: &[Step], step: &Step) -> bool {
    let has = |name: &str| steps.iter().any(|other| other.name() == name);
    match step {
        Step::Timeout { .. } | Step::Cgroup { .. } | Step::Landlock { .. } | Step::Name { .. } | Step::Label { .. } => {
            !has(step.name())
        }
        Step::Network { .. } => !has("Network") && !has("PivotRoot"),
        Step::NewRoot { .. } => !has("NewRoot") && !has("PivotRoot"),
        Step::PivotRoot { .. } => has("NewRoot") && !has("PivotRoot"),
        _ => !step.is_before_pivot() || !has("PivotRoot"),
    }
}

fn resource(number: u64) -> Resource {
    use Resource::{CoreBytes, CpuSeconds, DataBytes, FileBytes, OpenFiles, Processes};
    [CpuSeconds, FileBytes, OpenFiles, DataBytes, Processes, CoreBytes][(number % 6) as usize]
}

/// Slots are numbered as they are made; a step that needs one before there is one becomes a `Tmpfs`. `whole` is one of those.
fn step<'a>(seed: &'a Seed, made: &mut u32, whole: Option<u32>) -> Step<'a> {
    let [a, b, c] = seed.numbers;
    let (x, y, z) = (a as u32, b as u32, c as u32);
    let source = x % 2;
    let used = x.checked_rem(*made);
    let mut slot = || {
        *made += 1;
        *made - 1
    };
    let carrier = decode(&seed.lists).expect("a plan with lists");
    let [
        _,
        Step::Stack { lowers, .. },
        Step::Extract { argv, .. },
        Step::KeepDescriptors { fds },
        filter,
        Step::Seccomp { filter: closed },
        Step::UserNamespace { uids, gids, programs },
    ] = carrier.steps[..]
    else {
        unreachable!("the steps of lists()")
    };
    let place = match a & 1 {
        0 => Place { base: Base::Procdir, path: &seed.below, dev: a, ino: b },
        _ => Place { base: Base::Root, path: &seed.rooted, dev: a, ino: b },
    };
    match (seed.kind, used) {
        (0, _) => Step::Unshare { flags: a },
        (1, _) => Step::IdMap { uid_inside: x, uid_outside: y, gid_inside: z, gid_outside: !x },
        (2, _) => Step::SetPropagation { kind: if a & 1 == 0 { Propagation::Slave } else { Propagation::Private } },
        (3, _) => Step::Guard,
        (4, _) => Step::Scratch { source, slot: slot(), overlay_slot: slot() },
        (5, _) => Step::Tree { slot: slot(), source, recursive: b & 1 == 0 },
        (6, _) => Step::Image { slot: slot(), source },
        (7, _) => Step::Fuse { slot: slot(), source, program: &seed.rooted },
        (8, Some(used)) => Step::Extract { slot: used, source, argv },
        (9, Some(upper)) => Step::Overlay { slot: slot(), lowers, upper, options: z % 4 },
        (10, Some(_)) => Step::Stack { slot: slot(), lowers, options: z % 2 },
        (11, Some(used)) => Step::Attach { slot: used, place, attrs: z % 32 },
        (12, _) => Step::Mkdir { place, mode: z },
        (13, _) => Step::PlaceEnv { name: &seed.name, place },
        (14, _) => Step::UnsetEnv { name: &seed.name },
        (15, _) => Step::Chdir { place },
        (16, _) => Step::Run { place, path: &seed.below },
        (17, _) => Step::NoNewPrivs,
        (18, _) => Step::DeathSignal { signal: x },
        (19, _) => Step::Init { as_pid_1: a & 1 == 0 },
        (20, _) => Step::LockTree { attrs: x % 32 },
        (21, _) => Step::Procdir { place },
        (22, _) => Step::Proc,
        (23, _) => Step::Dev,
        (24, _) => Step::Hide { path: &seed.rooted },
        (25, _) => Step::Loopback,
        (26, _) => Step::Hostname { name: &seed.name },
        (27, _) => Step::Identity { uid: x, gid: y },
        (28, _) => Step::DropCapabilities,
        (29, Some(used)) => Step::Idmap { slot: used, uid: x, shown_uid: y, gid: z, shown_gid: !y },
        (30, _) => Step::KeepDescriptors { fds },
        (31, _) => filter,
        (32, _) => Step::Limit { resource: resource(c), soft: a.min(b), hard: a.max(b) },
        (33, _) => Step::Nice { value: (a % 40) as u8 },
        (34, _) => Step::Timeout { limit_ns: a, kill_after_ns: b },
        (39, _) => Step::Name { name: &seed.called },
        (40, _) => Step::Label { level: &seed.name, images: argv },
        (35, _) => Step::Cgroup { source, memory: a, swap: b, pids: c, cpu_us: !a },
        (36, _) => Step::Allow { place, access: b | 1, optional: c & 1 == 0 },
        (37, _) => Step::Landlock { handled: a, scoped: b },
        (38, _) => Step::Network { source: 1, address: network(a), gateway: y, resolver: z, closed },
        (41, _) => Step::Bind { slot: slot(), place: Place { base: Base::Root, path: &seed.rooted, dev: a, ino: b } },
        (42, _) => Step::Text { slot: slot(), mode: y, content: &seed.name },
        (43, _) => Step::File { place, mode: z, content: &seed.below },
        (44, _) => Step::Symlink { place, target: &seed.rooted },
        (45, Some(used)) => Step::NewRoot { slot: used, attrs: z % 32 },
        (52, Some(used)) => Step::Node { slot: used, path: if seed.below.is_empty() { b"x" } else { &seed.below } },
        (46, _) => Step::PivotRoot { read_only: b & 1 == 0 },
        (47, _) => Step::Expose,
        (48, _) => Step::Audit,
        (49, _) => Step::Terminal,
        (50, Some(used)) => Step::CountChanges { slot: used },
        (53, _) => Step::Erofs { slot: slot(), source: 1 },
        (54, _) => Step::UserNamespace { uids, gids, programs },
        (55, Some(used)) => Step::Shift { slot: used, uids, gids },
        (56, _) if whole.is_some() => Step::Part { slot: slot(), of: whole.unwrap_or_default(), mode: z },
        (51, _) => Step::Protect { place, attrs: z % 32 },
        _ => Step::Tmpfs { slot: slot(), size: b, inodes: c, mode: x },
    }
}
