//! What a program is started with.

use crate::prelude::*;
#[cfg(not(freestanding))]
use alloc::boxed::Box;
use core::ffi::CStr;

/// What a program is started with.
pub struct Start {
    /// All arguments, the program's own name first if there is one.
    pub arguments: Vec<&'static CStr>,
    /// `NAME=value` strings.
    pub environment: Vec<&'static CStr>,
    /// Whether the kernel started this program with more rights than its caller has (`AT_SECURE`).
    pub is_secure: bool,
}

#[cfg(not(freestanding))]
impl Start {
    /// In a program with a C library, as tests are.
    pub fn hosted() -> Start {
        use std::os::unix::ffi::OsStringExt;
        let keep = |raw: Vec<u8>| -> &'static CStr {
            Box::leak(alloc::ffi::CString::new(raw).unwrap_or_default().into_boxed_c_str())
        };
        let arguments = std::env::args_os().map(|argument| keep(argument.into_vec())).collect();
        let environment = std::env::vars_os()
            .map(|(name, value)| keep([name.into_vec(), b"=".to_vec(), value.into_vec()].concat()))
            .collect();
        // SAFETY: getauxval has no preconditions.
        let is_secure = unsafe { libc::getauxval(libc::AT_SECURE) != 0 };
        Start { arguments, environment, is_secure }
    }
}
