# Copyright (c) 2026 the qemu.guest authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Every recipe is one line: what is behind it lives in tests/tools and lab.
# Environments, guest images and scratch copies are kept in $(CACHE), never in the tree.

CACHE := $(or $(QEMU_GUEST_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/qemu-guest)
RUN := @tests/tools/run

.DEFAULT_GOAL := help
.PHONY: help demo quick test test-all lint unit sanity agents guests bench soak fuzz docs build clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 18

demo:  ## boot a guest without a network and configure it with a playbook
	@tests/tools/with core-2.19 python -m lab.demo

quick:  ## a first answer: lint, most unit tests on one core, and commands with real agents
	$(RUN) venvs lint quick

test:  ## everything below up to "guests", and totals
	$(RUN) venvs lint unit sanity build agents guests

test-all:  ## the same, whole: every release, core and guest; hours where guests are emulated
	@QEMU_GUEST_WHOLE=1 tests/tools/run venvs lint unit sanity build agents guests

lint:  ## ruff, mypy, shellcheck, yamllint, ansible-lint, changelog and documentation checks
	$(RUN) lint

unit:  ## unit tests on every supported core (PYTEST_ARGS='-k sync' narrows)
	$(RUN) unit

sanity:  ## ansible-test sanity on every supported core
	$(RUN) sanity

build:  ## the artifact, checked and test-installed; it is left in this directory
	@QEMU_GUEST_ARTIFACTS=$(CURDIR) tests/tools/run build

agents:  ## integration tests against the real agent, without a guest
	$(RUN) agents

guests:  ## integration tests against booted guests
	$(RUN) guests

bench:  ## seconds of plays, beside ssh and others, on one guest and on many agents (BENCH_ARGS='--only fleet' narrows)
	@tests/tools/with bench python -m lab.bench $(BENCH_ARGS)

soak:  ## 2000 tasks and 2 GB of files through one guest: nothing grows (SOAK_ARGS='--on loose --tasks 200' narrows)
	@tests/tools/with core-2.21 python -m lab.soak $(SOAK_ARGS)

fuzz:  ## properties of the unit tests, by an input that runs new code (FUZZ_ARGS='reply --runs 1000000' narrows)
	@tests/tools/with fuzz python tests/fuzz/__main__.py $(FUZZ_ARGS)

docs:  ## the plugins' documentation and the guides as HTML, in the cache; all their links lead somewhere
	@tests/tools/docs

clean:  ## remove what was built in the tree, and the cache but for guest images
	rm -rf *.tar.gz tests/output .pytest_cache .ansible
	cd "$(CACHE)" 2>/dev/null && rm -rf -- *.lock artifact bootstrap build docs installed lint mypy mypy-lab pythons results sanity venvs || true
