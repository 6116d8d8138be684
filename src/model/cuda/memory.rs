//! Memory of a card: buffers that own it and views of parts of them. What they hold is no business of theirs.

use std::{marker::PhantomData, ops::Range, sync::Arc};

use bytemuck::Pod;

use super::{
    device::{Device, lock},
    driver::Address,
    error::CudaError,
};

/// Smallest memory that is kept for its next use, in bytes.
const SMALLEST: usize = 512;

/// `len` numbers on a card, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Buffer<T> {
    device: Arc<Device>,
    address: Address,
    len: usize,
    /// Bytes that it goes back with to what waits for the next use; none if it goes back to the driver.
    spare: Option<usize>,
    of: PhantomData<T>,
}

/// Some numbers on a card.
#[derive(Debug)]
pub(crate) struct View<'a, T> {
    address: Address,
    len: usize,
    of: PhantomData<&'a T>,
}

/// Some numbers on a card that may be written.
#[derive(Debug)]
pub(crate) struct ViewMut<'a, T> {
    address: Address,
    len: usize,
    of: PhantomData<&'a mut T>,
}

/// A part of a buffer that others have parts of too.
#[derive(Debug)]
pub(crate) struct Piece {
    buffer: Arc<Buffer<u8>>,
    bytes: Range<usize>,
}

impl Piece {
    /// # Panics
    /// If it is not inside.
    pub(crate) fn of(buffer: &Arc<Buffer<u8>>, bytes: Range<usize>) -> Self {
        assert!(
            bytes.start <= bytes.end && bytes.end <= buffer.len(),
            "outside of a buffer"
        );
        Self {
            buffer: buffer.clone(),
            bytes,
        }
    }

    pub(crate) fn address(&self) -> u64 {
        self.buffer.at(&self.bytes)
    }

