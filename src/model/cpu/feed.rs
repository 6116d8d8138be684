//! How weights come from memory, which limits products of few tokens: in which order, and how far ahead of the arithmetic. It
//! changes no bit of any product. What was measured on which processor decides.

/// Bytes ahead of the arithmetic that a stream is asked for [`Feed::FarAhead`]: what memory delivers to a core of Zen 5 while it
/// answers, and more. Of each of several panels half of it is best.
pub(super) const STREAM_AHEAD: usize = 8192;

/// A way to take panels from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feed {
    /// Some at a time, each asked for a little ahead.
    Panels,
    /// With one or two tokens one after the other, a stream that the processor sees for itself; otherwise the same.
    Stream,
    /// All asked for far ahead. With one or two tokens one after the other, or two where a single chain of sums is slower than
    /// memory; otherwise some at a time.
    FarAhead,
}

impl Feed {
    /// Bytes of each of some panels that are asked for ahead of the arithmetic, where a little is `little`.
    #[inline(always)]
    pub(super) fn ahead(self, little: usize) -> usize {
        match self {
            Self::Panels | Self::Stream => little,
            Self::FarAhead => STREAM_AHEAD / 2,
        }
    }

    /// All of them, that of this processor last.
    pub(super) fn available() -> [Self; 3] {
        let mut all = [Self::Panels, Self::Stream, Self::FarAhead];
        let own = all.iter().position(|feed| *feed == Self::detect()).unwrap_or(0);
        all[own..].rotate_left(1);
        all
    }

    /// The quickest one for this processor. Zen 4 was measured to be up to a quarter quicker with streams, and no quicker when it
    /// asks for them; Zen 5 to be another tenth to a quarter quicker when it asks far ahead; no other one to be quicker with either.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            const ZEN_5: u32 = 0x1a;
            let vendor = std::arch::x86_64::__cpuid(0);
            let vendor = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
            if vendor.as_flattened() != b"AuthenticAMD" {
                return Self::Panels;
            }
            // Family and extended family, of AMD's volume 3, appendix E.
            let signature = std::arch::x86_64::__cpuid(1).eax;
            let family = (signature >> 8 & 0xf) + (signature >> 20 & 0xff);
            if family < ZEN_5 { Self::Stream } else { Self::FarAhead }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self::Panels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_is_there_and_the_own_one_last() {
        let all = Feed::available();
        for feed in [Feed::Panels, Feed::Stream, Feed::FarAhead] {
            assert!(all.contains(&feed));
        }
        assert_eq!(all[2], Feed::detect());
    }
}
