//! The names of an application's topics, as Kafka Streams names them, and who owns a key.

use std::sync::Arc;

/// The header that tells records of bookkeeping from entries.
pub const KIND: &str = "tidegate_kind";

/// The topics of one application.
#[derive(Clone, Debug)]
pub struct Topics {
    /// The user's topics with primary events.
    pub sources: Vec<Arc<str>>,
    /// `<app>-events-repartition`: stamped events on their way to the owner of their key.
    pub repartition: Arc<str>,
    /// `<app>-state-changelog`: the state, compacted.
    pub changelog: Arc<str>,
    /// `<app>-dead-letter`: what could not be handled.
    pub dead_letter: Arc<str>,
    /// `<app>-progress`: counts per root and depth, one partition.
    pub progress: Arc<str>,
    /// `<app>-order`: the order received, one partition; only with `source.stamp = "arrival"`.
    pub order: Arc<str>,
}

impl Topics {
    /// The topics of the application `id` that reads `sources`.
    pub fn new(id: &str, sources: &[String]) -> Topics {
        let named = |suffix: &str| Arc::from(format!("{id}-{suffix}"));
        Topics {
            sources: sources.iter().map(|name| Arc::from(name.as_str())).collect(),
            repartition: named("events-repartition"),
            changelog: named("state-changelog"),
            dead_letter: named("dead-letter"),
            progress: named("progress"),
            order: named("order"),
        }
    }

    /// Those that belong to the application, whether or not its configuration needs all of them.
    pub fn internal(&self) -> [&Arc<str>; 5] {
        [&self.repartition, &self.changelog, &self.dead_letter, &self.progress, &self.order]
    }
}

/// The partition that owns `key`, of `partitions`: what Kafka's Java producer would choose.
pub fn partition_of(key: &[u8], partitions: i32) -> i32 {
    (murmur2(key) & 0x7fff_ffff) as i32 % partitions
}

/// Kafka's murmur2 (seed 0x9747b28c).
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut h: u32 = 0x9747_b28c ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (place, byte) in rest.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * place);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn murmur2_is_that_of_kafkas_java_client() {
        for (text, hash) in [
            ("21", -973932308),
            ("foobar", -790332482),
            ("a-little-bit-long-string", -985981536),
            ("a-little-bit-longer-string", -1486304829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
            ("abc", 479470107),
        ] {
            assert_eq!(murmur2(text.as_bytes()) as i32, hash, "{text}");
        }
    }
}
