# What there is to do with this tree. Plain make and sh around cargo.

CARGO ?= cargo
# Where cargo puts what it builds.
BUILT = $(or $(CARGO_TARGET_DIR),target)
# Seeds of the simulation in `make test`, and how long `make soak` runs it, in seconds.
SIM_SEEDS ?= 10000
SIM_SECONDS ?= 600
# What `make release` builds; the second one is left out where the toolchain does not have it.
RELEASES = x86_64-unknown-linux-musl aarch64-unknown-linux-musl
# The linker that comes with the toolchain links both, packs relocations (which musl reads since 1.2.4,
# so Rust since 1.93), and keeps equal functions once (not equal data: mimalloc tells its empty heaps apart
# by their addresses). With frame pointers what is to be known for unwinding is a third smaller, and the
# code is no larger. The rounds of SHA-256, for tokens, are a loop.
LEAN_FLAGS = -C linker=rust-lld -C link-self-contained=yes \
	-C link-arg=--pack-dyn-relocs=relr -C link-arg=--icf=all \
	--cfg sha2_backend_soft="compact" $(REMAPPED)
RELEASE_FLAGS = $(LEAN_FLAGS) -C force-frame-pointers=yes
# What does not unwind at all.
SMALL_FLAGS = $(LEAN_FLAGS) -C link-arg=--script=$(CURDIR)/src/no_unwinding.ld
# What `make small` builds: the agent alone, without https, is the smallest that can run a command.
SMALL_FEATURES ?= agent
# Places of panics are named in the binary: without the folders of whoever builds it.
REMAPPED = $(foreach folder,$(wildcard $(or $(CARGO_HOME),$(HOME)/.cargo)/registry/src/*) \
	$(shell rustc --print sysroot)/lib/rustlib/src/rust,--remap-path-prefix=$(folder)/=)
# The C in it is never unwound. With this mimalloc keeps pieces of more than 64 KiB apart, each given back
# when it is free; its usual pages of 4 MiB stay as long as one piece in them is in use, and output is such.
RELEASE_CFLAGS = -fno-asynchronous-unwind-tables -DMI_ENABLE_LARGE_PAGES=0

# How long `make bench` measures each figure, and how long the mixed load of `make soak` lasts, in
# seconds.
BENCH_SECONDS ?= 3
SOAK_SECONDS ?= 3600
# What they measure.
BENCHED = $(BUILT)/benched

.PHONY: help demo test bench bench-peers benched fetched soak soak-simulation release small clean

help:
	@echo 'make demo             a server and three agents on this machine, to look at and to try'
	@echo 'make test             all that CI checks: format, lints, every build, every test'
	@echo 'make bench            measures a release build, BENCH_SECONDS=$(BENCH_SECONDS) a figure; BENCH_ONLY=ping,memory for some'
	@echo 'make bench-peers      the same, then Redis and rq to compare with'
	@echo 'make soak             mixed load on a release build for SOAK_SECONDS=$(SOAK_SECONDS): nothing may grow'
	@echo 'make soak-simulation  the simulation for SIM_SECONDS=$(SIM_SECONDS)'
	@echo 'make release          static binaries in dist/'
	@echo 'make small            without unwinding, SMALL_FEATURES=$(SMALL_FEATURES) of agent,server,cli,db,tls'
	@echo 'make clean            removes what was built'

# A newcomer wants to see it work: a debug build takes half the time of a release build.
demo:
	@$(CARGO) build --locked
	@sh tests/demo.sh $(BUILT)/debug/sidebike

# The lints see each program built alone too, as `--features` promises that it can be. The
# simulation is run twice: with few seeds as what it is, a test like the others, and with many as
# an optimized build, which is what makes thousands of seeds affordable.
test:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --no-default-features --features agent -- -D warnings
	$(CARGO) clippy --locked --no-default-features --features server -- -D warnings
	$(CARGO) clippy --locked --no-default-features --features cli -- -D warnings
	SIM_SEEDS=100 $(CARGO) test --locked
	@if [ -d tests/simulation ]; then \
		set -x; SIM_SEEDS=$(SIM_SEEDS) $(CARGO) test --locked --profile simulation --test simulation -- --nocapture; \
	fi

# Its figures go into src/docs/performance.md; wrk and nginx-light are Debian's packages of these names.
bench: benched
	@BENCH_SECONDS=$(BENCH_SECONDS) $(MEASURE)

bench-peers: benched
	@BENCH_SECONDS=$(BENCH_SECONDS) $(MEASURE) -- peers

soak: benched
	@SOAK_SECONDS=$(SOAK_SECONDS) $(MEASURE) -- soak

MEASURE = SIDEBIKE=$(BENCHED)/sidebike SIDEBIKE_AGENT_ONLY=$(BENCHED)/sidebike-agent \
	$(CARGO) bench --locked --bench bench

# What users run: the static binary of `make release`, and the agent alone; where that cannot be built
# the machine's own kind.
benched: export CC_x86_64_unknown_linux_musl = musl-gcc
benched: export CFLAGS_x86_64_unknown_linux_musl = $(RELEASE_CFLAGS)
benched: fetched
	@mkdir -p $(BENCHED)
	@set -e; target=$(firstword $(RELEASES)); \
		if command -v musl-gcc >/dev/null && rustup target add $$target; then \
			flags='$(RELEASE_FLAGS)'; of="--target $$target"; built=$(BUILT)/$$target; \
			$(MAKE) small; cp dist/sidebike-small-x86_64-linux $(BENCHED)/sidebike-agent; \
		else \
			echo "no $$target here: measures a build for this machine"; flags=; of=; built=$(BUILT); \
			$(CARGO) build --locked --profile small --bin sidebike --no-default-features --features agent; \
			cp $$built/small/sidebike $(BENCHED)/sidebike-agent; \
		fi; \
		set -x; \
		RUSTFLAGS="$$flags" $(CARGO) build --locked --release $$of --bin sidebike; \
		cp $$built/release/sidebike $(BENCHED)/sidebike

# For containers where half a megabyte matters; what it costs is said with the profile in Cargo.toml.
small: export CC_x86_64_unknown_linux_musl = musl-gcc
small: export CFLAGS_x86_64_unknown_linux_musl = $(RELEASE_CFLAGS)
small: fetched
	@mkdir -p dist
	rustup target add $(firstword $(RELEASES))
	RUSTFLAGS='$(SMALL_FLAGS)' $(CARGO) build --locked --profile small --target $(firstword $(RELEASES)) \
		--bin sidebike --no-default-features --features $(SMALL_FEATURES)
	cp $(BUILT)/$(firstword $(RELEASES))/small/sidebike dist/sidebike-small-x86_64-linux

# The sources, so that it is known where they are.
fetched:
	$(CARGO) fetch --locked --target $(firstword $(RELEASES))

# Faults that ten thousand seeds do not show.
soak-simulation:
	SIM_SECONDS=$(SIM_SECONDS) $(CARGO) test --locked --profile simulation --test simulation -- --nocapture

# One file to copy into any container. The targets are added here, so that a fresh clone is enough;
# the C in the TLS library wants a C compiler for each (Debian: musl-tools, gcc-aarch64-linux-gnu).
release: export CC_x86_64_unknown_linux_musl = musl-gcc
release: export CC_aarch64_unknown_linux_musl = aarch64-linux-gnu-gcc
release: export CFLAGS_x86_64_unknown_linux_musl = $(RELEASE_CFLAGS)
release: export CFLAGS_aarch64_unknown_linux_musl = $(RELEASE_CFLAGS)
release: fetched
	@rm -rf dist && mkdir dist
	@set -e; for target in $(RELEASES); do \
		case $$target in x86_64*) cc=musl-gcc;; *) cc=aarch64-linux-gnu-gcc;; esac; \
		if ! command -v $$cc >/dev/null; then \
			echo "left out $$target: there is no $$cc"; \
			[ $$target != $(firstword $(RELEASES)) ] || exit 1; continue; \
		fi; \
		if ! rustup target add $$target && [ $$target != $(firstword $(RELEASES)) ]; then \
			echo "left out: this toolchain has no $$target"; continue; \
		fi; \
		if ! ( set -x; RUSTFLAGS='$(RELEASE_FLAGS)' $(CARGO) build --locked --release --target $$target ); then \
			[ $$target != $(firstword $(RELEASES)) ] || exit 1; \
			echo "left out $$target: it cannot be built here"; continue; \
		fi; \
		cp $(BUILT)/$$target/release/sidebike dist/sidebike-$${target%%-*}-linux; \
	done
	@cd dist && sha256sum sidebike-* > SHA256SUMS && cat SHA256SUMS && wc -c sidebike-*

clean:
	$(CARGO) clean
	rm -rf dist
