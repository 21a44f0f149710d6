//! The process that stays behind: prepares the host side, waits, forwards signals, cleans up.

mod changes;
mod clock;
mod exchange;
mod keeper;
mod leftovers;
mod network;
mod progress;
mod report;
mod terminal;
mod wait;

use crate::cgroup::Cgroup;
use crate::child::{self, Bounds, Devices, Prepared};
use crate::environment::Environment;
use crate::error::{Doing, Failure, LAUNCHER_FAILED, Outcome, TIMED_OUT};
use crate::home::Home;
use crate::messages;
use crate::plan::{ALLOW_NEW_PRIVS, LEAVE_RUNNING, Plan, Step};
use crate::prelude::*;
use crate::record::Record;
use crate::report::{Account, Ending, Marks, Reports as Told, Usage};
use crate::scratch;
use crate::setuid::{self, NETWORK, OVERLAY, PORT, Policy, Rights};
use crate::sources::{Handed, Sources};
use crate::stale;
use crate::sys::{self, Forked, Mask};
use clock::Clock;
use core::ffi::CStr;
use core::time::Duration;
use exchange::Exchange;
use network::Network;
use progress::Progress;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::Mode;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, getpid, set_child_subreaper, set_parent_process_death_signal};

pub use exchange::{ID_MAP, LAYERS};
pub use report::{Report, Reports};
pub use wait::FORWARDED;

/// The longest failure that the child reports, in bytes: what every pipe holds, however little its user may have.
const REPORT: usize = 4096;

