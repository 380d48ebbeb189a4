//! The kernels must not touch a byte beyond their operands: operands end where an inaccessible
//! page begins, so that reading further ends the test process.

#![allow(unsafe_code, reason = "maps an inaccessible page")]

use super::*;

/// At least the page size of every supported system.
const PAGE: usize = 1 << 16;

/// Bytes directly before an inaccessible page.
struct Guarded {
    mapping: *mut u8,
    mapped: usize,
    length: usize,
}

impl Guarded {
    fn new(length: usize) -> Self {
        let mapped = length.next_multiple_of(PAGE) + PAGE;
        // SAFETY: a fresh anonymous mapping, of which the last `PAGE` bytes are locked.
        let mapping = unsafe {
            let start = libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(start, libc::MAP_FAILED);
            let start = start.cast::<u8>();
            assert_eq!(libc::mprotect(start.add(mapped - PAGE).cast(), PAGE, libc::PROT_NONE), 0);
            start
        };
        Self { mapping, mapped, length }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: these bytes are accessible, initialised to zero by the system, and borrowed with
        // the mapping that they belong to.
        unsafe {
            let start = self.mapping.add(self.mapped - PAGE - self.length);
            std::slice::from_raw_parts_mut(start, self.length)
        }
    }

    fn floats(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(self.bytes())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `new` made; nothing borrows it any more.
        assert_eq!(unsafe { libc::munmap(self.mapping.cast(), self.mapped) }, 0);
    }
}

#[test]
fn kernels_stay_inside_their_operands() {
    for kernel in InstructionSet::ALL.into_iter().filter_map(Kernel::new) {
        for rows in (1..70).chain([127, 128, 129, 192, 193]) {
            for groups in 1..11 {
                for first_row in [0, rows / 2] {
                    check(kernel, rows, groups, first_row);
                }
            }
        }
    }
}

fn check(kernel: Kernel, stride: usize, groups: usize, first_row: usize) {
    let count = stride - first_row;
    let mut packed = Guarded::new(stride * groups);
    for (index, byte) in packed.bytes().iter_mut().enumerate() {
        *byte = (index * 37 + 11) as u8;
    }
    let bytes: &[u8] = packed.bytes();
    let mut x = Guarded::new(32 * groups);
    for (column, x) in x.floats().iter_mut().enumerate() {
        *x = column as f32 - 3.5;
    }
    let x: &[f32] = x.floats();
    let mut out: [_; 3] = std::array::from_fn(|_| Guarded::new(4 * count));
    let [one, first, second] = &mut out;
    let (one, first, second) = (one.floats(), first.floats(), second.floats());

    let alone = [&mut *one];
    kernel.run(Product { bytes, stride, groups, first_row, count, x: [x], out: alone });
    let pair = [&mut *first, &mut *second];
    kernel.run(Product { bytes, stride, groups, first_row, count, x: [x, x], out: pair });

    for row in 0..count {
        // Multiples of a half below 2^22: every order of summation gives the same.
        let sign = |column: usize| bytes[column / 8 * stride + first_row + row] >> (column % 8) & 1;
        let terms = x.iter().enumerate().map(|(c, x)| if sign(c) == 1 { *x } else { -x });
        assert_eq!(
            [one[row], first[row], second[row]].map(f32::to_bits),
            [terms.sum::<f32>().to_bits(); 3],
            "{kernel:?}, row {first_row} + {row} of {stride}, {groups} groups"
        );
    }
}
