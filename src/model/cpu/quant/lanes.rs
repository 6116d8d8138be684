//! What the quantised kernels need of an instruction set, on the 16 rows of a panel at a time. The kernels in
//! `kernel.rs` are written once against this; each instruction set is a file beside it.

/// Rows of a panel, and so the numbers of everything below.
pub(super) const LANES: usize = 16;

/// An instruction set. Nothing here may be called on a CPU without it; pointers need no alignment.
pub(super) trait Lanes: Copy {
    /// Panels and tokens of the largest tiles whose sums stay in registers: 1 or 2 panels and 2, 4 or 6 tokens.
    const PANELS: usize;
    const TOKENS: usize;
    /// Whether weights of 8 bit are multiplied unsigned, as they are stored, so that 128 times the sum of the other
    /// factors is too much; otherwise they are made signed first.
    const UNSIGNED: bool;
    /// 64 bytes: 4 columns of 16 rows.
    type Codes: Copy;
    /// 16 i32.
    type Ints: Copy;
    /// Sums within a block of products with 4-bit weights.
    type NibbleSums: Copy;
    /// 16 f32.
    type Floats: Copy;
    /// 16 bytes to look up.
    type Table: Copy;

    /// Asks for the cache line of `at`, which may be any address.
    unsafe fn prefetch(at: *const u8);
    unsafe fn zero_codes() -> Self::Codes;
    unsafe fn load(at: *const u8) -> Self::Codes;
    /// The lower 4 bits of each byte.
    unsafe fn low(codes: Self::Codes) -> Self::Codes;
    /// The upper 4 bits of each byte.
    unsafe fn high(codes: Self::Codes) -> Self::Codes;

    unsafe fn splat_int(value: i32) -> Self::Ints;
    /// Adds to each row the products of its 4 weights of 8 bit with 4 signed bytes at `x`.
    unsafe fn dot_bytes(sums: Self::Ints, codes: Self::Codes, x: *const i8) -> Self::Ints;
    /// Sums that begin at `offset`.
    unsafe fn begin_nibbles(offset: i32) -> Self::NibbleSums;
    /// Adds to each row the products of its 4 bytes of at most 15 with 4 signed bytes at `x`, at most 8 times.
    unsafe fn dot_nibbles(sums: Self::NibbleSums, codes: Self::Codes, x: *const i8) -> Self::NibbleSums;
    /// The sums with the `offset` they began at.
    unsafe fn end_nibbles(sums: Self::NibbleSums, offset: i32) -> Self::Ints;

    unsafe fn splat(value: f32) -> Self::Floats;
    /// Exact below 2^24.
    unsafe fn to_floats(ints: Self::Ints) -> Self::Floats;
    /// 16 f16.
    unsafe fn load_f16(at: *const u8) -> Self::Floats;
    /// 16 bytes, unsigned.
    unsafe fn load_u8(at: *const u8) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`
    unsafe fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// `c - a · b`
    unsafe fn mul_sub(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    unsafe fn store(values: Self::Floats, at: *mut f32);

    unsafe fn table(bytes: &[u8; 16]) -> Self::Table;
    /// The table's entries that bytes of at most 15 name.
    unsafe fn look_up(table: Self::Table, codes: Self::Codes) -> Self::Codes;
}
