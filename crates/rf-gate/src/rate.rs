//! How often: requests of one user, failed credentials of one peer. In process, bounded in memory, exact while the
//! table is not full.
//!
//! Both are the generic cell rate algorithm (ITU-T I.371, annex A): for each key one number, the theoretical arrival
//! time of the next request. A key whose number is in the past is as good as unknown, so forgetting it loses nothing.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use rf_types::units::UnixMs;
use serde::{Deserialize, Serialize};

/// Keys of one generation, of which two are remembered. Chosen: 65,536 of some 40 bytes in all.
const GENERATION: usize = 1 << 15;
/// Most keys in the middle of their burst that are carried over from the generation before the last one. Chosen, so that
/// at least as many new ones come until it is looked at them again, and a key costs the same however many there are.
const CARRIED_MAX: usize = GENERATION / 2;

/// A rate and how much may come at once.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// In the long run, for each second; 1 to 1,000,000.
    pub per_second: u32,
    /// At once, after a pause; 1 to 10,000,000.
    pub burst: u32,
}

impl Rate {
    pub(crate) fn validate(&self, name: &str) -> Result<(), String> {
        if !(1..=1_000_000).contains(&self.per_second) || !(1..=10_000_000).contains(&self.burst) {
            return Err(format!("`{name}` must be 1 to 1000000 per second, with a burst of 1 to 10000000"));
        }
        Ok(())
    }

    /// Between two, microseconds; 1 to 1,000,000.
    fn interval_us(&self) -> u64 {
        1_000_000 / u64::from(self.per_second)
    }

    /// How far the number may be ahead of the time, microseconds.
    fn tolerance_us(&self) -> u64 {
        self.interval_us() * u64::from(self.burst)
    }
}

/// What each of many keys has used of one rate.
pub(crate) struct Rates<K> {
    rate: Rate,
    arrivals: Mutex<Arrivals<K>>,
}

/// The numbers, microseconds. A key is in one of the two.
struct Arrivals<K> {
    young: HashMap<K, u64>,
    old: HashMap<K, u64>,
}

impl<K: Copy + Eq + Hash> Arrivals<K> {
    fn get(&self, key: K) -> Option<u64> {
        self.young.get(&key).or_else(|| self.old.get(&key)).copied()
    }

    fn put(&mut self, key: K, arrival_us: u64, now_us: u64) {
        if self.young.len() >= GENERATION && !self.young.contains_key(&key) {
            std::mem::swap(&mut self.young, &mut self.old);
            // Of those that nobody asked for during a whole generation, the idle ones lose nothing. Where so many others
            // are left, they come from everywhere at once, and begin a new burst.
            self.young.retain(|_, arrival_us| *arrival_us > now_us);
            if self.young.len() > CARRIED_MAX {
                self.young.clear();
            }
        }
        self.old.remove(&key);
        self.young.insert(key, arrival_us);
    }
}

impl<K: Copy + Eq + Hash> Rates<K> {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, arrivals: Mutex::new(Arrivals { young: HashMap::new(), old: HashMap::new() }) }
    }

    /// Takes one for `key`.
    ///
    /// # Errors
    /// In how many milliseconds there will be one, at least 1.
    pub(crate) fn take(&self, key: K, now: UnixMs) -> Result<(), u64> {
        let now_us = now.saturating_mul(1_000);
        let mut arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        let known = arrivals.get(key);
        let next = self.after_one_more(known, now_us);
        // Who is refused is remembered for it as well: whoever comes again and again is never forgotten.
        if let Some(arrival_us) = next.ok().or(known) {
            arrivals.put(key, arrival_us, now_us);
        }
        next.map(drop)
    }

    /// Whether one could be taken, without taking it.
    pub(crate) fn has(&self, key: K, now: UnixMs) -> Result<(), u64> {
        let arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        self.after_one_more(arrivals.get(key), now.saturating_mul(1_000)).map(drop)
    }

    fn after_one_more(&self, arrival_us: Option<u64>, now_us: u64) -> Result<u64, u64> {
        let latest = now_us.saturating_add(self.rate.tolerance_us());
        // A clock that was set back must not lock anybody out for the difference: never beyond one full burst.
        let arrival = arrival_us.unwrap_or(0).clamp(now_us, latest);
        let next = arrival.saturating_add(self.rate.interval_us());
        if next <= latest { Ok(next) } else { Err((next - latest).div_ceil(1_000).max(1)) }
    }
}

