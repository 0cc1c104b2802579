#!/usr/bin/env bash
# Runs every test: those of the scripts, then all others with cargo-nextest where it is there,
# else with cargo test.
# Rules that are broken on purpose need a build of their own, of strata-sim and what it tests:
# no binary ever has them.
# Tests of real processes run one at a time; .config/nextest.toml says the same to nextest.
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v python3 >/dev/null; then
    (cd scripts && PYTHONDONTWRITEBYTECODE=1 python3 -m unittest -q test_hot_paths bench_test </dev/null)
else
    echo "no python3: the tests of the scripts are left out" >&2
fi

planted="-p strata-sim --features planted-faults --test planted_faults
    --test planted_fault_stepped_cluster_harness"
cargo test --release --locked --workspace --doc -q </dev/null
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --release --locked $planted </dev/null
    # Cargo may put a build of the binary in place that is as good and older than a test beside
    # it; process tests refuse one that is older than any source.
    cargo nextest run --release --locked --workspace --no-run </dev/null
    touch "${STRATA_BIN:-$CARGO_TARGET_DIR/release/strata}"
    exec cargo nextest run --release --locked --workspace </dev/null
fi
cargo test --release --locked --workspace --exclude strata-tests --lib --bins --tests </dev/null
cargo test --release --locked -p strata-tests -- --test-threads 1 </dev/null
exec cargo test --release --locked $planted </dev/null
