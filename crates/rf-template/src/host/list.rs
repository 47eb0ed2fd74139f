//! The `host` template as data: what is made, what is copied, and why. Nothing that is not on these lists gets in.

/// A file or tree of the host that is copied, with the reason. Only what every user of the host may read is taken, so
/// an entry can never bring in a secret that the host itself keeps from its users.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    /// Relative to the host's root. A trailing `*` stands for any ending of the last part.
    pub path: &'static str,
    /// Why a sandbox needs it.
    pub why: &'static str,
}

const fn copied(path: &'static str, why: &'static str) -> Copied {
    Copied { path, why }
}

/// What is copied from the host. Absent ones are left out: every distribution has its own part of the list.
pub const COPIED: &[Copied] = &[
    copied("etc/ld.so.cache", "the dynamic linker finds libraries outside its two default directories by it"),
    copied("etc/ld.so.conf", "what `ldconfig` makes the cache from when a package with a library is installed"),
    copied("etc/ld.so.conf.d", "as etc/ld.so.conf"),
    copied("etc/alternatives", "/usr/bin/awk, cc, java, vi and others are links into it (update-alternatives(1))"),
    copied("etc/java*", "the runtime below /usr/lib/jvm has its configuration here and does not start without"),
    copied("etc/maven", "/usr/share/maven/conf is a link to it"),
    copied("etc/perl", "/usr/lib/*/perl-base/... are links to its Net/libnet.cfg"),
    copied("etc/python3", "Debian's python3 helpers read debian_config for byte-compilation"),
    copied("etc/python3.*", "/usr/lib/python3.*/sitecustomize.py is a link to it"),
    copied("etc/fonts", "fontconfig finds no font without it"),
    copied("etc/groff", "man and troff read their device tables from it"),
    copied("etc/vim", "/usr/share/vim/vimrc is a link to it"),
    copied("etc/terminfo", "terminal descriptions that the host's packages put beside /usr/share/terminfo"),
    copied("etc/inputrc", "key bindings of readline"),
    copied("etc/magic", "file(1)'s local additions"),
    copied("etc/magic.mime", "as etc/magic"),
    copied("etc/mime.types", "suffix to media type, read by Python's mimetypes and others"),
    copied("etc/protocols", "getprotobyname(3)"),
    copied("etc/services", "getservbyname(3)"),
    copied("etc/rpc", "getrpcbyname(3)"),
    copied("etc/ethertypes", "names of protocols"),
    copied("etc/gai.conf", "order of addresses in getaddrinfo(3)"),
    copied("etc/locale.alias", "/usr/share/locale/locale.alias is a link to it"),
    copied("etc/debian_version", "the distribution's version as some installers read it"),
    copied("etc/lsb-release", "as debian_version, on Ubuntu"),
    copied("etc/redhat-release", "as debian_version, on Fedora and its kin"),
    copied("etc/alpine-release", "as debian_version, on Alpine"),
    copied("etc/arch-release", "as debian_version, on Arch"),
    copied("etc/ssl/openssl.cnf", "/usr/lib/ssl/openssl.cnf is a link to it"),
    copied("etc/pki/tls/openssl.cnf", "as etc/ssl/openssl.cnf, on Fedora and its kin"),
    copied("etc/crypto-policies", "openssl.cnf includes it on Fedora and its kin"),
    copied("etc/ca-certificates.conf", "which public roots update-ca-certificates(8) takes"),
    copied("etc/login.defs", "useradd and groupadd, which packages' scripts call, read their ranges here"),
    copied("etc/adduser.conf", "adduser, which packages' scripts call, as login.defs"),
    copied("etc/deluser.conf", "as adduser.conf"),
    copied("etc/pam.conf", "`su` and `runuser` of packages' scripts refuse to work without PAM's configuration"),
    copied("etc/pam.d", "as etc/pam.conf"),
    copied("etc/security/pam_env.conf", "named by pam.d; the module fails without"),
    copied("etc/security/limits.conf", "named by pam.d; the module fails without"),
    copied("etc/debconf.conf", "packages' scripts ask their questions through debconf, which needs it"),
    copied("etc/ucf.conf", "packages' scripts keep configuration through ucf, which needs it"),
    copied("etc/dpkg", "dpkg's own configuration and the names of the origins"),
    copied("etc/apt/apt.conf.d/01autoremove", "which packages apt never removes by itself"),
    copied("etc/apt/apt.conf.d/70debconf", "asks packages' questions before they are unpacked"),
    copied("etc/apt/trusted.gpg.d", "public keys of the distribution's archive"),
    copied("etc/xml", "catalogs of XML, by which documentation tools find their schemas offline"),
    copied("etc/sgml", "as etc/xml, for SGML"),
    copied("var/lib/dpkg", "apt and dpkg must know what /usr has to install anything more; facts of public packages"),
    copied("var/lib/pam", "pam-auth-update(8), called by packages' scripts, compares with it"),
    copied("var/lib/ucf", "as etc/ucf.conf"),
    copied("var/lib/sgml-base", "etc/sgml/catalog is a link to it"),
    copied("var/lib/xml-core", "as sgml-base"),
    copied("var/lib/rpm", "as var/lib/dpkg, for rpm"),
    copied("var/lib/pacman/local", "as var/lib/dpkg, for pacman"),
];

