//! A file operation, in a process of its own that has given up everything but its user's rights.
//!
//! Init forks for each; the copy drops to the user, keeps nothing but the reply socket and the data pipe, and does one
//! operation. So a path is resolved inside the sandbox, as its user, and nothing that a directory or an archive holds is
//! ever read by process 1.
//!
//! A file's content is opened in two steps: first without opening it (`O_PATH`), then, only if it is a regular file and
//! not on procfs, again through `/proc/self/fd` (which names the very same file, whatever was renamed meanwhile). Nothing
//! of the first step can block, and a FIFO, socket or device is never opened. Links that only the kernel makes
//! (`/proc/PID/fd/N`, `/proc/PID/root`) are not followed.
//!
//! | errno | beside the kernel's own |
//! |---|---|
//! | `ESPIPE` | it is a FIFO or a socket |
//! | `ENODEV` | it is a device |
//! | `EACCES` | also: it is on procfs, where the reader's view would be the server's |
//! | `EISDIR` | it is a directory |
//! | `ELOOP` | also: a link that is not followed |
//! | `ENAMETOOLONG` | also: more directories inside each other than an operation goes through |
//! | `E2BIG` | more entries than one answer may have |

mod across;
mod basic;
mod connect;
mod detail;
mod open;
mod remove;
mod reply;
mod tar;
mod tar_in;
mod tar_out;
mod walk;
mod watch;
mod write;

use rf_sys::guest::{Identity, become_user, chdir, cstr, inherited, install_workload_filter, keep_only};
use rf_wire::{
    detail::flag,
    init::{File, file_op},
};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::Mode,
    io::Errno,
    process::{DumpableBehavior, set_dumpable_behavior, umask},
    thread::set_name,
};

use crate::users::User;
pub(crate) use connect::at_once as connect_at_once;
use reply::Reply;

/// Drops to the user and does the operation. The process ends after this.
///
/// `one_uid` is set where ids cannot be changed: then they are kept and only the capabilities go.
pub(crate) fn run(order: &File<'_>, tag: u64, user: &User, one_uid: bool, reply: &OwnedFd, data: Option<&OwnedFd>) {
    if keep_only(reply.as_fd(), data.map(AsFd::as_fd)).is_err() {
        return;
    }
    // Those are the numbers now: `reply` and `data` name closed ones and are not used again.
    let Ok(socket) = inherited(3) else { return };
    let pipe = data.and_then(|_| inherited(4).ok());
    let mut reply = Reply::new(socket, tag);
    let outcome = confine(user, one_uid).and_then(|()| {
        if order.flags & flag::DETAIL != 0 {
            detail::operate(order, user, &mut reply)
        } else {
            operate(order, &mut reply, pipe)
        }
    });
    match outcome {
        Ok(Told::No) => reply.done(),
        Ok(Told::Already) => {}
        Err(errno) => reply.failed(errno, cstr(order.a).to_bytes()),
    }
}

fn confine(user: &User, one_uid: bool) -> Result<(), Errno> {
    become_user(&Identity {
        ids: (!one_uid).then_some((user.uid, user.gid)),
        groups: user.groups(),
        keep_capabilities: user.uid == 0 && !one_uid,
    })?;
    // A change of ids sets this anew (prctl(2)), and then the user could trace us.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    install_workload_filter()?;
    set_name(c"rf-file")?;
    // Permissions are exactly those asked for.
    umask(Mode::empty());
    // Where relative paths begin.
    chdir(user.home.cstr()).or_else(|_| chdir(c"/"))
}

/// Whether the operation has sent its last answer itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Told {
    Already,
    No,
}

fn operate(order: &File<'_>, reply: &mut Reply, data: Option<OwnedFd>) -> Result<Told, Errno> {
    let (a, b) = (cstr(order.a), cstr(order.b));
    if a.is_empty() && order.op != file_op::CONNECT {
        return Err(Errno::NOENT);
    }
    let flag = order.flags & 1 != 0;
    let permissions = Mode::from_raw_mode(order.permissions & 0o7777);
    let done = |()| Told::No;
    match order.op {
        file_op::READ => open::read(a, reply),
        file_op::WRITE => write::write(a, order.mode, permissions, flag, reply),
        file_op::LIST => basic::list(a, order.number, reply).map(done),
        file_op::STAT => basic::stat(a, flag, reply).map(done),
        file_op::MAKE_DIR => basic::make_dir(a, permissions, flag).map(done),
        file_op::MOVE => basic::rename(a, b, flag).map(done),
        file_op::REMOVE => remove::remove(a, flag, reply).map(done),
        file_op::CHMOD => basic::chmod(a, permissions).map(done),
        file_op::TAR_OUT => tar_out::tar_out(a, data.ok_or(Errno::BADF)?, reply),
        file_op::TAR_IN => tar_in::tar_in(a, data.ok_or(Errno::BADF)?, reply),
        file_op::WATCH => watch::watch(a, flag, reply),
        file_op::CONNECT => connect::connect(order.number, reply),
        _ => Err(Errno::OPNOTSUPP),
    }
}
