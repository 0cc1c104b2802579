#!/usr/bin/env bash
# Fetches Debian's etcd server for `make bench` and prints where the binary is.
#
# The package is downloaded and unpacked into $HOME/.cache/strata/etcd, never installed: no
# service is set up or started. Does nothing where it already is. Only `make bench` calls it.
set -euo pipefail

cache=${STRATA_CACHE:-$HOME/.cache/strata}
home=$cache/etcd
binary=$home/usr/bin/etcd

say() { printf 'setup-etcd: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

if ! "$binary" --version >/dev/null 2>&1; then
    command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
        fail "no apt-get and dpkg here; unpack an etcd server so that $binary runs"
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/etcd-work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    fetch() { (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download etcd-server </dev/null 2>"$work/log"); }
    say "fetching Debian's etcd-server"
    if ! fetch; then
        # The lists may be missing or too old to name a file that is still there.
        [ "$(id -u)" = 0 ] || fail "$(tail -n 1 "$work/log"); run apt-get update as root, and try again"
        apt-get -qq update </dev/null >/dev/null
        fetch || fail "$(tail -n 1 "$work/log"); etcd-server cannot be downloaded"
    fi
    mkdir "$work/unpacked"
    dpkg -x "$work"/etcd-server_*.deb "$work/unpacked"
    "$work/unpacked/usr/bin/etcd" --version >/dev/null || fail "the unpacked etcd does not run on this machine"
    # Moved as a whole: a run that is cut off leaves nothing that looks complete.
    rm -rf "$home"
    mv "$work/unpacked" "$home"
fi
printf '%s\n' "$binary"
