//! Long lists, a page at a time.

use rf_types::{id::Kind, units::UnixMs};
use serde::Serialize;

use crate::StoreError;

/// Most items of one page.
const ITEMS_MAX: u32 = 1_000;

/// Which page is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct PageAsk<'a> {
    /// [`Page::next`] of the page before; `None` is the first page.
    pub after: Option<&'a str>,
    /// Most items, 1 to 1,000; `None` is 100.
    pub items_max: Option<u32>,
}

/// A part of a list, newest first unless asked otherwise.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the next page begins; `None` when this is the last one.
    pub next: Option<String>,
}

/// Where a page begins: after the item made at `created` with `id`.
pub(crate) struct Cursor {
    pub(crate) created: i64,
    pub(crate) id: [u8; 16],
}

impl PageAsk<'_> {
    /// How many items, in range.
    pub(crate) fn items(&self) -> Result<u32, StoreError> {
        match self.items_max.unwrap_or(100) {
            items @ 1..=ITEMS_MAX => Ok(items),
            items => Err(StoreError::Invalid { what: format!("a page of {items} items; it must be 1 to {ITEMS_MAX}") }),
        }
    }

    /// Where the page begins; the first page begins after the greatest of all, or the least when the oldest comes first.
    pub(crate) fn cursor(&self, oldest_first: bool) -> Result<Cursor, StoreError> {
        let Some(text) = self.after else {
            return Ok(if oldest_first {
                Cursor { created: -1, id: [0; 16] }
            } else {
                Cursor { created: i64::MAX, id: [0xff; 16] }
            });
        };
        let lower_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        let parts =
            (text.len() == 48 && text.bytes().all(lower_hex)).then(|| text.split_at(16)).and_then(|(created, id)| {
                let created = u64::from_str_radix(created, 16).ok()?;
                Some((i64::try_from(created).ok()?, u128::from_str_radix(id, 16).ok()?))
            });
        let (created, id) =
            parts.ok_or_else(|| StoreError::Invalid { what: "`after` is not the `next` of a page".to_owned() })?;
        Ok(Cursor { created, id: id.to_be_bytes() })
    }
}

impl<T> Page<T> {
    /// Cuts `items`, read with one more than wanted, to `wanted`; the one more says whether there is a next page.
    pub(crate) fn cut<K: Kind>(
        mut items: Vec<T>,
        wanted: u32,
        place: impl Fn(&T) -> (UnixMs, rf_types::id::Id<K>),
    ) -> Self {
        let wanted = wanted as usize;
        let more = items.len() > wanted;
        items.truncate(wanted);
        let next = items.last().filter(|_| more).map(|last| {
            let (created, id) = place(last);
            format!("{created:016x}{:032x}", id.bits())
        });
        Self { items, next }
    }
}
