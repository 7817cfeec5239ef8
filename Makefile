# The tasks of development; each is a few calls of cargo.

CARGO ?= cargo
# Where cargo puts what it builds.
BUILT = $(or $(CARGO_TARGET_DIR),target)
# How many executables of tests run at a time.
TEST_LANES ?= 2
# Seeds of the simulation in `make test`, and how long `make soak-simulation` runs it, in seconds.
SIM_SEEDS ?= 500
SIM_SECONDS ?= 600
# How many agents `make soak-undo` kills.
KILLS ?= 500
# The targets of `make release`; the second is left out where its compiler is missing.
RELEASES = x86_64-unknown-linux-musl aarch64-unknown-linux-musl
# What `make small` builds: the agent alone, without https, is the smallest program that can run a command.
SMALL_FEATURES ?= agent

# The commit of the version before, and its binary: agents and servers of both versions must work together.
PREVIOUS_COMMIT = 9b7469d
PREVIOUS = $(CURDIR)/target/previous/sidebike

# Built with what it uses only.
SIMULATION = $(CARGO) test --locked --profile simulation --no-default-features --features server,db,agent \
	--test simulation -- --nocapture

# Tests that also run on the plain engine, tiny_http's own loop.
ENGINE_TESTS = walkthrough posting listing cancel answers agent docs

# How long `make bench` measures each figure, and how long `make soak` runs, in seconds.
BENCH_SECONDS ?= 3
SOAK_SECONDS ?= 3600
# Where the binaries are that they measure.
BENCHED = $(BUILT)/benched

.PHONY: help demo demo-servers test bench bench-peers benched previous soak soak-simulation soak-undo soak-schedules soak-servers release small clean

help:
	@echo 'make demo             a server and three agents on this machine, to look at and to try'
	@echo 'make demo-servers     two PostgreSQL, three servers, five agents; the leader is killed while commands run'
	@echo 'make test             all that CI checks: format, lints, every build, every test'
	@echo 'make bench            measures a release build, BENCH_SECONDS=$(BENCH_SECONDS) a figure; BENCH_ONLY=ping,memory for some'
	@echo 'make bench-peers      the same, then Redis and rq to compare with'
	@echo 'make soak             mixed load on a release build for SOAK_SECONDS=$(SOAK_SECONDS): nothing may grow'
	@echo 'make soak-simulation  the simulation for SIM_SECONDS=$(SIM_SECONDS)'
	@echo 'make soak-undo        kills KILLS=$(KILLS) agents, each at a random moment: all that ran is undone'
	@echo 'make soak-schedules   kills a server 50 times around the firings of its schedules'
	@echo 'make soak-servers     kills the leader of several servers 20 times; their database is away for a minute'
	@echo 'make release          static binaries in dist/, each also packed with manual pages, completions and recipes'
	@echo 'make small            the smallest static binary, SMALL_FEATURES=$(SMALL_FEATURES) of agent,server,cli,db,tls'
	@echo 'make clean            removes what was built'

# A debug build is enough to see it work, and takes half the time.
demo:
	@$(CARGO) build --locked
	@sh tests/demo.sh $(BUILT)/debug/sidebike

demo-servers:
	@$(CARGO) build --locked
	@sh tests/demo_servers.sh $(BUILT)/debug/sidebike

# The lints also check each program built alone, which `--features` allows.
test: previous
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --no-default-features --features agent -- -D warnings
	$(CARGO) clippy --locked --no-default-features --features server -- -D warnings
	$(CARGO) clippy --locked --no-default-features --features cli -- -D warnings
	SIDEBIKE_PREVIOUS=$(PREVIOUS) CARGO=$(CARGO) sh tests/run.sh $(TEST_LANES)
	$(CARGO) clippy --locked --features tiny_http --lib --bins --test engines -- -D warnings
	$(CARGO) test --locked --features tiny_http --test engines
	SIDEBIKE_ENGINE=tiny_http $(CARGO) test --locked --features tiny_http $(ENGINE_TESTS:%=--test %)
	@if [ -d tests/simulation ]; then \
		set -x; SIM_SEEDS=$(SIM_SEEDS) $(SIMULATION); \
	fi

# Built once, from the history, without TLS, which the tests that need it do not use; where the history is not there, they
# are left out.
previous:
	@[ -x $(PREVIOUS) ] || ! git cat-file -e $(PREVIOUS_COMMIT) 2>/dev/null || ( set -ex; \
		mkdir -p target/previous/src; git archive $(PREVIOUS_COMMIT) | tar -x -C target/previous/src; \
		cd target/previous/src; $(CARGO) build --locked --bin sidebike --target-dir ../build \
			--no-default-features --features server,agent,cli,db; \
		cp ../build/debug/sidebike $(PREVIOUS); rm -rf ../src ../build )

