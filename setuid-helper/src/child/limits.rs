//! What the command may use, set right before it starts and with its own rights: limits and nice value.

use crate::error::{Doing, Outcome};
use crate::plan::{Resource, Step};
use crate::prelude::*;
use rustix::process::{Rlimit, getrlimit, setpriority_process, setrlimit};

const REMEDY: &str =
    "only root goes beyond the hard limits (ulimit -H -a), or below the nice value it was started with";

/// `Limit` and `Nice` steps.
pub fn apply(steps: &[Step]) -> Outcome<()> {
    steps.iter().try_for_each(|step| set(step).map_err(|failure| failure.hint(REMEDY)))
}

fn set(step: &Step) -> Outcome<()> {
    match *step {
        Step::Limit { resource, soft, hard } => {
            let (kind, name) = match resource {
                Resource::CpuSeconds => (rustix::process::Resource::Cpu, "the processor time"),
                Resource::FileBytes => (rustix::process::Resource::Fsize, "the size of files"),
                Resource::DataBytes => (rustix::process::Resource::Data, "the data of a process"),
                Resource::Processes => (rustix::process::Resource::Nproc, "the number of processes"),
                Resource::OpenFiles => (rustix::process::Resource::Nofile, "the number of open files"),
                Resource::CoreBytes => (rustix::process::Resource::Core, "cores"),
            };
            if resource == Resource::CoreBytes && getrlimit(kind).maximum == Some(0) {
                return Ok(()); // nobody but root makes 1 of it
            }
            let limit = Rlimit { current: Some(soft), maximum: Some(hard) };
            setrlimit(kind, limit).doing(&format!("limit {name} to {soft}"), b"")
        }
        Step::Nice { value } => {
            let value = i32::from(value) - 20;
            setpriority_process(None, value).doing(&format!("set the nice value {value}"), b"")
        }
        _ => Ok(()),
    }
}