    /// Takes over what `other` on the same card has, as far as both go.
    ///
    /// # Errors
    /// When the card is lost.
    pub(crate) fn copy_from(&self, other: &Self) -> Result<(), CudaError> {
        let device = &self.buffer.device;
        let bytes = self.bytes.len().min(other.bytes.len());
        device.copy(other.address(), self.address(), bytes)
    }
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

impl<T: Pod> Buffer<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], or a lost card.
    pub(crate) fn zeros(device: &Arc<Device>, len: usize) -> Result<Self, CudaError> {
        let bytes = size_of::<T>() * len;
        let mut buffer = Self::of(device, device.allocate(bytes)?, len, None);
        buffer.clear()?;
        Ok(buffer)
    }

    /// A copy of `numbers`.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], or a lost card.
    pub(crate) fn from_slice(device: &Arc<Device>, numbers: &[T]) -> Result<Self, CudaError> {
        let address = device.allocate(size_of_val(numbers))?;
        let mut buffer = Self::of(device, address, numbers.len(), None);
        buffer.upload(0, numbers)?;
        Ok(buffer)
    }

    /// Room for `len` numbers for a moment: whatever is in it. It is used again when it is dropped, so that a step like one
    /// before takes no memory from the driver.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], or a lost card.
    pub(crate) fn temporary(device: &Arc<Device>, len: usize) -> Result<Self, CudaError> {
        let bytes = spare_bytes(size_of::<T>() * len);
        let spare = lock(&device.spare).get_mut(&bytes).and_then(Vec::pop);
        let address = match spare {
            Some(address) => address,
            None => device.allocate(bytes)?,
        };
        Ok(Self::of(device, address, len, Some(bytes)))
    }

    fn of(device: &Arc<Device>, address: Address, len: usize, spare: Option<usize>) -> Self {
        Self {
            device: device.clone(),
            address,
            len,
            spare,
            of: PhantomData,
        }
    }

    /// The card it is on.
    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn view(&self, range: Range<usize>) -> View<'_, T> {
        View {
            address: self.at(&range),
            len: range.len(),
            of: PhantomData,
        }
    }

    pub(crate) fn view_mut(&mut self, range: Range<usize>) -> ViewMut<'_, T> {
        ViewMut {
            address: self.at(&range),
            len: range.len(),
            of: PhantomData,
        }
    }

    /// All of it.
    pub(crate) fn all(&self) -> View<'_, T> {
        self.view(0..self.len)
    }

    /// All of it, to be written.
    pub(crate) fn all_mut(&mut self) -> ViewMut<'_, T> {
        self.view_mut(0..self.len)
    }

    /// Copies `numbers` to place `at` and after.
    ///
    /// # Errors
    /// When the card is lost.
    pub(crate) fn upload(&mut self, at: usize, numbers: &[T]) -> Result<(), CudaError> {
        let address = self.at(&(at..at + numbers.len()));
        if numbers.is_empty() {
            return Ok(());
        }
        let device = &self.device;
        device.enter()?;
        // SAFETY: both are of this size. Memory of the host that is not page-locked, as all is here, "must first be staged to
        // pinned memory" (CUDA driver API, "API synchronization behavior"), which drivers have done when they return. One whose
        // cards can read it where it is need not stage it, so there it is kept until the copy is done.
        let status =
            unsafe { (device.driver.to_device)(address, numbers.as_ptr().cast(), size_of_val(numbers), device.stream) };
        let copied = device.check(status, "copying to the card");
        if device.uses_host_pages {
            device.synchronize()?;
        }
        copied
    }

    /// Fills `out` with what is at place `at` and after, when everything that was asked for before is done.
    ///
    /// # Errors
    /// When any of that failed.
    pub(crate) fn download(&self, at: usize, out: &mut [T]) -> Result<(), CudaError> {
        let address = self.at(&(at..at + out.len()));
        if out.is_empty() {
            return Ok(());
        }
        let device = &self.device;
        device.enter()?;
        // SAFETY: both are of this size, and nobody looks at the memory before the copy is done.
        let status =
            unsafe { (device.driver.to_host)(out.as_mut_ptr().cast(), address, size_of_val(out), device.stream) };
        let copied = device.check(status, "copying from the card");
        device.synchronize()?;
        copied
    }

    /// Fills it with zeros.
    ///
    /// # Errors
    /// When the card is lost.
    pub(crate) fn clear(&mut self) -> Result<(), CudaError> {
        if self.len == 0 {
            return Ok(());
        }
        let device = &self.device;
        device.enter()?;
        let bytes = size_of::<T>() * self.len;
        // SAFETY: it is of this size.
        let status = unsafe { (device.driver.fill)(self.address, 0, bytes, device.stream) };
        device.check(status, "clearing memory of the card")
    }

    fn at(&self, range: &Range<usize>) -> Address {
        assert!(range.start <= range.end && range.end <= self.len, "outside of a buffer");
        self.address + (range.start * size_of::<T>()) as Address
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        match self.spare {
            Some(bytes) => lock(&self.device.spare).entry(bytes).or_default().push(self.address),
            None => self.device.free(self.address),
        }
    }
}

impl<'a, T> View<'a, T> {
    pub(crate) fn len(self) -> usize {
        self.len
    }

    pub(crate) fn address(self) -> u64 {
        self.address
    }

    /// Some of them.
    pub(crate) fn part(self, range: Range<usize>) -> View<'a, T> {
        assert!(range.start <= range.end && range.end <= self.len, "outside of a view");
        Self {
            address: self.address + (range.start * size_of::<T>()) as Address,
            len: range.len(),
            of: PhantomData,
        }
    }
}

impl<T> ViewMut<'_, T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Some of them.
    pub(crate) fn part(&mut self, range: Range<usize>) -> ViewMut<'_, T> {
        assert!(range.start <= range.end && range.end <= self.len, "outside of a view");
        ViewMut {
            address: self.address + (range.start * size_of::<T>()) as Address,
            len: range.len(),
            of: PhantomData,
        }
    }
}

impl Device {
    fn allocate(&self, bytes: usize) -> Result<Address, CudaError> {
        if bytes == 0 {
            return Ok(0);
        }
        self.enter()?;
        let mut address = 0;
        let mut take = || {
            // SAFETY: writes the address.
            let status = unsafe { (self.driver.allocate)(&mut address, bytes) };
            self.driver.check_memory(status, self.ordinal, bytes)
        };
        if let Err(error) = take() {
            if !matches!(error, CudaError::OutOfMemory { .. }) || !self.free_spare() {
                return Err(error);
            }
            take()?;
        }
        Ok(address)
    }

