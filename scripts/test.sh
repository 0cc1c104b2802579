#!/usr/bin/env bash
# Runs every test: with cargo-nextest where it is there, else with cargo test.
# Tests of real processes run one at a time; .config/nextest.toml says the same to nextest.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo test --release --locked --workspace --doc -q </dev/null
if cargo nextest --version >/dev/null 2>&1; then
    exec cargo nextest run --release --locked --workspace </dev/null
fi
cargo test --release --locked --workspace --exclude strata-tests --lib --bins --tests </dev/null
exec cargo test --release --locked -p strata-tests -- --test-threads 1 </dev/null
