//! Numbers that follow from a seed and a place, so that rows can be made in any order and by any number of threads.

/// SplitMix64 (Steele, Lea and Flood, 2014): a counter and a mixing function, so successive values do not wait for each other.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64, place: u64) -> Self {
        Random(mix(seed ^ mix(place)))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From 0 to `below` - 1. The bias of the multiplication does not matter for a few thousand values.
    pub fn below(&mut self, below: usize) -> usize {
        ((u128::from(self.next()) * below as u128) >> 64) as usize
    }

    /// Nearly normal with mean 0 and variance 1: the sum of four uniform numbers, which ends at 3.46 deviations.
    pub fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
        // Four uniforms over 0..=65535 have this mean, and a deviation of 65536 / sqrt(3).
        (sum as i32 - 131_070) as f32 * (1.732_050_8 / 65536.0)
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// The seed of what is called `name` (FNV-1a, mixed).
pub fn seed(seed: u64, name: &str) -> u64 {
    let hash = |h: u64, byte: u8| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    mix(seed ^ mix(name.bytes().fold(0xcbf2_9ce4_8422_2325, hash)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearly_normal() {
        let mut random = Random::new(1, 2);
        let values: Vec<f64> = (0..100_000).map(|_| f64::from(random.normal())).collect();
        let mean = values.iter().sum::<f64>() / 1e5;
        let variance = values.iter().map(|v| v * v).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "mean {mean}, variance {variance}");
    }
}