# Its figures go into src/docs/performance.md. Compares with nginx by wrk: Debian's packages wrk and nginx-light.
bench: benched
	@BENCH_SECONDS=$(BENCH_SECONDS) $(MEASURE)

bench-peers: benched
	@BENCH_SECONDS=$(BENCH_SECONDS) $(MEASURE) -- peers

soak: benched
	@SOAK_SECONDS=$(SOAK_SECONDS) $(MEASURE) -- soak

MEASURE = SIDEBIKE=$(BENCHED)/sidebike SIDEBIKE_AGENT_ONLY=$(BENCHED)/sidebike-agent \
	$(CARGO) bench --locked --bench bench

# What users run: the static binary, and the agent alone as `make small` builds it. Without musl-gcc both are built
# for this machine's own kind.
benched:
	@mkdir -p $(BENCHED)
	@set -e; target=$(firstword $(RELEASES)); \
		if command -v musl-gcc >/dev/null && rustup target add $$target; then \
			args="--target $$target"; built=$(BUILT)/$$target; \
		else \
			echo "no $$target here: measures a build for this machine"; args=; built=$(BUILT); \
		fi; \
		set -x; \
		$(CARGO) build --locked --profile small $$args --bin sidebike --no-default-features --features agent; \
		cp $$built/small/sidebike $(BENCHED)/sidebike-agent; \
		$(CARGO) build --locked --release $$args --bin sidebike; \
		cp $$built/release/sidebike $(BENCHED)/sidebike

# The smallest binary, for containers where a megabyte matters; see the profile in Cargo.toml for its price.
small:
	@mkdir -p dist
	rustup target add $(firstword $(RELEASES))
	$(CARGO) build --locked --profile small --target $(firstword $(RELEASES)) --bin sidebike \
		--no-default-features --features $(SMALL_FEATURES)
	cp $(BUILT)/$(firstword $(RELEASES))/small/sidebike dist/sidebike-small-x86_64-linux

# More seeds than `make test` has time for.
soak-simulation:
	SIM_SECONDS=$(SIM_SECONDS) $(SIMULATION)

# More kills than `make test` has time for.
soak-undo:
	KILLS=$(KILLS) $(CARGO) test --locked --test undo_guard a_kill

# Kills a server around the firings of its schedules.
soak-schedules:
	KILLS=50 $(CARGO) test --locked --test schedules_kill

# The leader of several servers is killed more often, and their database is away for longer, than `make test` has time for.
soak-servers:
	KILLS=20 OUTAGE_SECONDS=60 $(CARGO) test --locked --test servers -- whatever_leader_is_killed an_outage

# One static binary for each target, built side by side, and an archive with what goes with it. The targets are
# added here, so that a fresh clone is enough; the C compilers they need are named in .cargo/config.toml.
release:
	@rm -rf dist && mkdir dist
	@set -e; targets=; flags=; for target in $(RELEASES); do \
		case $$target in x86_64*) cc=musl-gcc;; *) cc=aarch64-linux-gnu-gcc;; esac; \
		if ! command -v $$cc >/dev/null; then \
			echo "left out $$target: there is no $$cc"; \
			[ $$target != $(firstword $(RELEASES)) ] || exit 1; continue; \
		fi; \
		if ! rustup target add $$target && [ $$target != $(firstword $(RELEASES)) ]; then \
			echo "left out: this toolchain has no $$target"; continue; \
		fi; \
		targets="$$targets $$target"; flags="$$flags --target $$target"; \
	done; \
	if ! ( set -x; $(CARGO) build --locked --release $$flags ); then \
		targets=$(firstword $(RELEASES)); \
		echo "left out all but $$targets"; \
		( set -x; $(CARGO) build --locked --release --target $$targets ); \
	fi; \
	for target in $$targets; do \
		cp $(BUILT)/$$target/release/sidebike dist/sidebike-$${target%%-*}-linux; \
		sh src/docs/recipes/package.sh dist/sidebike-$${target%%-*}-linux $${target%%-*} \
			dist/sidebike-$(firstword $(subst -, ,$(RELEASES)))-linux dist; \
	done
	@cd dist && sha256sum sidebike-* > SHA256SUMS && cat SHA256SUMS && wc -c sidebike-*

clean:
	$(CARGO) clean
	rm -rf dist
