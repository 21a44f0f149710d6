//! Waiting for the command, and passing signals on to it.

use super::clock::Clock;
use super::exchange::Exchange;
use super::progress::Progress;
use super::{Report, Reports};
use crate::report::{Ending, Usage};
use crate::sys::{self, Arrived, Mask, Waited};
use rustix::io::Errno;
use rustix::process::{Pid, getpgid, getpgrp, getpid, getsid};

/// What is passed on to the command.
pub const FORWARDED: [i32; 9] = [
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTSTP,
    libc::SIGCONT,
];

/// Wait, with all signals blocked. Orphans that become children of this process are reaped on the way.
pub fn for_command(
    mut command: Pid,
    reports: Option<&Reports>,
    mut exchange: Option<&mut Exchange>,
    mut progress: Option<Progress>,
    clock: &mut Clock,
    usage: &mut Usage,
    has_terminal: bool,
) -> Ending {
    let mut signals = [libc::SIGCHLD; FORWARDED.len() + 2];
    signals[1] = libc::SIGIO;
    signals[2..].copy_from_slice(&FORWARDED);
    let mask = Mask::of(&signals);
    loop {
        let arrived = sys::wait(mask, clock.left());
        clock.strike();
        let Some(arrived) = arrived else { continue };
        let is_news = arrived.signal == libc::SIGCHLD || arrived.signal == libc::SIGIO;
        if let Some(exchange) = exchange.as_mut().filter(|_| is_news) {
            exchange.take();
        }
        // Of signals that wait the lowest number comes first: one to pass on comes before the news of who is to get it.
        let end = reports.and_then(|reports| hear(reports, &mut command, clock));
        if is_news && progress.as_mut().is_some_and(|progress| !progress.look(command)) {
            progress = None;
        }
        if let Some(end) = end {
            if let Some(progress) = progress {
                progress.look_back(command);
            }
            end_namespace(command, usage);
            return end;
        }
        if is_news {
            if let Some(end) = reap(&mut command, reports, clock, usage) {
                // It may have gone on, and ended, since that look.
                if let Some(progress) = progress {
                    progress.look_back(command);
                }
                return end;
            }
        } else if has_terminal && arrived.signal == libc::SIGWINCH {
            // The size of a terminal of its own changes a moment later, and the kernel tells.
        } else if is_for(command, &arrived) {
            let _ = sys::send(command, arrived.signal);
        }
    }
}

/// What the init of a pid namespace has to say.
fn hear(reports: &Reports, command: &mut Pid, clock: &mut Clock) -> Option<Ending> {
    while let Some(report) = reports.next() {
        match report {
            Report::Started(init) => *command = init,
            Report::Stopped => stop_too(*command, clock),
            Report::Exited(code) => return Some(Ending::Exited(code)),
            Report::Killed(signal) => return Some(Ending::Killed(signal)),
        }
    }
    None
}

/// With its init everything in a pid namespace dies (pid_namespaces(7)); that is waited for.
fn end_namespace(init: Pid, usage: &mut Usage) {
    let _ = sys::send(init, libc::SIGKILL);
    if let Ok(waited) = sys::wait_for(init) {
        count(&waited, usage);
    }
}

fn is_for(command: Pid, arrived: &Arrived) -> bool {
    if arrived.from_kernel {
        // That its terminal is gone, the leader of a session alone is told.
        let hung_up = arrived.signal == libc::SIGHUP && getsid(None).is_ok_and(|leader| leader == getpid());
        // What else comes from a terminal went to the whole group: the command has had it, if it is still in ours.
        return hung_up || getpgid(Some(command)).is_ok_and(|group| group != getpgrp());
    }
    arrived.sender != command.as_raw_nonzero().get()
}

/// Everything that happened to children; the end of the command if that is among it.
fn reap(command: &mut Pid, reports: Option<&Reports>, clock: &mut Clock, usage: &mut Usage) -> Option<Ending> {
    let mut end = None;
    loop {
        let waited = match sys::wait_any(true) {
            Ok(Some(waited)) => waited,
            Err(Errno::INTR) => continue,
            Ok(None) | Err(_) => return end,
        };
        count(&waited, usage);
        // The start of an init is told before the process that started it ends: that is not the command's end.
        if let Some(heard) = reports.and_then(|reports| hear(reports, command, clock)) {
            if waited.pid != *command {
                end_namespace(*command, usage);
            }
            return Some(heard);
        }
        if waited.pid != *command {
            continue;
        }
        if waited.is_stopped() {
            stop_too(*command, clock);
        } else if let Some(code) = waited.exit_code() {
            end = Some(Ending::Exited(code));
        } else if let Some(signal) = waited.signal() {
            end = Some(Ending::Killed(signal));
        }
    }
}

/// What a process that has ended had used.
pub fn count(waited: &Waited, usage: &mut Usage) {
    if !waited.is_stopped() {
        let ([user, system], [largest, read, written]) = (waited.times(), waited.amounts());
        usage.add(&Usage { user, system, largest, read, written });
    }
}

/// A shell sees its job, this process, stop with the command, and continues it. When the time is up nothing stops.
fn stop_too(command: Pid, clock: &mut Clock) {
    if clock.is_up {
        return;
    }
    sys::send_to_self(libc::SIGSTOP);
    // Continued because the time is up, the command could come to its end before it is asked for that.
    clock.strike();
    let _ = sys::send(command, libc::SIGCONT);
}
