#!/usr/bin/env bash
# Brings a Debian machine to where StrataKV builds, and does nothing where it already is.
#
#   1. system packages: a C and C++ compiler, make, git; libclang (for RocksDB's bindings);
#      pkg-config and OpenSSL's headers (the published TiKV client of the tests links it);
#      what can be done without: iproute2 (tests put nodes into network namespaces),
#      valgrind and python3 (which count the instructions of the hot paths)
#   2. a Rust toolchain, checked only
#   3. RocksDB, compiled once (about 12 minutes on two cores) and kept as
#      $HOME/.cache/strata/rocksdb/librocksdb.a, which every later build links
#
# Safe to run again at any time, also when an earlier run was cut off.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${STRATA_CACHE:-$HOME/.cache/strata}
rust_needed=1.88

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# 1. System packages ---------------------------------------------------------
missing=()
command -v gcc >/dev/null || missing+=(gcc)
command -v g++ >/dev/null || missing+=(g++)
command -v make >/dev/null || missing+=(make)
command -v git >/dev/null || missing+=(git)
# Not libclang-cpp.so, the C++ interface, which other packages bring along without libclang.
found_libclang() {
    compgen -G '/usr/lib/llvm-*/lib/libclang.so*' || compgen -G '/usr/lib/llvm-*/lib/libclang-[0-9]*.so*' ||
        compgen -G '/usr/lib/*/libclang.so*' || compgen -G '/usr/lib/*/libclang-[0-9]*.so*'
}
found_libclang >/dev/null || missing+=(libclang-dev)
command -v pkg-config >/dev/null || missing+=(pkg-config)
ls /usr/include/openssl/ssl.h >/dev/null 2>&1 || missing+=(libssl-dev)
# Without iproute2 the same tests cut connections with proxies, without the others no
# instructions are counted, so neither is a reason to stop.
wanted=()
[ -x /usr/sbin/ip ] || command -v ip >/dev/null || wanted+=(iproute2)
command -v valgrind >/dev/null || wanted+=(valgrind)
command -v python3 >/dev/null || wanted+=(python3)
if [ "$(id -u)" = 0 ]; then
    as_root=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo)
elif [ ${#missing[@]} -gt 0 ]; then
    fail "please install these packages and run again: apt-get install ${missing[*]}"
else
    [ ${#wanted[@]} -eq 0 ] || say "missing, and done without: ${wanted[*]}"
    wanted=()
fi
if [ ${#missing[@]} -gt 0 ] || { [ ${#wanted[@]} -gt 0 ] && command -v apt-get >/dev/null; }; then
    command -v apt-get >/dev/null || fail "no apt-get here; please install: ${missing[*]}"
    say "installing ${missing[*]} ${wanted[*]}"
    "${as_root[@]}" apt-get update -qq </dev/null || [ ${#missing[@]} -eq 0 ]
    if [ ${#missing[@]} -gt 0 ]; then
        DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq "${missing[@]}" </dev/null >/dev/null
    fi
    if [ ${#wanted[@]} -gt 0 ]; then
        DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq "${wanted[@]}" </dev/null >/dev/null ||
            say "could not install ${wanted[*]}; going on without"
    fi
fi

# 2. Rust --------------------------------------------------------------------
[ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
command -v cargo >/dev/null ||
    fail "no Rust toolchain; install Rust $rust_needed or newer with rustup, then run again"
have=$(rustc --version | cut -d' ' -f2)
oldest=$(printf '%s\n%s\n' "$rust_needed" "$have" | sort -V | head -n 1)
[ "$oldest" = "$rust_needed" ] ||
    fail "Rust $have is older than $rust_needed; run: rustup update stable"

# 3. RocksDB -----------------------------------------------------------------
# Named by the version in Cargo.lock: bindings and library must come from one source.
version=$(grep -A1 '^name = "librocksdb-sys"$' Cargo.lock | sed -n 's/^version = "\(.*\)"$/\1/p')
[ -n "$version" ] || fail "Cargo.lock names no librocksdb-sys"
library=$cache/rocksdb
build=$version
flags=
if [ "$(uname -m)" = x86_64 ]; then
    # Processors since 2010. Without these RocksDB computes its checksums, of all that it writes
    # and reads, by tables: 3 to 5 % of a node's CPU time for writes.
    build="$version sse4.2"
    flags='-Ctarget-feature=+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+pclmulqdq'
fi
if [ ! -f "$library/librocksdb.a" ] || [ "$(cat "$library/VERSION" 2>/dev/null)" != "$build" ]; then
    say "compiling RocksDB ($build), once; this takes about 12 minutes on two cores"
    mkdir -p "$library"
    env -u ROCKSDB_LIB_DIR -u ROCKSDB_STATIC -u CARGO_TARGET_DIR RUSTFLAGS="$flags" \
        cargo build --release --locked -p librocksdb-sys --target-dir "$cache/rocksdb-build" </dev/null
    built=$(find "$cache/rocksdb-build/release/build" -path '*/librocksdb-sys-*/out/librocksdb.a' -printf '%T@ %p\n' |
        sort -rn | head -n 1 | cut -d' ' -f2-)
    [ -n "$built" ] || fail "RocksDB was compiled, but librocksdb.a is not where it is expected"
    # The version is written last: a run that was cut off before it starts over.
    rm -f "$library/VERSION"
    cp "$built" "$library/librocksdb.a"
    # What linked an earlier library would keep it: cargo does not look at the library itself.
    target=${CARGO_TARGET_DIR:-target}
    [ ! -d "$target/release" ] || cargo clean --release --locked -q -p librocksdb-sys --target-dir "$target"
    printf '%s\n' "$build" >"$library/VERSION"
    rm -rf "$cache/rocksdb-build"
fi