    /// Copies bytes on the card, from one of this module's buffers to another.
    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: the callers see to it that both are of this size.
        let status = unsafe { (self.driver.on_device)(to, from, bytes, self.stream) };
        self.check(status, "copying on the card")
    }

    fn free(&self, address: Address) {
        if address == 0 || self.synchronize().is_err() {
            // Nothing, or gone with the card.
            return;
        }
        // SAFETY: it was allocated, nobody has it any more, and everything that was asked for is done.
        unsafe { (self.driver.free)(address) };
    }

    /// Gives the driver what waits for its next use; whether there was anything.
    pub(super) fn free_spare(&self) -> bool {
        let spare = std::mem::take(&mut *lock(&self.spare));
        let any = !spare.is_empty();
        spare.into_values().flatten().for_each(|address| self.free(address));
        any
    }
}

/// What is taken from the driver for something of `bytes`: few sizes, so that memory finds its next use, and at most a
/// quarter more than is needed.
fn spare_bytes(bytes: usize) -> usize {
    let bytes = bytes.max(SMALLEST);
    let step = 1_usize << bytes.ilog2().saturating_sub(2);
    bytes.next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;
    use crate::model::cuda::{Toolkit, testing::is_on_card};

    #[test]
    fn memory_for_a_moment_comes_in_few_sizes_that_waste_at_most_a_quarter() {
        assert_eq!(spare_bytes(0), 512);
        for bytes in [512, 513, 1 << 20, (1 << 20) + 1, 5_000_000] {
            let taken = spare_bytes(bytes);
            assert!(taken >= bytes && taken <= bytes + bytes / 4 + 1, "{bytes} {taken}");
        }
        assert_eq!(spare_bytes(1025), spare_bytes(1200));
    }

    #[test]
    #[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
    fn numbers_come_back_from_a_card_as_they_went() {
        let device = Device::open(0, &Toolkit::default()).unwrap();
        let numbers: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let mut buffer = Buffer::from_slice(&device, &numbers).unwrap();
        let mut back = vec![0.0; 990];
        buffer.download(10, &mut back).unwrap();
        assert_eq!(back, numbers[10..]);
        buffer.upload(0, &[7.0]).unwrap();
        let mut all = vec![0.0; 1000];
        buffer.download(0, &mut all).unwrap();
        assert_eq!((all[0], all[1], all[999]), (7.0, 1.0, 999.0));
        buffer.clear().unwrap();
        buffer.download(0, &mut all).unwrap();
        assert_eq!(all, [0.0; 1000]);
    }

    #[test]
    #[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
    fn what_was_copied_to_a_card_may_change_at_once_even_if_the_card_reads_it_where_it_is() {
        if !is_on_card(
            &[("EMULATED_HOST_PAGES", "1")],
            what_was_copied_to_a_card_may_change_at_once_even_if_the_card_reads_it_where_it_is,
        ) {
            return;
        }
        let device = Device::open(0, &Toolkit::default()).unwrap();
        let mut numbers = vec![1.0_f32; 1000];
        let buffer = Buffer::from_slice(&device, &numbers).unwrap();
        black_box(&mut numbers).fill(2.0);
        let mut back = vec![0.0; 1000];
        buffer.download(0, &mut back).unwrap();
        assert_eq!(back, [1.0; 1000]);
        assert_eq!(black_box(numbers), [2.0; 1000]);
    }

    #[test]
    #[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
    fn memory_that_was_used_for_a_moment_is_used_again_and_makes_room_when_there_is_none() {
        let device = Device::open(0, &Toolkit::default()).unwrap();
        let first = Buffer::<f32>::temporary(&device, 1000).unwrap().all().address();
        let second = Buffer::<u8>::temporary(&device, 4000).unwrap().all().address();
        assert_eq!(first, second);
        let (free, total) = device.memory().unwrap();
        assert!(free <= total);
        assert!(matches!(
            Buffer::<u8>::zeros(&device, 2 * total),
            Err(CudaError::OutOfMemory { .. })
        ));
        assert!(lock(&device.spare).values().all(Vec::is_empty));
        Buffer::<u8>::zeros(&device, 100).unwrap();
    }
}
