//! Prepared sandboxes, kept by what cannot be changed once a sandbox is there.
//!
//! One shelf has sandboxes of the template `host` as nobody asked for others, from the start. The other has those of
//! `base` and is empty until the first is asked for: from then on it has what was asked for last, so that nothing needs
//! to know here how big other programs want theirs. One odd request does not change it, two in a row do.

use std::collections::VecDeque;

use rf_types::{SandboxId, SandboxSpec, TemplateName};

/// Prepared sandboxes that are alike.
#[derive(Debug)]
struct Shelf {
    spec: SandboxSpec,
    want: usize,
    ready: VecDeque<SandboxId>,
    /// Set when its spec cannot be launched here: every one would fail alike.
    off: bool,
}

/// All prepared sandboxes.
#[derive(Debug)]
pub(crate) struct Pool {
    host: Shelf,
    base: Option<Shelf>,
    base_want: usize,
    /// Of `base`, asked for last, and not what the shelf has.
    odd: Option<SandboxSpec>,
}

/// Whether a sandbox prepared as `has` can become one as `wants`: what is left of a difference can still be set. One that
/// may lack a layer is only for who accepts that by name.
fn same(has: &SandboxSpec, wants: &SandboxSpec) -> bool {
    has.accept_missing.iter().all(|layer| wants.accept_missing.contains(layer))
        && wants.template == has.template
        && wants.disk == has.disk
        && wants.network == has.network
        && wants.root_allowed == has.root_allowed
        && wants.limits.disk_bytes_max == has.limits.disk_bytes_max
        && wants.limits.inodes_max == has.limits.inodes_max
}

impl Pool {
    /// An empty pool that wants `host` sandboxes of the template of that name, and `base` ones.
    pub(crate) fn new(host: u32, base: u32) -> Self {
        let spec = SandboxSpec::standard(60_000);
        let host = Shelf { spec, want: host as usize, ready: VecDeque::new(), off: false };
        Self { host, base: None, base_want: base as usize, odd: None }
    }

    fn shelves(&mut self) -> impl Iterator<Item = &mut Shelf> {
        std::iter::once(&mut self.host).chain(&mut self.base)
    }

    /// How many are prepared.
    pub(crate) fn len(&self) -> usize {
        self.host.ready.len() + self.base.as_ref().map_or(0, |shelf| shelf.ready.len())
    }

    /// What should be prepared next.
    pub(crate) fn wants(&self) -> Option<&SandboxSpec> {
        self.next().map(|shelf| &shelf.spec)
    }

    fn next(&self) -> Option<&Shelf> {
        std::iter::once(&self.host).chain(&self.base).find(|shelf| !shelf.off && shelf.ready.len() < shelf.want)
    }

    /// Whether less than half of what should be prepared next is there.
    pub(crate) fn short(&self) -> bool {
        self.next().is_some_and(|shelf| shelf.ready.len() * 2 < shelf.want)
    }

    /// What was prepared as `spec` is ready. `false` when nobody wants such a one any more.
    pub(crate) fn add(&mut self, id: SandboxId, spec: &SandboxSpec) -> bool {
        let shelf = self.shelves().find(|shelf| same(&shelf.spec, spec));
        shelf.map(|shelf| shelf.ready.push_back(id)).is_some()
    }

    /// Takes one that can become what `spec` says.
    pub(crate) fn take(&mut self, spec: &SandboxSpec) -> Option<SandboxId> {
        self.shelves().find(|shelf| same(&shelf.spec, spec))?.ready.pop_front()
    }

    /// This one is there no more.
    pub(crate) fn forget(&mut self, id: SandboxId) {
        self.shelves().for_each(|shelf| shelf.ready.retain(|ready| *ready != id));
    }

    /// What was asked for as `spec` cannot be prepared.
    pub(crate) fn give_up(&mut self, spec: &SandboxSpec) {
        self.shelves().filter(|shelf| same(&shelf.spec, spec)).for_each(|shelf| shelf.off = true);
    }

