//! Layers of templates being unpacked.

use std::{os::fd::OwnedFd, time::Duration};

use rf_types::{Code, Fault};
use rf_wire::warden::Reply;

use super::{Asker, Keeper, Source, UNPACKING_MAX, watch};
use crate::unpack::Unpacking;

impl Keeper {
    /// Begins to unpack a layer; answers when it is.
    pub(super) fn unpack(&mut self, asker: Asker, diff_id: &str, fds: Vec<OwnedFd>) {
        let result = (|| {
            if self.unpacking.len() >= UNPACKING_MAX {
                return Err(Fault::new(Code::ServerBusy, "too many layers are being unpacked", "try again shortly"));
            }
            let blob = fds.into_iter().next().ok_or_else(|| Fault::invalid("a layer comes with its descriptor"))?;
            let target = self.templates.begin_layer(diff_id)?;
            Unpacking::begin(&self.launcher, diff_id, target, &blob)
        })();
        match result {
            Ok(unpacking) => {
                let id = self.next;
                let token = self.token(Source::Unpacking(id));
                if watch(&self.epoll, unpacking.watched(), token).is_ok() {
                    self.unpacking.insert(id, (unpacking, asker));
                } else {
                    self.sources.remove(&token);
                    self.templates.drop_layer(unpacking.diff_id());
                    self.leave(unpacking.into_helper());
                    let fault = Fault::new(Code::ServerBusy, "the warden has no descriptors left", "try again later");
                    self.answer(asker, Err(fault));
                }
            }
            Err(fault) => self.answer(asker, Err(fault)),
        }
    }

    /// An unpacker has spoken.
    pub(super) fn unpacked(&mut self, id: u64, token: u64) {
        let Some((unpacking, _)) = self.unpacking.get_mut(&id) else { return };
        let Some(result) = unpacking.advance() else { return };
        self.sources.remove(&token);
        let Some((unpacking, asker)) = self.unpacking.remove(&id) else { return };
        let result = result.and_then(|(bytes, files)| {
            self.templates.finish_layer(unpacking.diff_id())?;
            Ok(Reply::Unpacked { bytes, files })
        });
        if result.is_err() {
            self.templates.drop_layer(unpacking.diff_id());
        }
        self.leave(unpacking.into_helper());
        self.answer(asker, result);
    }

    /// Until an unpacker has had its time.
    pub(super) fn until_unpacked(&self) -> Option<Duration> {
        let left = |(unpacking, _): &(Unpacking, Asker)| self.config.unpack_time.saturating_sub(unpacking.elapsed());
        self.unpacking.values().map(left).min()
    }

    /// Stops unpackers that have had their time.
    pub(super) fn end_slow_unpacking(&mut self) {
        let time = self.config.unpack_time;
        let slow = |(_, (unpacking, _)): &(&u64, &(Unpacking, Asker))| unpacking.elapsed() >= time;
        let slow: Vec<u64> = self.unpacking.iter().filter(slow).map(|(id, _)| *id).collect();
        for id in slow {
            let Some((unpacking, asker)) = self.unpacking.remove(&id) else { continue };
            self.sources.retain(|_, source| !matches!(source, Source::Unpacking(of) if *of == id));
            self.templates.drop_layer(unpacking.diff_id());
            let message = format!(
                "the layer `{}` was not unpacked within {} s, so its unpacker was stopped",
                unpacking.diff_id(),
                time.as_secs_f64()
            );
            self.leave(unpacking.into_helper());
            let hint = "use an image with smaller layers, or a faster disk for the state directory";
            self.answer(asker, Err(Fault::new(Code::TimedOut, message, hint)));
        }
    }
}
