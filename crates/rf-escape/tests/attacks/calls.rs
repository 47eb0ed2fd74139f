//! Held by the call list. The control shows that the kernel itself has the call: outside it answers something else.

use super::{Attack, Control, Control::*, root, user};

/// Kernels are built without one or the other of these (modules, kexec, cookies): then the same probe with a call that
/// is on the list (getpid).
const KNOWN: Control = HostOr { lacks: &["ENOSYS"], inside: &["syscall", "39"] };

/// Kernels are built without huge pages too.
const HUGE: Control = HostOr { lacks: &["ENOSYS", "EINVAL"], inside: &["syscall", "39"] };

const NO: &[&str] = &["ENOSYS", "EPERM"];

pub(crate) const CALLS: &[Attack] = &[
    root("load a BPF program", &["syscall", "321", "0", "0", "0"], NO, Host),
    root("open a performance counter", &["syscall", "298", "0", "0", "-1", "-1", "0"], NO, Host),
    user("handle page faults in user mode", &["syscall", "323", "0"], NO, Host),
    user("set up io_uring", &["syscall", "425", "1", "0"], NO, Host),
    user("enter io_uring", &["syscall", "426", "-1", "0", "0", "0", "0", "0"], NO, Host),
    user("register with io_uring", &["syscall", "427", "-1", "0", "0", "0"], NO, Host),
    user("add a key", &["syscall", "248", "0", "0", "0", "0", "0"], NO, Host),
    user("request a key", &["syscall", "249", "0", "0", "0", "0"], NO, Host),
    user("use a keyring", &["syscall", "250", "0", "-3", "0", "0", "0"], NO, Host),
    root("load a module", &["syscall", "175", "0", "0", "0"], NO, KNOWN),
    root("load a module from a file", &["syscall", "313", "-1", "0", "0"], NO, KNOWN),
    root("load another kernel", &["syscall", "246", "0", "17", "0", "0"], NO, KNOWN),
    root("open a file by its handle", &["syscall", "304", "-1", "0", "0"], NO, Host),
    root("get a file's handle", &["syscall", "303", "-1", "0", "0", "0", "0"], NO, Host),
    root("watch a whole file system", &["syscall", "300", "0", "0"], NO, Host),
    root("account for processes", &["syscall", "163", "1"], NO, Host),
    root("swap on a file", &["syscall", "167", "0", "0"], NO, Host),
    root("set a quota", &["syscall", "179", "-1", "0", "0", "0"], NO, Host),
    root("read the kernel's log", &["syscall", "103", "10", "0", "0"], NO, Host),
    user("set up asynchronous I/O, whose pool is the host's", &["syscall", "206", "1", "0"], NO, Host),
    user("compare kernel objects", &["syscall", "312", "0", "0", "0", "0", "0"], NO, Host),
    user("move pages of a process", &["syscall", "279", "0", "1", "0", "0", "0", "0"], NO, Host),
    user("take a descriptor of a process", &["syscall", "438", "-1", "0", "0"], NO, Host),
    user("change the local descriptor table", &["syscall", "154", "0", "0", "0"], NO, Host),
    user("look a directory entry up by cookie", &["syscall", "212", "0", "0", "0"], NO, KNOWN),
    user("call the kernel by the 32-bit entry", &["compat_entry"], &["SIGNAL 31"], Host),
    user("call the kernel by the x32 entry", &["x32_entry"], &["SIGNAL 31"], Host),
    user("hold up whoever opens a file, by a lease", &["lease"], &["EPERM"], Host),
    user("type into a terminal", &["terminal_injection"], &["EPERM"], Host),
    user("give a terminal another line discipline", &["line_discipline"], &["EPERM"], Host),
    user("take huge pages of the host", &["huge_file"], &["ENOMEM"], HUGE),
    user("have the host's program take a dump", &["dump_limit"], &["EPERM"], Host),
    user("make a child that is nobody's below its maker", &["sibling"], &["EPERM"], Host),
    user("lay on a filter, of whose code the host has room for so much", &["syscall", "317", "1", "0", "0"], NO, Host),
    user("change the personality", &["syscall", "135", "0x0040000"], &["EPERM"], Host),
];