/// Launch, supervise, clean up; `account` says what came of it. The exit code, or the signal to die of.
pub fn launch(
    plan: &Plan,
    handed: Handed,
    environment: Environment,
    argv: &[&'static CStr],
    rights: Rights,
    account: (&mut Account, &Told),
) -> Outcome<Ending> {
    let inherited = Inherited::take();
    let ended = supervise(&inherited, plan, handed, environment, argv, rights, account);
    if ended.is_err() {
        // The front goes on as Python.
        inherited.restore();
    }
    ended
}

/// Wait for a process that joined a run by way of `first`, pass signals on to it, and end what it left here.
pub fn attend(first: Pid, reports: &Reports) -> Ending {
    let mut usage = Usage::default();
    let end = wait::for_command(first, Some(reports), None, None, &mut Clock::endless(), &mut usage, false);
    leftovers::end(&mut usage);
    end
}

fn supervise(
    inherited: &Inherited,
    plan: &Plan,
    handed: Handed,
    environment: Environment,
    argv: &[&'static CStr],
    rights: Rights,
    (account, told): (&mut Account, &Told),
) -> Outcome<Ending> {
    let policy = if rights.are_lent() { Some(Policy::load()?) } else { None };
    let tmpfs_bytes = policy.as_ref().map(|policy| setuid::check_plan(plan, policy)).transpose()?;
    let rights = rights.lift(plan.flags & ALLOW_NEW_PRIVS != 0)?;
    let home = Home::open(plan)?;
    let (attendance, parent) = (handed.attendance()?, handed.parent()?);
    let mut sources = Sources::open(plan, handed)?;
    if let Some(policy) = &policy {
        admit_images(inherited, plan, &mut sources, policy, rights)?;
    }
    let has_images = plan.steps.iter().any(|step| matches!(step, Step::Image { .. }));
    let bounded = policy.as_ref().filter(|_| has_images);
    let bounds = bounded.map(|policy| Bounds::open(plan, &sources, policy.loop_devices, rights)).transpose()?;
    let rights = narrowed(rights, plan)?;
    let devices = if has_images { Some(Devices::open(bounds, rights)?) } else { None };
    let record = Record::new(&home, plan, argv)?;
    scratch::make(plan, &record.id)?;
    let cgroup = Cgroup::make(plan, record.scratch.last().map(Vec::as_slice))?;
    let network = Network::of(plan, &sources)?;
    set_child_subreaper(Some(getpid())).doing("become a child subreaper", b"")?;
    let (report, writer) = pipe_with(PipeFlags::CLOEXEC).doing("make a pipe", b"")?;
    let (progress, ticks) =
        if told.is_live() { Some(Progress::new(told, &report, plan)?).unzip() } else { (None, None) };
    let mut marks = if told.is_empty() { None } else { Some(Marks::new(ticks)?) };
    let has_init = plan.has_init(plan.steps.len());
    let (reports, status) =
        if has_init { Some(Reports::open().doing("make a pipe", b"")?).unzip() } else { (None, None) };
    let (mut exchange, child_end) = Exchange::of(plan)?.unzip();
    let user_namespaces = child::user_namespaces(plan, rights)?;
    let mut clock = Clock::start(plan, cgroup.as_ref())?;
    account.note(plan);
    account.phase("Prepare the host side");
    // Before anything runs; once more behind the fork, when the signal is asked for.
    parent.as_ref().map_or(Ok(()), parent_is_there)?;
    let terminal = terminal::Settings::of(plan);
    let command = match child::fork(plan, rights, cgroup.as_ref())? {
        Forked::Parent(command) => command,
        Forked::Child => {
            let (supervisor, status) = (rustix::process::getppid(), status.as_ref());
            drop(reports);
            let (id, name) = (record.id.as_str(), record.name.as_str());
            let (devices, exchange) = (devices.as_ref(), child_end.as_ref());
            let user_namespaces = user_namespaces.as_slice();
            let (sources, home, marks) = (&sources, &home, marks.as_ref());
            let prepared = Prepared {
                cgroup: cgroup.as_ref(),
                plan,
                home,
                sources,
                devices,
                id,
                name,
                supervisor,
                rights,
                inherited,
                exchange,
                user_namespaces,
                tmpfs_bytes,
                marks,
                status,
                attendance: attendance.as_ref(),
            };
            default_actions();
            if child::birth(plan).is_none() {
                inherited.mask.apply();
            }
            let failure = child::become_command(prepared, environment, argv);
            report_failure(&writer, &failure)
        }
    };
    if let Err(failure) = only_supervise(plan, rights, &sources, parent.as_ref(), exchange.as_ref()) {
        let _ = sys::send(command, libc::SIGKILL);
        let _ = sys::wait_for(command);
        return Err(failure);
    }
    let _kept = sources.into_directories(plan);
    if let Some(marks) = &mut marks {
        marks.let_go();
    }
    drop((writer, environment, devices, child_end, user_namespaces, status));
    // While the child sets up, on another processor: nothing that it needs is in the way.
    stale::clean(&home, &record.name);
    // Most of what the program had in memory was for getting here.
    sys::forget_code();
    let (reports, usage) = (reports.as_ref(), &mut account.usage);
    let end = wait::for_command(command, reports, exchange.as_mut(), progress, &mut clock, usage, plan.has_terminal());
    account.ended(end, marks.as_ref(), plan);
    account.timed_out = clock.is_up;
    let failure = read_failure(&report);
    account.attended = attendance.map(|attendance| attendance.conclude(failure.is_none())).unwrap_or_default();
    account.discarded = exchange.and_then(Exchange::changed).filter(|_| failure.is_none()).and_then(changes::count);
    // A time limit is for everything that the command started.
    if clock.is_up || plan.flags & LEAVE_RUNNING == 0 {
        leftovers::end(&mut account.usage);
        account.peaks = cgroup.as_ref().map(Cgroup::peaks).unwrap_or_default();
        drop(record);
    } else {
        keeper::leave(record);
    }
    drop(network);
    terminal.restore();
    account.phase("Clean up");
    conclude(account, end, failure)
}

/// What is said in the end, and how this program is to end itself.
fn conclude(account: &Account, end: Ending, failure: Option<Failure>) -> Outcome<Ending> {
    if let Some(found @ 1..) = account.discarded {
        messages::note(&changes::line(found));
    }
    if let Some(failure) = failure {
        return Err(failure.code(if let Ending::Exited(code) = end { code } else { LAUNCHER_FAILED }));
    }
    if account.timed_out {
        messages::complain(&Failure::new("the command was ended: its time was up").hint("--timeout").code(TIMED_OUT));
        return Ok(Ending::Exited(TIMED_OUT));
    }
    Ok(end)
}

/// Have images of the user's made anew. It may take seconds, and nothing has to be undone yet: signals come through.
fn admit_images(
    inherited: &Inherited,
    plan: &Plan,
    sources: &mut Sources,
    policy: &Policy,
    rights: Rights,
) -> Outcome<()> {
    // A limit that could not be raised is to be told, not to kill. The command gets the default back.
    sys::ignore(libc::SIGXFSZ);
    // So is one that somebody wants to write to an image while it is asked for its writers (a lease).
    let was_ignored = sys::is_ignored(libc::SIGIO);
    sys::ignore(libc::SIGIO);
    inherited.mask.apply();
    setuid::admit_images(plan, sources, policy, rights)?;
    sys::block_all();
    if !was_ignored {
        sys::default_action(libc::SIGIO);
    }
    Ok(())
}

/// No more of them than the steps of this plan need.
fn narrowed(rights: Rights, plan: &Plan) -> Outcome<Rights> {
    let has_loopback = plan.steps.iter().any(|step| matches!(step, Step::Loopback));
    rights.narrow(match (plan.has_network(), has_loopback) {
        (true, _) => OVERLAY | NETWORK | PORT,
        (false, true) => OVERLAY | NETWORK,
        (false, false) => OVERLAY,
    })
}

/// Nothing is supervised with rights of root's. The child goes with its supervisor, and gets its id maps.
fn only_supervise(
    plan: &Plan,
    rights: Rights,
    sources: &Sources,
    parent: Option<&OwnedFd>,
    exchange: Option<&Exchange>,
) -> Outcome<()> {
    rights.drop_for_good()?;
    go_with_parent(sources, parent)?;
    exchange.map_or(Ok(()), |exchange| exchange.hand_over_id_maps(plan))
}

/// Without the one who is handed trees, to keep them, the run is for nothing; and who had asked to die with the parent
/// still does. The kernel forgets such a wish when a setuid program is executed, and at every change of ids or
/// capabilities (prctl(2)): by now they are behind us.
fn go_with_parent(sources: &Sources, parent: Option<&OwnedFd>) -> Outcome<()> {
    let taker = sources.trees().first().map(|(_, socket)| socket);
    if taker.is_none() && parent.is_none() {
        return Ok(());
    }
    set_parent_process_death_signal(Some(Signal::KILL)).doing("ask for a signal", b"")?;
    // They may be gone already.
    if let Some(taker) = taker {
        still_there(taker, PollFlags::empty(), "nobody takes the trees that are handed out")?;
    }
    parent.map_or(Ok(()), parent_is_there)
}

fn parent_is_there(parent: &OwnedFd) -> Outcome<()> {
    still_there(parent, PollFlags::IN, "whoever started this run is gone")
}

fn still_there(fd: &OwnedFd, end: PollFlags, gone: &str) -> Outcome<()> {
    let mut look = [PollFd::new(fd, end)];
    poll(&mut look, Some(&Timespec::default())).doing("look at a descriptor", b"")?;
    if look[0].revents().is_empty() { Ok(()) } else { Err(Failure::new(gone)) }
}

/// What the launcher was started with, and the command gets.
pub struct Inherited {
    /// The signal mask.
    pub mask: Mask,
    /// What the modes of new files go without.
    pub umask: Mode,
    ignores_children: bool,
}

impl Inherited {
    /// From here on every signal waits for the supervisor.
    pub fn take() -> Inherited {
        let mask = sys::block_all();
        // Ignored, it would have the kernel reap our children, and tell nobody.
        let ignores_children = sys::is_ignored(libc::SIGCHLD);
        if ignores_children {
            sys::default_action(libc::SIGCHLD);
        }
        Inherited { mask, umask: rustix::process::umask(Mode::empty()), ignores_children }
    }

    /// Be as before.
    pub fn restore(&self) {
        // What an init's last words announced themselves with would kill, now that nobody reads them; so would a file
        // that was too long, of which there is something to say. One that is blocked waits even where it is ignored.
        for signal in [libc::SIGIO, libc::SIGXFSZ] {
            let _ = sys::wait(Mask::of(&[signal]), Some(Duration::ZERO));
        }
        default_actions();
        self.restore_children();
        self.mask.apply();
        rustix::process::umask(self.umask);
    }

    /// For what is executed next: whoever does this waits for no child any more.
    pub fn restore_children(&self) {
        if self.ignores_children {
            sys::ignore(libc::SIGCHLD);
        }
    }
}

/// Nothing of ours is set any more for what is executed.
pub fn default_actions() {
    // std ignores SIGPIPE before main.
    sys::default_action(libc::SIGPIPE);
    sys::default_action(libc::SIGXFSZ);
}

/// The child's last words, and its end.
pub fn report_failure(writer: &OwnedFd, failure: &Failure) -> ! {
    let words = [failure.message.as_bytes(), failure.hint.as_bytes()].join(&0);
    let _ = rustix::io::write(writer, &words[..words.len().min(REPORT)]);
    sys::exit_now(failure.code)
}

/// What the child wrote, if it could not become the command. Its end of the pipe is closed by now.
pub fn read_failure(report: &OwnedFd) -> Option<Failure> {
    let mut message = Vec::new();
    loop {
        message.reserve(4096);
        match rustix::io::read(report, rustix::buffer::spare_capacity(&mut message)) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    let text = String::from_utf8_lossy(&message);
    let (message, hint) = text.split_once('\0').unwrap_or((&text, ""));
    (!text.is_empty()).then(|| Failure::new(message).hint(hint))
}
