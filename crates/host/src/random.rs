//! Randomness: the system's, and a seeded generator for the simulation.

/// 64 bits from the operating system.
pub(crate) fn from_system() -> u64 {
    let mut bytes = [0_u8; 8];
    let mut have = 0;
    while have < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[have..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => have += n,
            Err(rustix::io::Errno::INTR) => {}
            // Without randomness ids would repeat, and a repeated id loses data: better no process at all.
            Err(_) => std::process::abort(),
        }
    }
    u64::from_ne_bytes(bytes)
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, fast, every seed good. Not for secrets.
#[derive(Debug, Clone)]
#[cfg(feature = "sim")]
pub struct SimRng(u64);

#[cfg(feature = "sim")]
impl SimRng {
    /// A generator whose whole output follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be zero. The bias is below 2^-32 for the small bounds used here.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// True once in `n` times on average.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