/// Whom an address stands for: all of an IPv4 address is one party's, and the first 64 bits of an IPv6 one.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Party(u128);

impl Party {
    /// Of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(u128::from(v4.to_bits())),
            IpAddr::V6(v6) => Self(v6.to_bits() >> 64 << 64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = 1_700_000_000_000;

    fn take_all(rates: &Rates<u32>, key: u32, now: UnixMs) -> u32 {
        (0..).find(|_| rates.take(key, now).is_err()).unwrap()
    }

    #[test]
    fn a_burst_then_the_rate() {
        let rates = Rates::new(Rate { per_second: 100, burst: 7 });
        assert_eq!(take_all(&rates, 1, NOW), 7);
        assert_eq!(rates.take(1, NOW), Err(10));
        assert_eq!(take_all(&rates, 1, NOW + 9), 0);
        assert_eq!(take_all(&rates, 1, NOW + 10), 1);
        assert_eq!(take_all(&rates, 1, NOW + 10 + 50), 5);
        assert_eq!(take_all(&rates, 2, NOW), 7, "another key has its own");
        assert_eq!(take_all(&rates, 1, NOW + 3_600_000), 7, "a pause gives one burst and no more");
    }

    #[test]
    fn a_clock_set_back_locks_nobody_out() {
        let rates = Rates::new(Rate { per_second: 10, burst: 2 });
        assert_eq!(take_all(&rates, 1, NOW), 2);
        assert_eq!(rates.take(1, NOW - 86_400_000), Err(100));
        assert_eq!(take_all(&rates, 1, NOW), 0);
    }

    fn len(rates: &Rates<u32>) -> usize {
        let arrivals = rates.arrivals.lock().unwrap();
        arrivals.young.len() + arrivals.old.len()
    }

    #[test]
    fn the_table_is_bounded_and_forgets_the_idle_first() {
        let rates = Rates::new(Rate { per_second: 1, burst: 1 });
        for key in 0..2 * GENERATION as u32 {
            rates.take(key, NOW + u64::from(key == 0) * 1_000).unwrap();
        }
        assert_eq!(len(&rates), 2 * GENERATION);
        // At this time only key 0 is still in the middle of something.
        rates.take(u32::MAX, NOW + 1_000).unwrap();
        assert_eq!(len(&rates), GENERATION + 2);
        assert!(rates.take(0, NOW + 1_000).is_err());
    }

    /// Attack: ever new addresses, each in the middle of its burst, to make each one's turn long for everybody.
    #[test]
    fn a_full_table_costs_no_more_than_an_empty_one() {
        let rates = Rates::new(Rate { per_second: 1, burst: 10 });
        for key in 0..2 * GENERATION as u32 {
            rates.take(key, NOW).unwrap();
        }
        let since = std::time::Instant::now();
        for key in 0..200_000 {
            rates.take(u32::MAX - key, NOW).unwrap();
            assert!(key % 1_000 != 0 || len(&rates) <= 2 * GENERATION);
        }
        // Looked through at each, the table would take a minute.
        assert!(since.elapsed() < std::time::Duration::from_secs(10), "{:?}", since.elapsed());
        // Whoever comes again and again is not forgotten among them.
        assert_eq!(take_all(&rates, 7, NOW), 10);
        for key in 0..4 * GENERATION as u32 {
            rates.take(1_000_000 + key, NOW).unwrap();
            if key % 10_000 == 0 {
                assert!(rates.take(7, NOW).is_err());
            }
        }
    }

    #[test]
    fn an_ipv6_peer_is_its_network() {
        let of = |text: &str| Party::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
    }
}
