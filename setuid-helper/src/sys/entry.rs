//! The entry point of a program without a C library: relocation, and what the kernel left on the stack (see the x86-64
//! ABI, "Initial Stack and Register State").

use super::start::Start;
use crate::prelude::*;
use crate::sys;
use core::arch::global_asm;
use core::ffi::{CStr, c_char};

unsafe extern "Rust" {
    /// The program itself, which this library does not know.
    safe fn sandbox_program(start: Start) -> !;
    /// Where the linker put the ELF header, which the image starts with.
    static __ehdr_start: u8;
}

// The kernel enters here, with nothing but a stack; the image is not relocated yet.
global_asm!(
    ".globl _start",
    ".type _start, @function",
    ".hidden __ehdr_start",
    ".hidden _DYNAMIC",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "lea rsi, [rip + __ehdr_start]",
    "lea rdx, [rip + _DYNAMIC]",
    "and rsp, -16",
    "call {begin}",
    "ud2",
    begin = sym begin,
);

const DT_RELA: usize = 7;
const DT_RELASZ: usize = 8;
const R_X86_64_RELATIVE: u64 = 8;

/// Elf64_Rela.
#[repr(C)]
struct Relocation {
    offset: usize,
    info: u64,
    addend: usize,
}

unsafe extern "C" fn begin(words: *const usize, image: usize, dynamic: *const usize) -> ! {
    // SAFETY: the three come from the kernel and the linker, by way of `_start`.
    let start = unsafe {
        relocate(image, dynamic);
        protect(image);
        Start::read(words)
    };
    sandbox_program(start)
}

/// Add the address of the image to every word that the linker left relative to it. Until this is done nothing
/// may use such a word: no tables of functions, no static references.
///
/// # Safety
///
/// Once, with the address of this program's image and its dynamic section.
unsafe fn relocate(image: usize, mut entry: *const usize) {
    let (mut table, mut size) = (0, 0);
    // SAFETY: the dynamic section is pairs of words up to one that starts with DT_NULL (0). The linker placed
    // the table and what it points to inside the image, where they are still writable.
    unsafe {
        while *entry != 0 {
            match *entry {
                DT_RELA => table = *entry.add(1),
                DT_RELASZ => size = *entry.add(1),
                _ => {}
            }
            entry = entry.add(2);
        }
        let mut relocation = (image + table) as *const Relocation;
        let end = (image + table + size) as *const Relocation;
        while relocation < end {
            if (*relocation).info == R_X86_64_RELATIVE {
                *((image + (*relocation).offset) as *mut usize) = image + (*relocation).addend;
            }
            relocation = relocation.add(1);
        }
    }
}

/// Make what only relocation had to write read-only (PT_GNU_RELRO).
///
/// # Safety
///
/// After `relocate`, with the address of this program's image.
unsafe fn protect(image: usize) {
    // SAFETY: the caller vouches for the image. The linker made the part that PT_GNU_RELRO names of whole pages, and
    // nothing writes to it from now on.
    unsafe {
        for part in program_headers(image).iter().filter(|part| part.p_type == libc::PT_GNU_RELRO) {
            let [begin, length] = pages(image, part);
            let _ = sys::raw::syscall(libc::SYS_mprotect, [begin, length, libc::PROT_READ as usize]);
        }
    }
}

/// Give back the pages of code that only the start of the program needed: what is used again comes back from the file.
pub fn forget_code() {
    let image = (&raw const __ehdr_start) as usize;
    // SAFETY: this is the image's address. What cannot be written to is as it is in the file, whenever it is read.
    unsafe {
        let is_code = |part: &&libc::Elf64_Phdr| part.p_type == libc::PT_LOAD && part.p_flags & libc::PF_W == 0;
        for part in program_headers(image).iter().filter(is_code) {
            let [begin, length] = pages(image, part);
            let _ = sys::raw::syscall(libc::SYS_madvise, [begin, length, libc::MADV_DONTNEED as usize]);
        }
    }
}

/// # Safety
///
/// With the address of this program's image.
unsafe fn program_headers(image: usize) -> &'static [libc::Elf64_Phdr] {
    // SAFETY: the image starts with its ELF header, which says where the program headers are.
    unsafe {
        let header = &*(image as *const libc::Elf64_Ehdr);
        let first = (image + header.e_phoff as usize) as *const libc::Elf64_Phdr;
        core::slice::from_raw_parts(first, header.e_phnum as usize)
    }
}

/// The whole pages of a part, as address and length.
fn pages(image: usize, part: &libc::Elf64_Phdr) -> [usize; 2] {
    let begin = (image + part.p_vaddr as usize) & !0xfff;
    let end = (image + (part.p_vaddr + part.p_memsz) as usize) & !0xfff;
    [begin, end - begin]
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    let _ = rustix::io::write(sys::standard(2), b"sandbox: internal error\n");
    sys::exit_now(crate::error::LAUNCHER_FAILED)
}

/// The prebuilt core library was made for unwinding and names this; nothing ever unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As above.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    sys::exit_now(crate::error::LAUNCHER_FAILED)
}

impl Start {
    /// Read it from the kernel's words: argc, arguments, NULL, environment, NULL, pairs of the auxiliary vector, 0.
    ///
    /// # Safety
    ///
    /// `words` must point to such words, which stay as they are until the process ends.
    unsafe fn read(words: *const usize) -> Start {
        // SAFETY: the caller vouches for the words; the count of the arguments is the first of them.
        let (arguments, after) = unsafe { strings(words.add(1)) };
        // SAFETY: `strings` returns where its list ended, which is where the next one starts.
        let (environment, mut pair) = unsafe { strings(after) };
        let mut is_secure = false;
        // SAFETY: the auxiliary vector is pairs of words up to one that starts with AT_NULL (0).
        unsafe {
            while *pair != 0 {
                is_secure |= *pair == libc::AT_SECURE as usize && *pair.add(1) != 0;
                pair = pair.add(2);
            }
        }
        Start { arguments, environment, is_secure }
    }
}

/// Pointers to C strings up to a NULL, and what follows it.
///
/// # Safety
///
/// As for `Start::read`.
unsafe fn strings(mut word: *const usize) -> (Vec<&'static CStr>, *const usize) {
    let mut found = Vec::new();
    // SAFETY: the caller vouches for a NULL at the end, and for C strings that stay as they are.
    unsafe {
        while *word != 0 {
            found.push(CStr::from_ptr(*word as *const c_char));
            word = word.add(1);
        }
        (found, word.add(1))
    }
}
