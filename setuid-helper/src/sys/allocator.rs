//! Memory for a process that lives for one launch: taken from one end, given back only from that end.

use super::raw::syscall;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::null_mut;

/// What is asked of the kernel at a time, at least. Pages that are never touched cost nothing.
const PART: usize = 1 << 20;

struct Bump {
    next: UnsafeCell<usize>,
    end: UnsafeCell<usize>,
}

#[global_allocator]
static MEMORY: Bump = Bump { next: UnsafeCell::new(0), end: UnsafeCell::new(0) };

// SAFETY: these programs never have a second thread, and no signal handler.
unsafe impl Sync for Bump {}

// SAFETY: every block is cut from memory that was just mapped, beyond all earlier blocks, so none overlap; sizes and
// alignments are those of the layout.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: one thread; nothing else holds a reference to the two words.
        let (next, end) = unsafe { (&mut *self.next.get(), &mut *self.end.get()) };
        let fits = |from: usize| from.checked_next_multiple_of(layout.align())?.checked_add(layout.size());
        let mut after = fits(*next).filter(|after| *after <= *end);
        if after.is_none() {
            let size = layout.size().saturating_add(layout.align()).max(PART);
            let Some(start) = map(size) else { return null_mut() };
            (*next, *end) = (start, start + size);
            after = fits(start);
        }
        let Some(after) = after else { return null_mut() };
        *next = after;
        (after - layout.size()) as *mut u8
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        let next = unsafe { &mut *self.next.get() };
        if block as usize + layout.size() == *next {
            *next = block as usize;
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        let (next, end) = unsafe { (&mut *self.next.get(), &*self.end.get()) };
        let start = block as usize;
        if start + layout.size() == *next && size <= *end - start {
            *next = start + size;
            return block;
        }
        // SAFETY: the caller vouches for a size that fits the alignment; the new block is another one.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                new.copy_from_nonoverlapping(block, size.min(layout.size()));
            }
            new
        }
    }
}

fn map(size: usize) -> Option<usize> {
    let access = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
    // SAFETY: anonymous memory at an address that the kernel chooses.
    unsafe { syscall(libc::SYS_mmap, [0, size, access, flags, usize::MAX, 0]) }.ok()
}
