# Everything is built once, by one profile (--release) into one folder outside of the checkout:
# RocksDB alone compiles for 15 minutes.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/tidegate/target
# Where rustup puts cargo, for shells that were opened before.
export PATH := $(PATH):$(HOME)/.cargo/bin

CARGO_FLAGS := --release --locked
BENCH_ARGS ?=
FLOOR_ARGS ?=

.PHONY: help demo build test simulate planted chaos settled markers lint bench bench-restore fuzz clean-data

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

demo: ## install what is missing, build, show the 123/234 story and a live load
	@scripts/install-deps.sh demo
	cargo run $(CARGO_FLAGS) -- demo

build: ## the binary, in $CARGO_TARGET_DIR/release/tidegate
	@scripts/install-deps.sh demo
	cargo build $(CARGO_FLAGS)

test: ## install what is missing (Apache Kafka too), run every test
	@scripts/install-deps.sh test
	cargo test $(CARGO_FLAGS)

simulate: ## seeded faults: SEEDS=10000 of them, from SEED=1 on, of one KIND=moves or all
	@scripts/install-deps.sh demo
	SEEDS=$(SEEDS) SEED=$(SEED) KIND=$(KIND) LINES=$(LINES) cargo test $(CARGO_FLAGS) --test sim simulate -- --ignored --nocapture

planted: ## plant each bug of src/planted.rs and show which seed of the simulator notices; BUG=OldOutcome for one
	@scripts/install-deps.sh demo
	cargo run $(CARGO_FLAGS) --features planted --example planted -- $(BUG)

chaos: ## kill and freeze instances on a real Kafka, CHAOS=kills,freezes,restarts of the broker,seed
	@scripts/install-deps.sh test
	TIDEGATE_CHAOS=$(CHAOS) cargo test $(CARGO_FLAGS) --test kafka -- --ignored --nocapture chaos::long

settled: ## wait for cascades on a real Kafka while instances die, SETTLED=cascades,seed
	@scripts/install-deps.sh test
	TIDEGATE_SETTLED=$(SETTLED) cargo test $(CARGO_FLAGS) --test kafka -- --ignored --nocapture settled::long

markers: ## add and remove keys on a real Kafka, MARKERS=keys, and see what is left
	@scripts/install-deps.sh test
	TIDEGATE_MARKERS=$(MARKERS) cargo test $(CARGO_FLAGS) --test kafka -- --ignored --nocapture markers::long

lint: ## formatting and clippy, warnings are errors
	@scripts/install-deps.sh lint
	cargo fmt --check
	cargo clippy $(CARGO_FLAGS) --all-targets -- -D warnings
	cargo clippy $(CARGO_FLAGS) --features planted --example planted -- -D warnings

bench: ## the built-in load, then the floor program on a Kafka of its own
	@scripts/install-deps.sh test
	cargo run $(CARGO_FLAGS) -- bench $(BENCH_ARGS)
	cargo bench --locked --bench floor --profile release --no-run
	benches/with-kafka.sh cargo bench --locked --bench floor --profile release -- --bootstrap @BOOTSTRAP@ $(FLOOR_ARGS)

bench-restore: ## how long an instance without local state takes to have it, on a Kafka of its own
	@scripts/install-deps.sh test
	cargo build $(CARGO_FLAGS)
	for keys in 3000000 9000000; do \
	    benches/with-kafka.sh $(CARGO_TARGET_DIR)/release/tidegate bench --restore --keys $$keys --payload 100 \
	        -b @BOOTSTRAP@ || exit 1; done

fuzz: ## fuzz everything that reads bytes from outside, FUZZ_SECONDS=120 for each target
	@scripts/install-deps.sh demo
	scripts/fuzz.sh

clean-data: ## forget the embedded log and the state below ./tidegate-data
	rm -rf tidegate-data