    /// Somebody asked for `spec`. What is returned was prepared for what nobody asks for any more.
    pub(crate) fn asked(&mut self, spec: &SandboxSpec) -> VecDeque<SandboxId> {
        if spec.template != TemplateName::base() || self.base_want == 0 {
            return VecDeque::new();
        }
        if let Some(shelf) = &mut self.base {
            if same(&shelf.spec, spec) {
                // Whoever asks for one finds out what is wrong; then it is tried again.
                shelf.off = false;
                self.odd = None;
                return VecDeque::new();
            }
            if !self.odd.as_ref().is_some_and(|odd| same(odd, spec)) {
                self.odd = Some(spec.clone());
                return VecDeque::new();
            }
        }
        self.odd = None;
        let shelf = Shelf { spec: spec.clone(), want: self.base_want, ready: VecDeque::new(), off: false };
        self.base.replace(shelf).map(|old| old.ready).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use rf_types::{Layer, units::MIB};

    use super::*;

    fn base(disk: u64) -> SandboxSpec {
        let mut spec = SandboxSpec { template: TemplateName::base(), ..SandboxSpec::standard(60_000) };
        spec.limits.disk_bytes_max = disk * MIB;
        spec
    }

    #[test]
    fn a_shelf_has_what_was_asked_for_twice() {
        let mut pool = Pool::new(0, 2);
        assert!(pool.wants().is_none());
        assert!(pool.asked(&base(1)).is_empty());
        assert_eq!(pool.wants(), Some(&base(1)));
        let (a, b) = (SandboxId::random(), SandboxId::random());
        assert!(pool.short() && pool.add(a, &base(1)) && !pool.short());
        assert!(pool.add(b, &base(1)) && pool.wants().is_none());

        // One odd request changes nothing, also when it comes again later.
        assert!(pool.asked(&base(2)).is_empty() && pool.take(&base(2)).is_none());
        assert!(pool.asked(&base(1)).is_empty());
        assert_eq!(pool.take(&base(1)), Some(a));
        assert!(pool.asked(&base(2)).is_empty());
        assert_eq!(pool.asked(&base(2)), [b]);
        assert_eq!((pool.len(), pool.wants()), (0, Some(&base(2))));
        // What was under way for the former shelf is wanted no more.
        assert!(!pool.add(SandboxId::random(), &base(1)));
    }

    #[test]
    fn only_limits_that_can_be_set_later_may_differ() {
        let mut pool = Pool::new(1, 0);
        let host = pool.wants().cloned().unwrap();
        let id = SandboxId::random();
        assert!(pool.add(id, &host));
        assert!(pool.asked(&base(1)).is_empty() && pool.take(&base(128)).is_none());
        let mut other = host.clone();
        other.root_allowed = false;
        assert!(pool.take(&other).is_none());
        other = host;
        other.limits.memory_bytes_max *= 2;
        assert_eq!(pool.take(&other), Some(id));
    }

    #[test]
    fn what_may_lack_a_layer_is_only_for_who_accepts_that() {
        let mut pool = Pool::new(0, 1);
        let weaker = SandboxSpec { accept_missing: vec![Layer::Landlock], ..base(1) };
        let _ = pool.asked(&weaker);
        let id = SandboxId::random();
        assert!(pool.add(id, &weaker));
        assert_eq!(pool.take(&base(1)), None);
        let other = SandboxSpec { accept_missing: vec![Layer::Io], ..base(1) };
        assert_eq!(pool.take(&other), None);
        let more = SandboxSpec { accept_missing: vec![Layer::Io, Layer::Landlock], ..base(1) };
        assert_eq!(pool.take(&more), Some(id));
        // Asked for twice by who accepts nothing, such ones are prepared, and are for everybody.
        let _ = pool.asked(&base(1));
        let _ = pool.asked(&base(1));
        assert_eq!(pool.wants(), Some(&base(1)));
        assert!(pool.add(id, &base(1)));
        assert_eq!(pool.take(&weaker), Some(id));
    }

    #[test]
    fn what_cannot_be_launched_is_not_tried_until_somebody_asks() {
        let mut pool = Pool::new(0, 1);
        let _ = pool.asked(&base(1));
        pool.give_up(&base(1));
        assert!(pool.wants().is_none());
        let _ = pool.asked(&base(1));
        assert!(pool.wants().is_some());
    }
}
