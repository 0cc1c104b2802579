# StrataKV. `make run` and `make test` do all the set-up on a fresh Debian machine.
# One environment for all targets, so that going from one to another compiles nothing twice.

CACHE ?= $(HOME)/.cache/strata
export CARGO_TARGET_DIR ?= $(CACHE)/target
export ROCKSDB_LIB_DIR ?= $(CACHE)/rocksdb
export ROCKSDB_STATIC ?= 1
export STRATA_BIN ?= $(CARGO_TARGET_DIR)/release/strata
export PATH := $(HOME)/.cargo/bin:$(PATH)
SHELL := /bin/bash

# Arguments for `strata up`, for example: make run UP="--nodes 1 --port 4000"
UP ?=

# Length of each run of `make bench`, QUICK=1 for a short one that writes nothing, and which parts
# to measure, for example: make bench ONLY=batch,scan
SECONDS ?= 10
QUICK ?=
ONLY ?=

# UPDATE=1: `make bench-quick` and `make hot-paths` write docs/benchmarks.json.
UPDATE ?=

# The tests of faults that are planted on purpose, in a build of their own.
PLANTED := -p strata-sim --features planted-faults --test planted_faults \
	--test planted_fault_stepped_cluster_harness

# Seeds of `make sim`.
SEEDS ?= 0..2000

.PHONY: help setup run build test list-tests lint bench bench-quick hot-paths sim planted

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

setup: ## install what is missing; compile RocksDB once
	@scripts/setup.sh

build: setup ## build the strata binary
	cargo build --release --locked --workspace --bins
# Process tests refuse a binary older than its sources. Cargo has just found it up to date, also
# where a file was changed that does not go into it, such as a test beside the code.
	@touch $(CARGO_TARGET_DIR)/release/strata

run: build ## build and run a three-node cluster until Ctrl-C
	$(STRATA_BIN) up $(UP)

test: build ## run all tests
	scripts/test.sh

list-tests: setup ## list every test
	@cargo test --workspace --release --locked -q -- --list
	@cargo test $(PLANTED) --release --locked -q -- --list

lint: setup ## formatting, clippy and docs, warnings denied
	cargo fmt --all -- --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	cargo clippy $(PLANTED) -p strata-raft -p strata-storage -p strata-raftstore --lib --release --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps -q

planted: setup ## how many seeds find each fault that is planted on purpose
	cargo run --release --locked -p strata-sim --features planted-faults --example planted_table

bench: build ## measure StrataKV and etcd side by side; SECONDS=10 a run, QUICK=1 writes nothing
	scripts/bench.py --seconds $(SECONDS) $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

bench-quick: build ## the key ratios, and what hot-paths does; UPDATE=1 writes docs/benchmarks.json
	@scripts/bench_quick.py $(if $(UPDATE),--update)

hot-paths: build ## count instructions of the hot paths; 10 % more than docs/benchmarks.json fails
	@if command -v python3 >/dev/null; then scripts/hot_paths.py $(if $(UPDATE),--update); \
	else echo 'hot paths: python3 is missing, so no instructions are counted'; fi

sim: build ## simulate clusters under faults, for example: make sim SEEDS=0..10000
	$(STRATA_BIN) sim --seeds $(SEEDS)
	@cargo run --release --locked -q -p strata-sim --example checker_speed
	@$(MAKE) --no-print-directory planted
