//! A stream of messages on its way into memory, as far as there is room. What has come of a message, and what may wait
//! for a slow program to take its input, is counted; of what came and was taken nothing is.
//!
//! ```text
//! flags (1 byte) length (4 bytes, big-endian) message …      as all the protocols of the services frame them
//! ```

use axum::body::Body;
use futures::StreamExt as _;

use super::rpc::MESSAGE_BYTES_MAX;
use crate::{
    input,
    room::{Room, Share},
};

const HEAD_BYTES: usize = 5;
/// In the flags: the message is packed.
const PACKED: u8 = 1;
/// A byte of what is packed is at most so many (zlib's technical notes, "maximum compression factor").
const RATIO_MAX: usize = 1_032;
/// Messages that came whole and may not have been taken yet: one is being handed to its program, one waits in the
/// library's channel.
const WAITING: usize = 2;

/// The same body, which breaks off where there is no room for what has come.
pub(super) fn counted(body: Body, room: &Room) -> Body {
    let mut count = Count::new(room);
    Body::from_stream(body.into_data_stream().map(move |data| {
        let data = data?;
        if count.take(&data) { Ok(data) } else { Err(axum::Error::new(input::no_room())) }
    }))
}

/// How far it has come.
struct Count {
    room: Room,
    head: [u8; HEAD_BYTES],
    /// Bytes of the head that have come.
    begun: usize,
    /// Bytes of the message that are to come.
    left: usize,
    /// Bytes of it that have come.
    length: usize,
    now: Share,
    before: [Option<Share>; WAITING],
}

impl Count {
    fn new(room: &Room) -> Self {
        let (now, room) = (room.share(), room.clone());
        Self { room, head: [0; HEAD_BYTES], begun: 0, left: 0, length: 0, now, before: Default::default() }
    }

    /// Whether there is room for what has come.
    fn take(&mut self, mut data: &[u8]) -> bool {
        while !data.is_empty() {
            if self.left == 0 {
                let count = data.len().min(HEAD_BYTES - self.begun);
                let (head, rest) = data.split_at(count);
                self.head[self.begun..self.begun + count].copy_from_slice(head);
                self.begun += count;
                data = rest;
                if self.begun == HEAD_BYTES {
                    self.begin();
                }
                continue;
            }
            let count = data.len().min(self.left);
            data = &data[count..];
            self.left -= count;
            self.length = self.length.saturating_add(count);
            let factor = if self.head[0] & PACKED == 0 { 1 } else { RATIO_MAX };
            // Past the bound of a message the library refuses it.
            if !self.now.grow(self.length.saturating_mul(factor).min(MESSAGE_BYTES_MAX)) {
                return false;
            }
        }
        true
    }

    /// A message begins; the one before it waits.
    fn begin(&mut self) {
        let [_, length @ ..] = self.head;
        (self.begun, self.length) = (0, 0);
        self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        self.before.rotate_left(1);
        self.before[WAITING - 1] = Some(std::mem::replace(&mut self.now, self.room.share()));
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn message(flags: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![flags];
        bytes.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
        bytes.resize(HEAD_BYTES + length, b'x');
        bytes
    }

    /// What is held after these bytes came in pieces of so many, KiB.
    fn held(bytes: &[u8], piece: usize) -> usize {
        let room = Room::default();
        let free = room.free_kib();
        let mut count = Count::new(&room);
        assert!(bytes.chunks(piece).all(|piece| count.take(piece)));
        free - room.free_kib()
    }

    #[test]
    fn what_came_is_held_and_what_was_taken_is_not() {
        let long = message(0, 1 << 20);
        for piece in [1, 3, 4096, 1 << 22] {
            assert_eq!(held(&message(0, 1000), piece), 0, "what is small is free");
            // The first 64 KiB are free, and growing doubles.
            let one = held(&long, piece);
            assert!((960..2048).contains(&one), "{one}");
            assert_eq!(held(&long[..long.len() - 1], piece), one, "before it is whole");
            for count in [3, 9] {
                let all = held(&long.repeat(count), piece);
                assert!((3 * one..6 * 1024).contains(&all), "{count} in pieces of {piece}: {all}");
            }
            let small = [long.repeat(3), message(0, 0), message(0, 1), message(2, 2)].concat();
            assert_eq!(held(&small, piece), 0);
        }
    }

    #[test]
    fn a_packed_message_holds_what_it_may_become() {
        let most = held(&message(0, MESSAGE_BYTES_MAX - 1), MESSAGE_BYTES_MAX * 2);
        assert_eq!(held(&message(1, 8 << 10), 1 << 22), most, "no more than a message may be");
        assert!((1..most / 2).contains(&held(&message(1, 300), 1 << 22)));
        assert_eq!(held(&message(1, 10), 1 << 22), 0);
    }

    #[tokio::test]
    async fn without_room_it_breaks_off_and_gives_back_what_it_held() {
        let room = Room::default();
        let free = room.free_kib();
        let mut others = room.share();
        assert!(others.grow((free - 100) << 10));
        let mut body = counted(Body::from([message(0, 10), message(0, 1 << 20)].concat()), &room);
        assert!(body.frame().await.unwrap().is_err());
        drop((others, body));
        assert_eq!(room.free_kib(), free);
    }
}
