//! The loop of process 1: two sockets, the ends of children, deadlines.

use rf_sys::guest::{
    Args, FdSlot, Fork, Mapping, TakeCell, Waited, as_file_owner, close_on_exec_from, default_signal, exit, fork_into,
    inherited, kill_all, monotonic_us, set_signal_mask, signal_fd, wait,
};
use rf_wire::init::{
    EXECS_MAX, File, HEADER_LEN, IN_MEMFD, INLINE_MAX, MEMFD_MAX, Reader, Spawn, UNLIMITED, answer, file_op, order,
    spawn, stage, thawed,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{CWD, Gid, Mode, OFlags, fcntl_get_seals, openat},
    io::{Errno, fcntl_dupfd_cloexec, pread, pwrite, read},
    pipe::{PipeFlags, pipe_with},
    process::{DumpableBehavior, Signal, kill_process, parent_process_death_signal, set_dumpable_behavior, umask},
    thread::{set_name, set_no_new_privs, set_thread_res_gid},
};

use crate::{
    ahead,
    channel::{Answer, Channel, Fds, Listing, Received, Sent, receive},
    exec::{Context, Refused, Streams, at, start_exec},
    file, kill,
    netlink::Netlink,
    probe,
    sudo::{front, server::Sudo},
    table::{Exec, Phase, Table},
    users::{self, Rights},
};

/// How much likelier than others a workload is to be chosen when memory runs out (proc_pid_oom_adj(5)); chosen: enough
/// that init, of a few pages, never is.
const WORKLOAD_OOM: &[u8] = b"500";
/// The saved group of process 1: the last of a sandbox's ids.
const UNSHARED_GID: u32 = 65_535;
/// The last signal (signal(7), real-time signals).
const SIGNAL_MAX: i32 = 64;
const OWN_OOM: &[u8] = b"0";

/// Most file operations at once; chosen: the limit on tasks of most sandboxes is reached earlier.
const HELPERS_MAX: usize = 256;

/// Descriptors that are always waited on: signals, warden, server, `sudo`'s listener, the filter's.
const FIXED: usize = 5;
/// The number of the filter's listener.
const LISTENER: i32 = 8;
/// Orders of the warden that are looked at before an exec is killed for its time; chosen: it sends one or two at once.
const WARDEN_ORDERS_MAX: usize = 8;
/// Names the first spare cgroup: not an id of the kind that the server makes, which are random.
const FIRST_SPARE: u128 = 0x7370_6172 << 96;

static TABLE: TakeCell<Table> = TakeCell::new(Table::EMPTY);
static BUFFER: TakeCell<[u8; INLINE_MAX]> = TakeCell::new([0; INLINE_MAX]);

/// Who gave an order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum From {
    Warden,
    Server,
}

/// All that process 1 knows.
struct Init {
    warden: Channel,
    server: Channel,
    table: &'static mut Table,
    cgroups: Option<OwnedFd>,
    /// `/proc/self/oom_score_adj`, where it can be had.
    oom: Option<OwnedFd>,
    null: OwnedFd,
    rights: Rights,
    /// What the launcher wants to happen to us when it dies.
    death_signal: Option<Signal>,
    /// An ended exec is waiting to be told of.
    untold: bool,
    /// The pids of the helpers of file operations; 0 is none.
    helpers: [i32; HELPERS_MAX],
    /// Where `sudo` asks; only where root may be had.
    sudo: Option<Sudo>,
    /// Where calls for a netlink socket wait.
    netlink: Option<Netlink>,
    /// An exec ended since the last look at cgroups.
    just_ended: bool,
    /// A forgotten exec left its cgroup behind.
    stale_cgroups: bool,
    /// An empty cgroup for the next exec: making one and removing it costs as much as all else that init does for an exec.
    spare_cgroup: Option<u128>,
    /// The user of the last exec or file operation.
    last_user: Option<users::Found>,
}

/// Process 1, or a mistake.
pub(crate) fn main(args: Args) -> i32 {
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        return 2;
    }
    match run(args) {
        Ok(()) => 0,
        Err(errno) => errno.raw_os_error(),
    }
}

