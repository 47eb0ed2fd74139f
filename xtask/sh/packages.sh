# Installs missing Debian packages; sourced by ./run and ./test. Nothing is touched that is there already.
# shellcheck shell=bash

# Prints what it is about to do, so that nothing is installed in silence.
say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }

# as_root COMMAND...: runs it as root, through sudo where that works without asking or at a terminal.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
        say "sudo $*"
        sudo "$@"
    else
        return 126
    fi
}

# need PROBE=PACKAGE...: installs each PACKAGE whose PROBE is missing. A probe is a program's name, or a file's path.
need() {
    local missing=() pair probe package
    for pair in "$@"; do
        probe=${pair%%=*} package=${pair#*=}
        case $probe in
            /*) [ -e "$probe" ] || missing+=("$package") ;;
            *) command -v "$probe" >/dev/null || [ -x "/usr/sbin/$probe" ] || [ -x "/sbin/$probe" ] || missing+=("$package") ;;
        esac
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if ! command -v apt-get >/dev/null; then
        say "missing: ${missing[*]}. This is no Debian or Ubuntu: please install what these packages hold, then try again."
        return 1
    fi
    say "installing: ${missing[*]}"
    # Without the hundred lines of dpkg's progress; what goes wrong is said on standard error.
    if as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq >/dev/null &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; then
        return 0
    fi
    say "could not install. Please run this as root, then try again:"
    say "    apt-get update && apt-get install -y ${missing[*]}"
    return 1
}

# need_rust: cargo on the PATH, or in its usual place.
need_rust() {
    command -v cargo >/dev/null || PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    export PATH
    command -v cargo >/dev/null && return 0
    say "there is no Rust toolchain: install Rust $1 or newer (https://rustup.rs), then try again"
    return 1
}