/// What is left out of a copied tree, by path from the root.
pub(super) const NOT_COPIED: &[&str] = &[
    // Large, and rebuilt by dselect alone.
    "var/lib/dpkg/available",
    "var/lib/dpkg/available-old",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/statoverride-old",
    // Locks are made when they are taken.
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/triggers/Lock",
    // Work that the host's own dpkg had under way.
    "var/lib/dpkg/updates",
    // Written anew: dpkg refuses to work when it names a user or group that is not there.
    "var/lib/dpkg/statoverride",
    // An administrator's own keys may be kept there; they are none of the sandbox's.
    "etc/java-17-openjdk/management/jmxremote.password",
];

/// Directories that are made, with mode. All are root's but those of [`USER_DIRS`].
pub(super) const DIRS: &[(&str, u32)] = &[
    ("usr", 0o755),
    ("proc", 0o555),
    ("sys", 0o555),
    ("sys/devices", 0o555),
    ("sys/devices/system", 0o555),
    ("sys/devices/system/cpu", 0o555),
    ("sys/fs", 0o555),
    ("sys/fs/cgroup", 0o555),
    ("dev", 0o755),
    ("tmp", 0o1777),
    ("run", 0o755),
    ("run/lock", 0o1777),
    ("home", 0o755),
    ("root", 0o700),
    ("opt", 0o755),
    ("srv", 0o755),
    ("mnt", 0o755),
    ("media", 0o755),
    ("boot", 0o755),
    ("etc", 0o755),
    ("etc/apt", 0o755),
    ("etc/apt/apt.conf.d", 0o755),
    ("etc/apt/auth.conf.d", 0o755),
    ("etc/apt/keyrings", 0o755),
    ("etc/apt/preferences.d", 0o755),
    ("etc/apt/sources.list.d", 0o755),
    ("etc/apt/trusted.gpg.d", 0o755),
    ("etc/cron.d", 0o755),
    ("etc/cron.daily", 0o755),
    ("etc/default", 0o755),
    ("etc/init.d", 0o755),
    ("etc/ld.so.conf.d", 0o755),
    ("etc/logrotate.d", 0o755),
    ("etc/opt", 0o755),
    ("etc/profile.d", 0o755),
    ("etc/rc0.d", 0o755),
    ("etc/rc1.d", 0o755),
    ("etc/rc2.d", 0o755),
    ("etc/rc3.d", 0o755),
    ("etc/rc4.d", 0o755),
    ("etc/rc5.d", 0o755),
    ("etc/rc6.d", 0o755),
    ("etc/rcS.d", 0o755),
    ("etc/security", 0o755),
    ("etc/security/limits.d", 0o755),
    ("etc/skel", 0o755),
    ("etc/ssl", 0o755),
    ("etc/ssl/certs", 0o755),
    ("etc/ssl/private", 0o700),
    ("etc/systemd", 0o755),
    ("etc/systemd/system", 0o755),
    ("var", 0o755),
    ("var/backups", 0o755),
    ("var/cache", 0o755),
    ("var/cache/apt", 0o755),
    ("var/cache/apt/archives", 0o755),
    ("var/cache/apt/archives/partial", 0o700),
    ("var/cache/debconf", 0o755),
    ("var/cache/fontconfig", 0o755),
    ("var/cache/ldconfig", 0o700),
    ("var/cache/man", 0o755),
    ("var/lib", 0o755),
    ("var/lib/apt", 0o755),
    ("var/lib/apt/lists", 0o755),
    ("var/lib/apt/lists/partial", 0o700),
    ("var/lib/misc", 0o755),
    ("var/lib/systemd", 0o755),
    ("var/local", 0o755),
    ("var/log", 0o755),
    ("var/log/apt", 0o755),
    ("var/mail", 0o755),
    ("var/opt", 0o755),
    ("var/spool", 0o755),
    ("var/tmp", 0o1777),
];

/// Made only where dpkg is: an empty one on another distribution would call it Debian.
pub(super) const DPKG_DIRS: &[(&str, u32)] = &[
    ("var/lib/dpkg", 0o755),
    ("var/lib/dpkg/info", 0o755),
    ("var/lib/dpkg/parts", 0o755),
    ("var/lib/dpkg/triggers", 0o755),
    ("var/lib/dpkg/updates", 0o755),
];