fn run(args: Args) -> Result<(), Errno> {
    set_no_new_privs(true)?;
    set_name(c"rf-init")?;
    umask(Mode::from_raw_mode(0o022));
    // Whoever launched us may have ignored some, and that is passed on through every clone and execve: an ignored
    // SIGCHLD would even have the kernel reap our children.
    for signal in (1..=SIGNAL_MAX).filter(|signal| !matches!(*signal, libc::SIGKILL | libc::SIGSTOP)) {
        default_signal(signal)?;
    }
    set_signal_mask(u64::MAX)?;
    let flags = args.get(1).map_or(&b""[..], core::ffi::CStr::to_bytes).iter();
    let (mut root, mut one_uid, mut has_cgroups, mut has_listener) = (false, false, false, false);
    for flag in flags {
        match flag {
            b'r' => root = true,
            b'u' => one_uid = true,
            b'c' => has_cgroups = true,
            b'n' => has_listener = true,
            _ => return Err(Errno::INVAL),
        }
    }
    // Before anything is opened, which would take the number of one that is not there.
    let null = inherited(0)?;
    let warden = inherited(3)?;
    let server = inherited(4).ok();
    let cgroups = if has_cgroups { Some(inherited(5)?) } else { None };
    let listener = if has_listener { Some(inherited(LISTENER)?) } else { None };
    close_on_exec_from(3)?;
    let signals = signal_fd(1 << (libc::SIGCHLD - 1))?;
    // While it is still ours to open: what is not dumpable belongs to root of its user namespace (proc(5)), and there may
    // be none.
    let oom_flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let oom = openat(CWD, c"/proc/self/oom_score_adj", oom_flags, Mode::empty()).ok();
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    if !one_uid {
        // Whoever has the same ids, all of them, may set this process's limits (prlimit(2)), and one that may open no file
        // kills nobody. Nobody inside has this one; it means nothing else, and is gone with the next change of ids.
        set_thread_res_gid(None, None, Gid::from_raw(UNSHARED_GID))?;
    }
    let ids = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut init = Init {
        warden: Channel::new(Some(warden)),
        server: Channel::new(server),
        table: TABLE.take().ok_or(Errno::BUSY)?,
        oom,
        null,
        rights: Rights { root, only: one_uid.then_some(ids) },
        death_signal: parent_process_death_signal()?,
        untold: false,
        sudo: None,
        netlink: listener.map(Netlink::new),
        just_ended: false,
        helpers: [0; HELPERS_MAX],
        stale_cgroups: false,
        spare_cgroup: None,
        last_user: None,
        cgroups,
    };
    let buffer = BUFFER.take().ok_or(Errno::BUSY)?;
    if let Some(parent) = &init.cgroups {
        // Where it cannot be made, the first exec says why.
        let made = kill::make_cgroup(parent.as_fd(), kill::name_cstr(&kill::cgroup_name(FIRST_SPARE)));
        init.spare_cgroup = made.is_ok().then_some(FIRST_SPARE);
    }
    let probes = probe::probe(init.spare_cgroup.is_some());
    init.warden.answer(Answer::new(answer::READY, 0, |writer| writer.u32(probes)))?;
    // The rest is done while the warden reads back what holds, and before any order is looked at.
    if root && !one_uid {
        // Where there is nowhere to listen, nobody can ask.
        init.sudo = Sudo::listen().ok();
    }
    ahead::look();
    init.serve(signals.as_fd(), buffer)
}

