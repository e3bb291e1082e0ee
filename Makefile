# Quorumail. `make help` lists what there is. Everything here runs on a fresh Debian 12 with Rust and Go.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# dev: quick to build, assertions on. release: what is shipped and measured.
PROFILE ?= dev
TARGET  := $(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
BIN     := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/$(TARGET)
OUT     := $(CURDIR)/out
TOOLS   := $(HOME)/.cache/quorumail/tools
DENY    := $(TOOLS)/bin/cargo-deny
PYTHON  := /usr/bin/python3
IMAGE   ?= quorumail/quorumail:dev
export QUORUMAIL_BIN := $(BIN)
# Test programs are linked often and read seldom.
export CARGO_TERM_PROGRESS_WHEN ?= never

say = @printf '\n== %s (%s)\n' "$(1)" "$$(date +%T)"

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# ---- what people type ------------------------------------------------------------------------------------------

.PHONY: demo
demo: packages build cluster image-archive ## The main job on a real Kubernetes, with a node lost on the way
	$(call say,Demo)
	$(PYTHON) tests/e2e/demo.py

.PHONY: dev
dev: build ## Three mailnodes on this machine with the sample's mailboxes (Ctrl-C ends them)
	$(BIN)/quorumail dev -f manifests/samples/quickstart.yaml

.PHONY: down
down: ## Ends the local cluster with everything it started
	@if [ -x $(OUT)/cluster ]; then $(OUT)/cluster down; fi

# The faults and the cases of the property tests are the same each time, so that a run that fails points at a change;
# `make chaos` and `make check` draw new ones.
.PHONY: test
test: export PROPTEST_RNG_SEED ?= $(or $(SEED),101)
test: export BUILD = $(WHOLE)
test: packages lint build ## Every test, the end-to-end tests on the local Kubernetes included
	$(MAKE) --jobs=2 --output-sync=target unit sim-beside
	$(MAKE) image-archive
	$(MAKE) --jobs=$(E2E_JOBS) --output-sync=target e2e-kubernetes-1 e2e-kubernetes-2 without-kubernetes SEED=$(or $(SEED),101)

# Simulated time takes no waiting, and tests wait a lot: the one does not disturb the other.
.PHONY: sim-beside
sim-beside:
	nice -n 10 $(MAKE) sim SEED=

.PHONY: without-kubernetes
without-kubernetes:
	$(MAKE) e2e-dev-built
	$(MAKE) chaos

.PHONY: check
check: lint unit ## Lint and unit tests: the inner loop

.PHONY: bench
bench: bench-packages ## Figures, side by side with Postfix and Dovecot
	$(MAKE) build PROFILE=release
	$(BENCH) $(PYTHON) tests/bench/bench.py

BENCH := QUORUMAIL_BIN=$(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/release

.PHONY: bench-all
bench-all: bench ## Every figure of docs/benchmarks.md: about two hours, 20 GiB of disk, nothing else running
	$(BENCH) $(PYTHON) tests/bench/failover.py --kills 50 --handovers 20
	$(BENCH) $(PYTHON) tests/bench/idle.py
	$(BENCH) $(PYTHON) tests/bench/sweep.py
	$(BENCH) $(PYTHON) tests/bench/writes.py
	$(BENCH) $(PYTHON) tests/bench/memory.py
	$(BENCH) FOLDER_ALONE=1 FOLDER_MESSAGES=1000000 $(PYTHON) tests/bench/folder.py
	$(BENCH) $(PYTHON) tests/bench/restart.py
	$(BENCH) $(PYTHON) tests/bench/backup.py --elsewhere /dev/shm
	$(MAKE) cluster image-archive PROFILE=release
	status=0; export QUORUMAIL_CLUSTER_BIN=$$($(OUT)/cluster bin); \
	$(BENCH) $(PYTHON) tests/bench/backup.py --copies-only --s3 || status=$$?; \
	$(BENCH) $(PYTHON) tests/bench/kubernetes_scale.py --unrelated 10000 || status=$$?; \
	$(OUT)/cluster down; exit $$status

# Histories to simulate, or one of them again (SEED=k). The scheduler takes a seed only in an unstable build of tokio; the
# simulation has a profile of its own, so nothing that is shipped is built that way.
SEEDS ?= 2000
SIM   := RUSTFLAGS="--cfg tokio_unstable" cargo

.PHONY: sim-check
sim-check: ## The simulation's own tests: it repeats, a sample of histories passes, deliberate faults are found
	$(call say,Simulation: its own tests)
	$(SIM) test --profile sim -p quorumail-sim -- --nocapture

.PHONY: sim
sim: $(if $(SEED),,sim-check) ## Simulated clusters under faults: SEEDS=n histories and the deliberate faults, or SEED=k one history again
	$(call say,Simulation)
ifeq ($(SEED),)
	$(SIM) run -q --profile sim -p quorumail-sim --bin simulate -- --seeds $(SEEDS)
else
	$(SIM) run -q --profile sim -p quorumail-sim --bin simulate -- --seed $(SEED)
endif

# ---- parts -----------------------------------------------------------------------------------------------------

# What is built for the tests of crates serves the other tests as well: with other features of libraries, as the programs
# have them alone, everything would be built a second time. That they compile alone is part of lint.
WHOLE    := --workspace --exclude quorumail-sim --all-targets
PROGRAMS := -p quorumail-server -p quorumail-operator -p quorumail-bench
BUILD    ?= $(PROGRAMS)
.PHONY: build
build: ## The programs
	$(call say,Building the programs ($(PROFILE)))
	cargo build --profile $(PROFILE) $(BUILD)

.PHONY: unit
unit: cluster ## cargo test
	$(call say,Unit and crate tests)
	QUORUMAIL_CLUSTER_BIN=$$($(OUT)/cluster bin) cargo test --workspace --exclude quorumail-sim --profile $(PROFILE)

.PHONY: lint
lint: packages $(DENY) cluster ## Formatting, clippy, licences, generated files, chart
	$(call say,Lint)
	cargo fetch --locked
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --profile $(PROFILE) -- -D warnings
	cargo check --profile $(PROFILE) $(PROGRAMS)
	$(DENY) --offline check --hide-inclusion-graph licenses bans sources
	cd tests/cluster && test -z "$$(gofmt -l . | tee /dev/stderr)" && go vet ./...
	HELM=$$($(OUT)/cluster bin)/helm tests/lint-chart.sh
	tests/lint-alerts.sh

# End-to-end tests wait most of the time: side by side, those that do not need a Kubernetes, and the others on two. On a cluster that
# the user named there is but one, and so they go one after the other. PYTEST takes further options; where they choose no test of a
# part that is no failure.
SECOND := $(foreach part,backup certificates recovery tenants upgrade,tests/e2e/test_kubernetes_$(part).py)
E2E_JOBS := $(if $(QUORUMAIL_E2E_CONTEXT),1,3)
pytest = $(PYTHON) -m pytest -q -ra --durations=8 -p no:cacheprovider $(1) $(PYTEST) || $(if $(PYTEST),[ $$? = 5 ],exit $$?)
on_kubernetes = export QUORUMAIL_E2E=kubernetes QUORUMAIL_CLUSTER_BIN=$$($(OUT)/cluster bin) $(1); \
	trap '$(OUT)/cluster down' EXIT; $(call pytest,$(2))

.PHONY: e2e
e2e: packages build cluster image-archive ## End-to-end tests: real processes, real clients, real Kubernetes
	$(MAKE) --jobs=$(E2E_JOBS) --output-sync=target e2e-kubernetes-1 e2e-kubernetes-2 e2e-dev-built

.PHONY: e2e-dev
e2e-dev: packages build e2e-dev-built ## End-to-end tests without Kubernetes

.PHONY: e2e-dev-built
e2e-dev-built:
	$(call say,End-to-end tests without Kubernetes)
	export QUORUMAIL_E2E=dev QUORUMAIL_CLUSTER_BIN=$$([ ! -x $(OUT)/cluster ] || $(OUT)/cluster bin); $(call pytest,tests/e2e)

.PHONY: e2e-kubernetes-1
e2e-kubernetes-1:
	$(call say,End-to-end tests on Kubernetes)
	$(call on_kubernetes,,tests/e2e $(SECOND:%=--ignore=%))

.PHONY: e2e-kubernetes-2
e2e-kubernetes-2:
	$(call say,End-to-end tests on a second Kubernetes)
	$(call on_kubernetes,QUORUMAIL_CLUSTER_NAME=qm2 QUORUMAIL_CLUSTER_NETWORK=10.215,$(SECOND))

# Faults of a run come from its seed; MINUTES are those of faults. CHAOS takes further options (tests/chaos/chaos.py --help).
MINUTES ?= 5
CHAOS_RUN = $(PYTHON) tests/chaos/chaos.py --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(CHAOS)

.PHONY: chaos
chaos: packages chaos-check build ## Real processes under faults, every answer accounted for (MINUTES=5 SEED=n)
	$(call say,Chaos: $(MINUTES) minutes of faults)
	$(CHAOS_RUN)

.PHONY: chaos-long
chaos-long: ## An hour of chaos, or as long as MINUTES says
	$(MAKE) chaos MINUTES=$(if $(filter command line,$(origin MINUTES)),$(MINUTES),60)

.PHONY: chaos-check
chaos-check: packages
	$(PYTHON) -m pytest -q -p no:cacheprovider tests/chaos

.PHONY: cluster
cluster: ## The program that runs the local Kubernetes, and the parts it runs
	$(call say,Building the local Kubernetes (once))
	@mkdir -p $(OUT)
	cd tests/cluster && CGO_ENABLED=0 go build -o $(OUT)/cluster .
	$(OUT)/cluster build

.PHONY: images
images: ## The container image, release build, as out/quorumail.tar
	$(MAKE) build cluster image-archive PROFILE=release

.PHONY: image-archive
image-archive:
	$(call say,Building the image $(IMAGE))
	rm -rf $(OUT)/image && mkdir -p $(OUT)/image/bin
	for program in mailnode operator quorumail; do \
	  objcopy --strip-debug $(BIN)/$$program $(OUT)/image/bin/$$program; done
	$(OUT)/cluster image --name $(IMAGE) --containerfile Containerfile --context $(OUT)/image --out $(OUT)/quorumail.tar

.PHONY: manifests
manifests: ## Writes the generated files: CRDs, reference pages, plain manifests, dashboards
	cargo run -q -p quorumail-crds --bin crdgen
	HELM=$$($(OUT)/cluster bin)/helm tests/lint-chart.sh --write
	$(PYTHON) tests/dashboards.py --write

# ---- what this machine needs -----------------------------------------------------------------------------------

PACKAGES := python3 python3-pytest python3-yaml python3-aiosmtpd python3-dkim swaks libnet-ssleay-perl isync postfix dovecot-imapd prometheus lua5.1 binutils \
            iproute2 iptables e2fsprogs util-linux gcc libc6-dev
.PHONY: packages
packages:
	@tests/packages.sh $(PACKAGES)

.PHONY: bench-packages
bench-packages: packages
	@tests/packages.sh postfix dovecot-core dovecot-imapd dovecot-lmtpd restic

$(DENY):
	$(call say,Installing cargo-deny (once))
	cargo install cargo-deny --version 0.20.2 --locked --root $(TOOLS)