/// Directories of the default user.
pub(super) const USER_DIRS: &[(&str, u32)] = &[("home/user", 0o755), ("workspace", 0o755)];

/// The users: name, id, group, home, whether with a shell. Debian's fixed ids (base-passwd), and the default user.
pub(super) const USERS: &[(&str, u32, u32, &str, bool)] = &[
    ("root", 0, 0, "/root", true),
    ("daemon", 1, 1, "/usr/sbin", false),
    ("bin", 2, 2, "/bin", false),
    ("sys", 3, 3, "/dev", false),
    ("sync", 4, 65534, "/bin", false),
    ("games", 5, 60, "/usr/games", false),
    ("man", 6, 12, "/var/cache/man", false),
    ("lp", 7, 7, "/var/spool/lpd", false),
    ("mail", 8, 8, "/var/mail", false),
    ("news", 9, 9, "/var/spool/news", false),
    ("uucp", 10, 10, "/var/spool/uucp", false),
    ("proxy", 13, 13, "/bin", false),
    ("www-data", 33, 33, "/var/www", false),
    ("backup", 34, 34, "/var/backups", false),
    ("list", 38, 38, "/var/list", false),
    ("irc", 39, 39, "/run/ircd", false),
    ("_apt", 42, 65534, "/nonexistent", false),
    ("nobody", 65534, 65534, "/nonexistent", false),
    ("user", super::USER_ID, super::USER_ID, "/home/user", true),
];

/// The groups: Debian's fixed ids (base-passwd), and the default user's.
pub(super) const GROUPS: &[(&str, u32)] = &[
    ("root", 0),
    ("daemon", 1),
    ("bin", 2),
    ("sys", 3),
    ("adm", 4),
    ("tty", 5),
    ("disk", 6),
    ("lp", 7),
    ("mail", 8),
    ("news", 9),
    ("uucp", 10),
    ("man", 12),
    ("proxy", 13),
    ("kmem", 15),
    ("dialout", 20),
    ("fax", 21),
    ("voice", 22),
    ("cdrom", 24),
    ("floppy", 25),
    ("tape", 26),
    ("sudo", 27),
    ("audio", 29),
    ("dip", 30),
    ("www-data", 33),
    ("backup", 34),
    ("operator", 37),
    ("list", 38),
    ("irc", 39),
    ("src", 40),
    ("shadow", 42),
    ("utmp", 43),
    ("video", 44),
    ("sasl", 45),
    ("plugdev", 46),
    ("staff", 50),
    ("games", 60),
    ("users", 100),
    ("nogroup", 65534),
    ("user", super::USER_ID),
];

/// `/etc/profile`: the search path and the prompt, for login shells.
pub(super) const PROFILE: &str = "\
# Login shells of a sandbox.
export PATH=\"${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}\"
if [ \"${PS1-}\" ]; then
  if [ \"$(id -u)\" -eq 0 ]; then PS1='# '; else PS1='$ '; fi
  if [ \"${BASH-}\" ] && [ -f /etc/bash.bashrc ]; then . /etc/bash.bashrc; fi
fi
for file in /etc/profile.d/*.sh; do
  if [ -r \"$file\" ]; then . \"$file\"; fi
done
unset file
# The home begins empty: a .bashrc alone is meant for login shells as well.
if [ \"${BASH_VERSION-}\" ] && [ -f ~/.bashrc ] && ! [ -e ~/.profile ] && ! [ -e ~/.bash_profile ] && ! [ -e ~/.bash_login ]; then
  . ~/.bashrc
fi
";

/// `/etc/bash.bashrc`: the prompt of an interactive bash.
pub(super) const BASHRC: &str = "\
# Interactive shells of a sandbox.
case $- in *i*) ;; *) return ;; esac
shopt -s checkwinsize
PS1='\\u@\\h:\\w\\$ '
";

/// `/etc/nsswitch.conf`: files first and only; no daemon is asked.
pub(super) const NSSWITCH: &str = "\
passwd: files
group: files
shadow: files
gshadow: files
hosts: files dns
networks: files
protocols: files
services: files
ethers: files
rpc: files
netgroup: files
";

/// `/etc/hosts`.
pub(super) const HOSTS: &str = "\
127.0.0.1 localhost
::1 localhost ip6-localhost ip6-loopback
127.0.1.1 sandbox
";

/// apt must not give up its rights to a user of its own: within a sandbox `root` is no more than the sandbox.
pub(super) const APT_CONF: &str = "\
APT::Sandbox::User \"root\";
Acquire::Languages \"none\";
";