impl Init {
    /// Serves until the warden's socket closes; then the end of process 1 ends the sandbox (pid_namespaces(7)).
    fn serve(&mut self, signals: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(), Errno> {
        loop {
            let wait_for = |channel: &Channel| if channel.blocked { PollFlags::OUT } else { PollFlags::IN };
            let Some(warden) = self.warden.socket() else { return Ok(()) };
            // In place of what is not there stands the warden, watched for nothing.
            let watched = |socket: Option<BorrowedFd<'_>>, events| socket.map_or(PollFlags::empty(), |_| events);
            let server = self.server.socket();
            let sudo = self.sudo.as_ref();
            let asked = sudo.and_then(Sudo::watched);
            let mut fds: [_; FIXED] = core::array::from_fn(|_| PollFd::from_borrowed_fd(warden, PollFlags::empty()));
            fds[0] = PollFd::from_borrowed_fd(signals, PollFlags::IN);
            fds[1] = PollFd::from_borrowed_fd(warden, wait_for(&self.warden));
            fds[2] = PollFd::from_borrowed_fd(server.unwrap_or(warden), watched(server, wait_for(&self.server)));
            fds[3] = PollFd::from_borrowed_fd(asked.unwrap_or(warden), watched(asked, PollFlags::IN));
            let netlink = self.netlink.as_ref().and_then(Netlink::watched);
            fds[4] = PollFd::from_borrowed_fd(netlink.unwrap_or(warden), watched(netlink, PollFlags::IN));
            let (is_sudo_watched, is_netlink_watched) = (asked.is_some(), netlink.is_some());
            let due = [self.table.nearest_deadline(), sudo.and_then(Sudo::rests_until)].into_iter().flatten().min();
            match poll(&mut fds, due.map(until).as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            let events = fds.each_ref().map(PollFd::revents);
            if !events[0].is_empty() {
                self.reap(signals);
            }
            self.kill_overdue(buffer);
            self.tell_ended();
            self.remove_ended_cgroups();
            self.attend(From::Warden, events[1], buffer);
            if self.server.socket().is_some() {
                self.attend(From::Server, events[2], buffer);
            }
            if is_sudo_watched && !events[3].is_empty() {
                self.attend_sudo(buffer);
            }
            if is_netlink_watched && !events[4].is_empty() {
                self.attend_netlink();
            }
        }
    }

    /// Has a process of its own answer calls for a netlink socket.
    fn attend_netlink(&mut self) {
        let Some(netlink) = self.netlink.as_mut() else { return };
        let parent = self.cgroups.as_ref().map(AsFd::as_fd);
        let cgroup = parent.map(|parent| kill::make_cgroup(parent, c"files")).transpose();
        set_oom(self.oom.as_ref(), WORKLOAD_OOM);
        netlink.attend(cgroup);
        set_oom(self.oom.as_ref(), OWN_OOM);
    }

    /// Has a process of its own take and attend to a connection of `sudo`.
    fn attend_sudo(&mut self, buffer: &mut [u8]) {
        let Some(sudo) = self.sudo.as_mut() else { return };
        if !sudo.is_asked() {
            return;
        }
        let cgroups = self.cgroups.as_ref().map(AsFd::as_fd);
        let (table, rights, oom) = (&*self.table, self.rights, self.oom.as_ref());
        let made = pipe_with(PipeFlags::CLOEXEC).and_then(|(taking, taken)| {
            let cgroup = cgroups.map(|parent| kill::make_cgroup(parent, c"files")).transpose()?;
            set_oom(oom, WORKLOAD_OOM);
            let forked = fork_into(cgroup.as_ref().map(AsFd::as_fd));
            if let Ok(Fork::Child) = forked {
                front::run(&front::Given { listener: sudo.listener(), cgroups, table, rights }, taken, buffer);
                exit(0)
            }
            set_oom(oom, OWN_OOM);
            match forked? {
                Fork::Parent(pid) => Ok((pid, taking)),
                Fork::Child => Err(Errno::CHILD),
            }
        });
        match made {
            Ok((pid, taking)) => sudo.attended(pid, taking),
            Err(_) => sudo.rest(),
        }
    }

    fn channel(&mut self, from: From) -> &mut Channel {
        match from {
            From::Warden => &mut self.warden,
            From::Server => &mut self.server,
        }
    }

    /// Does what one socket is ready for.
    fn attend(&mut self, from: From, events: PollFlags, buffer: &mut [u8]) {
        if events.is_empty() {
            return;
        }
        let channel = self.channel(from);
        if channel.blocked {
            if events.intersects(PollFlags::HUP | PollFlags::ERR) {
                channel.close();
            } else if channel.flush() {
                self.list_on(from);
            }
            return;
        }
        let Some(socket) = channel.socket() else { return };
        match receive(socket, buffer) {
            Received::Nothing => {}
            Received::Gone => channel.close(),
            Received::Unfit => self.answer(from, Answer::failed(0, stage::ORDER, Errno::MSGSIZE)),
            Received::Message(len, fds) => self.message(from, &buffer[..len], fds),
        }
    }

    /// Sends an answer. One that the kernel refuses becomes a `FAILED` in the same words.
    fn answer(&mut self, from: From, answer: Answer) {
        let _ = self.channel(from).answer(answer);
    }

    fn message(&mut self, from: From, bytes: &[u8], mut fds: Fds) {
        let Ok((header, reader)) = Reader::message(bytes) else {
            return self.answer(from, Answer::failed(0, stage::ORDER, Errno::PROTO));
        };
        let tag = header.tag;
        let outcome = if header.kind & IN_MEMFD == 0 {
            self.order(from, header.kind, tag, reader, fds)
        } else {
            // What comes behind it are the order's own, as beside a short one.
            let body = fds.take_first().ok_or(Errno::BADF).and_then(|file| read_body(reader, &file));
            match body {
                Ok((mut memory, len)) => {
                    let reader = Reader::body(&memory.bytes()[..len]);
                    self.order(from, header.kind & !IN_MEMFD, tag, reader, fds)
                }
                Err(errno) => Err(Refused { stage: stage::ORDER, errno }),
            }
        };
        match outcome {
            Ok(Some(answer)) => self.answer(from, answer),
            Ok(None) => {}
            Err(refused) => self.answer(from, Answer::failed(tag, refused.stage, refused.errno)),
        }
    }

    /// Carries out one order; gives the answer, unless that was sent already or comes from elsewhere.
    fn order(
        &mut self,
        from: From,
        kind: u16,
        tag: u64,
        mut reader: Reader<'_>,
        mut fds: Fds,
    ) -> Result<Option<Answer>, Refused> {
        let malformed = |_| Refused { stage: stage::ORDER, errno: Errno::PROTO };
        let done = || Ok(Some(Answer::done(tag)));
        match kind {
            order::SPAWN => {
                let order = Spawn::read(&mut reader).map_err(malformed)?;
                self.spawn(from, tag, &order).map(|()| None)
            }
            order::SIGNAL => {
                let exec = reader.u128().map_err(malformed)?;
                let signal = reader.u32().map_err(malformed)?;
                let scope = reader.u32().map_err(malformed)?;
                self.signal(exec, signal, scope)?;
                done()
            }
            order::FILE => {
                let order = File::read(&mut reader).map_err(malformed)?;
                let reply = fds.take(0).ok_or(Refused { stage: stage::ORDER, errno: Errno::BADF })?;
                self.file(tag, &order, &reply, fds.take(1).as_ref())?;
                Ok(None)
            }
            order::LIST => {
                self.channel(from).listing = Some(Listing { tag, next: 0 });
                self.list_on(from);
                Ok(None)
            }
            order::FORGET => {
                self.forget(reader.u128().map_err(malformed)?)?;
                done()
            }
            order::RELEASE => {
                let exec = reader.u128().map_err(malformed)?;
                let (_, found) = self.table.find(exec).ok_or(Refused { stage: stage::ORDER, errno: Errno::SRCH })?;
                found.kept = [const { FdSlot::EMPTY }; 3];
                done()
            }
            order::PING => done(),
            order::ADOPT if from == From::Warden => {
                let socket = fds.take(0).ok_or(Refused { stage: stage::ORDER, errno: Errno::BADF })?;
                self.server = Channel::new(Some(socket));
                // What ended before it came it learns by a `LIST`.
                for place in 0..EXECS_MAX {
                    if let Some(exec) = self.table.get_mut(place) {
                        exec.told |= exec.phase == Phase::Ended;
                    }
                }
                done()
            }
            order::KILL_ALL if from == From::Warden => {
                // There may be none.
                let _ = kill_all();
                Ok(None)
            }
            order::THAWED if from == From::Warden => {
                let us = reader.u64().map_err(malformed)?;
                let flags = reader.u32().map_err(malformed)?;
                self.table.put_off(us);
                if flags & thawed::NEW_ROOT != 0
                    && let Some(sudo) = &mut self.sudo
                {
                    sudo.listen_again();
                }
                Ok(None)
            }
            _ => Err(Refused { stage: stage::ORDER, errno: Errno::OPNOTSUPP }),
        }
    }

    fn spawn(&mut self, from: From, tag: u64, order: &Spawn<'_>) -> Result<(), Refused> {
        if self.table.find(order.exec).is_some() {
            // An exec is started at most once.
            return Err(Refused { stage: stage::ORDER, errno: Errno::EXIST });
        }
        let name = rf_sys::guest::cstr(order.user).to_bytes();
        let user = users::find_again(name, self.rights, &mut self.last_user).map_err(at(stage::USER))?;
        let one_uid = self.rights.only.is_some();
        let make = || Streams::make(order.flags, order.rows, order.cols);
        // They belong to the user, so that the workload can open `/dev/stdout` or its terminal again.
        let streams = if one_uid { make() } else { as_file_owner((user.uid, user.gid), self.death_signal, make) };
        let mut streams = streams.map_err(at(stage::PIPES))?;
        let mut kept = [const { FdSlot::EMPTY }; 3];
        if order.flags & spawn::KEEP != 0 {
            for (slot, fd) in kept.iter_mut().zip(streams.server.iter().flatten()) {
                *slot = FdSlot::of(fcntl_dupfd_cloexec(fd, 3).map_err(at(stage::PIPES))?);
            }
        }
        let no_room = Refused { stage: stage::TABLE, errno: Errno::AGAIN };
        let (place, evicted) = self.table.place().ok_or(no_room)?;
        if let Some(evicted) = evicted {
            self.clean_up(&evicted);
        }
        let (group, cgroup) = self.cgroup_for(order.exec).map_err(at(stage::CGROUP))?;
        let started_us = monotonic_us();
        let context = Context {
            user: &user,
            one_uid,
            streams: &streams,
            null: self.null.as_fd(),
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
        };
        set_oom(self.oom.as_ref(), WORKLOAD_OOM);
        let started = start_exec(order, &context);
        set_oom(self.oom.as_ref(), OWN_OOM);
        let pid = match started {
            Ok(pid) => pid.as_raw_pid(),
            Err(refused) => {
                self.clean_up(&Exec { cgroup: cgroup.is_some(), group, ..Exec::FREE });
                return Err(refused);
            }
        };
        let deadline_us = match order.timeout_ms {
            UNLIMITED => 0,
            // Never 0, which is no deadline: the clock runs since the machine started.
            timeout => started_us.saturating_add(timeout.saturating_mul(1000)).max(1),
        };
        self.table.put(
            place,
            Exec {
                phase: Phase::Running,
                cgroup: cgroup.is_some(),
                flags: order.flags,
                rlimits: order.rlimits,
                pid,
                id: order.exec,
                group,
                started_us,
                deadline_us,
                kept,
                ..Exec::FREE
            },
        );
        let spawned = Answer::new(answer::SPAWNED, tag, |writer| {
            writer.u128(order.exec);
            writer.u32(pid.unsigned_abs());
        });
        let ends = core::mem::replace(&mut streams.server, [const { None }; 3]);
        if let Err(errno) = self.channel(from).answer(spawned.with(ends)) {
            // Its streams cannot be handed over, so nobody could ever follow it.
            self.kill_place(place);
            return Err(Refused { stage: stage::PIPES, errno });
        }
        Ok(())
    }

    /// The cgroup of an exec that is to start, and the id it is named by: the spare one, or one of its own.
    fn cgroup_for(&mut self, exec: u128) -> Result<(u128, Option<OwnedFd>), Errno> {
        let Some(parent) = &self.cgroups else { return Ok((exec, None)) };
        if let Some(spare) = self.spare_cgroup.take() {
            match kill::open_cgroup(parent.as_fd(), kill::name_cstr(&kill::cgroup_name(spare))) {
                Ok(cgroup) => return Ok((spare, Some(cgroup))),
                // Nobody knows of it any more but the next sweep.
                Err(_) => self.stale_cgroups = true,
            }
        }
        let cgroup = kill::make_cgroup(parent.as_fd(), kill::name_cstr(&kill::cgroup_name(exec)))?;
        Ok((exec, Some(cgroup)))
    }

    /// Starts the helper of a file operation, which answers on `reply` itself.
    fn file(&mut self, tag: u64, order: &File<'_>, reply: &OwnedFd, data: Option<&OwnedFd>) -> Result<(), Refused> {
        let name = rf_sys::guest::cstr(order.user).to_bytes();
        let user = users::find_again(name, self.rights, &mut self.last_user).map_err(at(stage::USER))?;
        if order.op == file_op::CONNECT {
            let connect = || Ok(file::connect_at_once(order.number, tag, reply.as_fd()));
            let one_uid = self.rights.only.is_some();
            // The socket is the user's, as one that a helper makes.
            let done =
                if one_uid { connect() } else { as_file_owner((user.uid, user.gid), self.death_signal, connect) };
            if done == Ok(true) {
                return Ok(());
            }
        }
        let free = self.helpers.iter_mut().find(|pid| **pid == 0);
        let slot = free.ok_or(Refused { stage: stage::FORK, errno: Errno::AGAIN })?;
        let parent = self.cgroups.as_ref().map(AsFd::as_fd);
        let cgroup = parent.map(|parent| kill::make_cgroup(parent, c"files")).transpose().map_err(at(stage::CGROUP))?;
        set_oom(self.oom.as_ref(), WORKLOAD_OOM);
        let forked = fork_into(cgroup.as_ref().map(AsFd::as_fd));
        if let Ok(Fork::Child) = forked {
            file::run(order, tag, &user, self.rights.only.is_some(), reply, data);
            exit(0)
        }
        set_oom(self.oom.as_ref(), OWN_OOM);
        if let Fork::Parent(pid) = forked.map_err(at(stage::FORK))? {
            *slot = pid.as_raw_pid();
        }
        Ok(())
    }

    fn signal(&mut self, id: u128, signal: u32, scope: u32) -> Result<(), Refused> {
        let no_exec = Refused { stage: stage::ORDER, errno: Errno::SRCH };
        let no_signal = Refused { stage: stage::ORDER, errno: Errno::INVAL };
        let number = i32::try_from(signal).ok().and_then(Signal::from_named_raw).ok_or(no_signal)?;
        let (place, exec) = self.table.find(id).ok_or(no_exec)?;
        match scope {
            0 => {
                let pid = exec.live_pid().ok_or(Refused { stage: stage::SIGNAL, errno: Errno::SRCH })?;
                kill_process(pid, number).map_err(at(stage::SIGNAL))
            }
            1 => self.signal_place(place, number).map_err(at(stage::SIGNAL)),
            _ => Err(no_signal),
        }
    }

    /// Signals the whole tree of an exec.
    fn signal_place(&mut self, place: usize, signal: Signal) -> Result<(), Errno> {
        let exec = self.table.get_mut(place).ok_or(Errno::SRCH)?;
        match &self.cgroups {
            Some(parent) if exec.cgroup => {
                let name = kill::cgroup_name(exec.group);
                let name = kill::name_cstr(&name);
                if signal == Signal::KILL {
                    // `clone3` into a cgroup that was ever killed gives a process that is killed at once: the kernel
                    // compares how often the two cgroups were (kernel/cgroup/cgroup.c, `cgroup_post_fork`).
                    exec.cgroup_killed = true;
                    kill::kill_cgroup(parent.as_fd(), name)
                } else {
                    kill::signal_cgroup(parent.as_fd(), name, signal)
                }
            }
            _ => kill::signal_tree(exec.pid, exec.phase == Phase::Running, signal),
        }
    }

    fn kill_place(&mut self, place: usize) {
        // It may be gone by itself.
        let _ = self.signal_place(place, Signal::KILL);
    }

    fn forget(&mut self, id: u128) -> Result<(), Refused> {
        let unknown = Refused { stage: stage::ORDER, errno: Errno::SRCH };
        let (place, exec) = self.table.find(id).ok_or(unknown)?;
        if exec.phase == Phase::Running {
            return Err(Refused { stage: stage::ORDER, errno: Errno::BUSY });
        }
        let exec = self.table.remove(place);
        self.clean_up(&exec);
        Ok(())
    }

    /// Removes what an exec that is no longer in the table left behind.
    fn clean_up(&mut self, exec: &Exec) {
        let Some(parent) = &self.cgroups else { return };
        if exec.cgroup && kill::remove_cgroup(parent.as_fd(), kill::name_cstr(&kill::cgroup_name(exec.group))).is_err()
        {
            self.stale_cgroups = true;
        }
        if self.stale_cgroups {
            let table = &*self.table;
            let spare = self.spare_cgroup;
            let known = |group| spare == Some(group) || table.iter().any(|(_, exec)| exec.group == group);
            self.stale_cgroups = kill::sweep(parent.as_fd(), &known);
        }
    }

    /// Reaps every child that ended: execs, helpers, and orphans that the kernel gave us.
    fn reap(&mut self, signals: BorrowedFd<'_>) {
        // One read takes the signal, however many children it stands for.
        let mut info = [0; 128];
        let _ = read(signals, &mut info);
        while let Ok(Some(waited)) = wait(None, true) {
            self.ended(&waited);
        }
    }

    fn ended(&mut self, waited: &Waited) {
        if let Some(helper) = self.helpers.iter_mut().find(|pid| **pid == waited.pid) {
            *helper = 0;
            return;
        }
        if self.sudo.as_mut().is_some_and(|sudo| sudo.ended(waited.pid))
            || self.netlink.as_mut().is_some_and(|netlink| netlink.ended(waited.pid))
        {
            return;
        }
        let Some((_, exec)) = self.table.of_pid(waited.pid) else { return };
        exec.phase = Phase::Ended;
        exec.status = waited.status;
        exec.user_us = waited.user_us;
        exec.system_us = waited.system_us;
        exec.peak_bytes = waited.peak_bytes;
        exec.wall_us = monotonic_us().saturating_sub(exec.started_us);
        // Without a cgroup nothing tells whether others of its tree live, so its time ends with it.
        if !exec.cgroup {
            exec.deadline_us = 0;
        }
        self.untold = true;
        exec.just_ended = exec.cgroup;
        self.just_ended |= exec.cgroup;
    }

    /// Removes the cgroups of those that ended since, where nothing of their tree is left, or keeps one for the next
    /// exec. After the news of it were sent, for nobody waits for this.
    fn remove_ended_cgroups(&mut self) {
        let Some(parent) = self.cgroups.as_ref().filter(|_| self.just_ended) else { return };
        self.just_ended = false;
        let mut next = 0;
        while let Some(place) = self.table.first(next, |exec| exec.just_ended) {
            let Some(exec) = self.table.get_mut(place) else { break };
            exec.just_ended = false;
            let name = kill::cgroup_name(exec.group);
            let name = kill::name_cstr(&name);
            let fresh = self.spare_cgroup.is_none() && !exec.cgroup_killed;
            let spared = fresh && kill::is_empty_cgroup(parent.as_fd(), name);
            if spared {
                self.spare_cgroup = Some(exec.group);
            }
            if spared || kill::remove_cgroup(parent.as_fd(), name).is_ok() {
                exec.cgroup = false;
                exec.deadline_us = 0;
            }
            next = place + 1;
        }
    }

    fn kill_overdue(&mut self, buffer: &mut [u8]) {
        if self.table.nearest_deadline().is_none() {
            return;
        }
        let now = monotonic_us();
        if self.table.nearest_deadline().is_some_and(|deadline| deadline <= now) {
            // We may have been frozen until just now. Then `THAWED` was there before we ran again, and the clock was
            // read after it or before the pause: either way what is overdue below is so by time that we ran.
            for _ in 0..WARDEN_ORDERS_MAX {
                self.attend(From::Warden, PollFlags::IN, buffer);
            }
        }
        while let Some(place) = self.table.first(0, |exec| exec.deadline_us != 0 && exec.deadline_us <= now) {
            if let Some(exec) = self.table.get_mut(place) {
                exec.deadline_us = 0;
                exec.timed_out = exec.phase == Phase::Running;
            }
            self.kill_place(place);
        }
    }

    /// Tells the server of every ended exec it has not heard of, as far as it reads.
    fn tell_ended(&mut self) {
        if !self.untold || self.server.blocked || self.server.socket().is_none() {
            return;
        }
        let mut next = 0;
        let is_news = |exec: &Exec| exec.phase == Phase::Ended && !exec.told;
        while let Some(place) = self.table.first(next, is_news) {
            let Some(exec) = self.table.get_mut(place) else { break };
            let news = Answer::new(answer::EXITED, 0, |writer| exec.exited().write(writer));
            match self.server.send(news.bytes(), []) {
                Sent::Later | Sent::Gone => return,
                Sent::Yes | Sent::Refused(_) => exec.told = true,
            }
            next = place + 1;
        }
        self.untold = false;
    }

    /// Goes on with a `LIST`, as far as the other side reads.
    fn list_on(&mut self, from: From) {
        let now = monotonic_us();
        let channel = match from {
            From::Warden => &mut self.warden,
            From::Server => &mut self.server,
        };
        let Some(mut listing) = channel.listing else { return };
        while let Some(place) = self.table.first(listing.next, |_| true) {
            let Some(exec) = self.table.get_mut(place) else { break };
            let line = Answer::new(answer::EXEC, listing.tag, |writer| exec.listed(now).write(writer));
            match channel.send(line.bytes(), exec.kept.iter().filter_map(FdSlot::get)) {
                Sent::Gone => return,
                Sent::Later => {
                    channel.listing = Some(listing);
                    return;
                }
                // Refused for its descriptors: without them it is still news.
                Sent::Refused(_) => {
                    channel.send(line.bytes(), []);
                }
                Sent::Yes => {}
            }
            if from == From::Server && exec.phase == Phase::Ended {
                exec.told = true;
            }
            listing.next = place + 1;
        }
        channel.listing = None;
        let _ = channel.answer(Answer::done(listing.tag));
    }
}

/// Sets our own likelihood to be killed for want of memory, which a child takes over. Lowering it again to what it was
/// needs no capability (proc_pid_oom_adj(5)).
fn set_oom(file: Option<&OwnedFd>, value: &[u8]) {
    if let Some(file) = file {
        // Best effort: memory.oom.group and the like are the launcher's affair.
        let _ = pwrite(file, value, 0);
    }
}

/// The time from now until a deadline.
fn until(deadline_us: u64) -> Timespec {
    let left = deadline_us.saturating_sub(monotonic_us());
    // Up to the next millisecond, so as not to wake just before.
    Timespec { tv_sec: (left / 1_000_000) as i64, tv_nsec: (left % 1_000_000) as i64 * 1000 + 1000 }
}

/// Reads a body out of a memfd into memory of our own, which nobody can change or cut off while it is parsed.
fn read_body(mut reader: Reader<'_>, file: &OwnedFd) -> Result<(Mapping, usize), Errno> {
    let len = reader.u64().map_err(|_| Errno::PROTO)?;
    let len = usize::try_from(len).ok().filter(|len| (1..=MEMFD_MAX).contains(len)).ok_or(Errno::MSGSIZE)?;
    // Only files in memory have seals (fcntl(2), F_GET_SEALS): reading another could make process 1 wait.
    fcntl_get_seals(file).map_err(|_| Errno::BADF)?;
    let mut memory = Mapping::new(len)?;
    let bytes = memory.bytes();
    let mut filled = 0;
    while filled < len {
        match pread(file, &mut bytes[filled..len], filled as u64) {
            Ok(0) => return Err(Errno::PROTO),
            Ok(got) => filled += got,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok((memory, len))
}

const _: () = assert!(HEADER_LEN < INLINE_MAX);
