# make setup | run [ARGS='...'] | test [PYTEST='...'] | test-vm [VM='...'] | test-all | lint | bench [BENCH='...'] | soak [SOAK=N] | fuzz [FUZZ=SECONDS] | man | docs | wheel | sdist | deb | rpm | clean
VENV := .venv
BIN := $(VENV)/bin
export VENV
# Cargo's part runs only where there is a toolchain and the crate; make setup says so when there is none.
CRATE := setuid-helper/Cargo.toml
HAS_CARGO := $(and $(wildcard $(CRATE)),$(shell command -v cargo))

.PHONY: help setup run test test-vm test-all lint bench soak fuzz man docs wheel sdist deb rpm clean
help:
	@sed -n 1p Makefile

setup:
	@bash packaging/setup.sh

ifdef ARGS
run: setup
	@$(BIN)/sandbox run $(ARGS)
else
run: setup
	@bash packaging/demo.sh $(BIN)/sandbox
endif

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict sandbox benchmarks tests/typing
ifneq ($(HAS_CARGO),)
	cargo fmt --manifest-path $(CRATE) --check
	cargo clippy --manifest-path $(CRATE) --all-targets --locked -- -D warnings
endif

# pytest comes last: its summary is what the reader of a log looks for. Two workers, each with a test account and a mount
# namespace of its own.
test: lint
ifneq ($(HAS_CARGO),)
	cargo test --manifest-path $(CRATE) --locked --quiet
endif
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST)

# The suite on stock kernels, in emulated machines (tests/vm); needs root. VM names variants: make test-vm VM=userns-max-0
test-vm: setup
	@bash packaging/setup.sh vm
	$(BIN)/python -m tests.vm $(VM)

test-all: test test-vm

bench: setup
	@bash packaging/setup.sh bench
	@$(BIN)/python -m benchmarks $(BENCH)

# The races of tests/attack, SOAK times as long as in make test; those against the setuid helper 20,000 launches or a
# minute each; kills and power cuts at every system call, where make test takes some; 50 times as many mutants of plans
# and policies; a Debian root, made by mmdebstrap, and our packages in one; real work in jobs; Buildbot, pre-commit,
# tox and nox from PyPI; helpers and commands of neighbouring versions.
SOAK ?= 40
soak: setup
	@bash packaging/setup.sh deb
	@bash packaging/setup.sh rpm
	SANDBOX_SOAK=$(SOAK) $(BIN)/python -m pytest tests/attack tests/e2e/test_cleanup.py tests/unit/test_plan_both.py tests/unit/test_policy_both.py \
		tests/e2e/test_debian_root.py tests/e2e/test_job_keep.py tests/e2e/test_job_bombs.py tests/e2e/test_workloads.py \
		tests/e2e/test_packages.py tests/e2e/test_debian_packages.py tests/e2e/test_rpm_root.py tests/e2e/test_ci_buildbot.py tests/e2e/test_ci_github.py tests/e2e/test_neighbours.py \
		-k 'swapped or ci_buildbot or ci_github or neighbours or debian_root or packages or rpm_root or job_keep or job_bombs or workloads or setuid_races or setuid_limits or fsops or image_crashes or fifty or mutants or plans_written or kills_at_random' -rP -o timeout=0

# The parsers of hostile bytes under a coverage-guided fuzzer, FUZZ seconds each.
FUZZ ?= 60
fuzz:
	@setuid-helper/fuzz/run.sh $(FUZZ)

# Man pages and completion scripts below build/share, as an install puts them into share/: man -l build/share/man/man1/sandbox.1
man: setup
	$(BIN)/python -m manual share build/share

# Packages, into dist/ (docs/install.md).
wheel sdist: setup
	@packaging/build.sh $@

deb rpm: setup
	@bash packaging/setup.sh $@
	@packaging/build.sh $@

# The site, in build/site; fails on any warning.
docs: setup
	@bash packaging/setup.sh docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo build/site/index.html

clean:
	rm -rf $(VENV) build dist *.egg-info setuid-helper/target setuid-helper/fuzz/target sandbox/bin/sandbox-*
	find . -name __pycache__ -prune -exec rm -rf {} +
