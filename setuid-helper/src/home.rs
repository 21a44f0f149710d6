//! The home: the directory with `procdirs/` and `records/`. Checked once, used by descriptor.

use crate::error::{Doing, Failure, Outcome, printable};
use crate::fsops::{open_dir, open_path};
use crate::plan::Plan;
use crate::prelude::*;
use crate::sources::same_directory;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, fstat, fstatfs};

/// Open directories of the host.
pub struct Home {
    /// The home itself.
    pub fd: OwnedFd,
    /// Where each run has an empty directory.
    pub procdirs: OwnedFd,
    /// Where each run has a locked record.
    pub records: OwnedFd,
}

impl Home {
    /// Open it and compare it with the plan.
    pub fn open(plan: &Plan) -> Outcome<Home> {
        let path = plan.home.path;
        let fd = open_path(CWD, path).map_err(|error| unusable(path, error))?;
        let status = fstat(&fd).doing("look at", path)?;
        same_directory(path, plan.home.dev, plan.home.ino, &status)?;
        if status.st_uid != plan.uid {
            let message = format!("the home {} belongs to user {}", printable(path), status.st_uid);
            return Err(Failure::new(message).hint("set SANDBOX_HOME to a directory of your own"));
        }
        let procdirs = open_path(&fd, b"procdirs").doing("open procdirs in", path)?;
        let records = open_dir(&fd, b"records").doing("open records in", path)?;
        Ok(Home { fd, procdirs, records })
    }

    /// Whether other hosts may see the same records.
    pub fn is_shared(&self) -> bool {
        // f_type of filesystems that are shared with other hosts: statfs(2), linux/magic.h.
        const NETWORK: [u64; 11] = [
            0x6969,
            0x517b,
            0xff53_4d42,
            0xfe53_4d42,
            0x5346_414f,
            0x0102_1997,
            0x00c3_6400,
            0x0bd0_0bd0,
            0x4750_4653,
            0x6573_5546,
            0x1983_0326,
        ];
        fstatfs(&self.records).map_or(true, |status| NETWORK.contains(&(status.f_type as u64 & 0xffff_ffff)))
    }
}

fn unusable(path: &[u8], error: rustix::io::Errno) -> Failure {
    Failure::os("open the home", path, error).hint("set SANDBOX_HOME to a directory of your own")
}
