# The targets of the first block of `make help` take RECIPE=recipes/x.yaml and SET="a.b=c d.e=f", except init, inspect,
# annotate and compare; those that train also take NPROC=2 (processes, one per GPU). ARGS holds further options, as in
# `make run ARGS=--force`. There is no logic here: see `tutelage --help`.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3.14 || echo python3)
RECIPE ?=
SET ?=
NPROC ?=
DEVICE ?=
ARGS ?=

export SET
# With pipefail a failed install is not hidden by the command that formats its output.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

VENV := .venv
INSTALLED := $(VENV)/.installed
# With TUTELAGE_MAKE, messages show commands as make targets.
TUTELAGE := TUTELAGE_MAKE=1 $(VENV)/bin/tutelage
VALUES = $(if $(RECIPE),--recipe "$(RECIPE)") $(if $(SET),--set "$$SET") $(ARGS)
TRAINING = $(if $(NPROC),--nproc $(NPROC)) $(VALUES)
STAGES := $(shell sed -nE 's/.*target="stages\.([a-z]+).*/\1/p' stages/registry.py)

.DEFAULT_GOAL := help
.PHONY: help venv init inspect check plan show status run $(STAGES) round report chat serve judge compare annotate export-rankings score evaluate-reward export-reward publish \
	clean test slow test-device gpu compare-optimisers mutations lint types docs

# `##` describes a target for users, `###` one for developers.
help: ## list the targets
	@echo 'Using Tutelage:'
	@awk -F ':[^#]*## ' '/^[a-z -]+:[^#]*## / { printf "  %-16s %s\n", $$1, $$2 } \
		/^run:/ { printf "  %-16s %s\n  %-16s %s\n", "STAGE", "run a stage and what it needs (ppo-2: PPO in round 2):", "", "$(STAGES)" }' \
		$(MAKEFILE_LIST)
	@echo 'All but help, venv, init, inspect, compare, annotate take RECIPE=recipes/x.yaml'
	@echo '(default: quickstart) and SET="a.b=c d.e=f". Options go into ARGS:'
	@echo 'make run ARGS=--force.'
	@echo 'With NPROC=2 two processes share the training of run, round and STAGE.'
	@echo
	@echo 'Developing Tutelage:'
	@awk -F ':[^#]*### ' '/^[a-z -]+:[^#]*### / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(INSTALLED) ## create .venv and install (every target does this if needed)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "creating $(VENV) with $$($(PYTHON) --version) and installing: this takes minutes, once"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --progress-bar off --disable-pip-version-check -c constraints.txt -e ".[dev]" \
		| awk '/^(Collecting|Installing)/ { print "  " substr($$0, 1, 76); fflush() }'
	@touch $@

init: venv ## write a recipe for your own tables and base model
	@$(TUTELAGE) init $(ARGS)

inspect: venv ## say what a table is and how to describe it (ARGS=FILE)
	@$(TUTELAGE) inspect $(ARGS)

check: venv ## check recipe and files (ARGS=--artifacts: results too)
	@$(TUTELAGE) check $(VALUES)

plan: venv ## show which stages would run, why, and in how much memory
	@$(TUTELAGE) plan $(TRAINING)

show: venv ## print every value of the recipe and where it was set
	@$(TUTELAGE) show $(VALUES)

run: venv ## run every stage that is not up to date, then the report
	@$(TUTELAGE) run $(TRAINING)

$(STAGES): venv
	@$(TUTELAGE) run $@ $(TRAINING)

$(addsuffix -%,$(STAGES)): venv # a stage in a later round: make ppo-2
	@$(TUTELAGE) run $@ $(TRAINING)

status: venv ## show each stage's state, key, time and size
	@$(TUTELAGE) status $(VALUES)

round: venv ## run one more round of collect, rank, reward and ppo
	@$(TUTELAGE) round $(TRAINING)

report: venv ## write the report (ARGS='--against "a.b=c"' to compare values)
	@$(TUTELAGE) report $(VALUES)

chat: venv ## chat with a model (ARGS="sft ppo" for two side by side)
	@$(TUTELAGE) chat $(VALUES)

serve: venv ## serve the models over HTTP, with a chat page (ARGS=ppo)
	@$(TUTELAGE) serve $(VALUES)

judge: venv ## have people compare PPO with SFT, blind
	@$(TUTELAGE) judge $(VALUES)

compare: venv ## compare two runs or reports (ARGS="runs/a runs/b")
	@$(TUTELAGE) compare $(ARGS)

annotate: venv ## have people rank a file (ARGS="IN --out OUT --annotators a")
	@$(TUTELAGE) annotate $(ARGS)

export-rankings: venv ## write the rankings as a data set for the Hub (ARGS=FOLDER)
	@$(TUTELAGE) export-rankings $(VALUES)

score: venv ## score a table with the reward model (ARGS="IN --out OUT")
	@$(TUTELAGE) score $(VALUES)

evaluate-reward: venv ## evaluate the reward model on a benchmark (ARGS=FILE)
	@$(TUTELAGE) evaluate-reward $(VALUES)

export-reward: venv ## write the reward model as a classifier (ARGS=FOLDER)
	@$(TUTELAGE) export-reward $(VALUES)

publish: venv ## upload models and rankings to the Hub (ARGS=--dry-run: list)
	@$(TUTELAGE) publish $(VALUES)

clean: venv ## remove results that the recipe no longer uses (ARGS=--all)
	@$(TUTELAGE) clean $(VALUES)

test: venv ### run the fast tests
	@$(VENV)/bin/python -m pytest -n 2 -m "not slow"

slow: $(VENV)/.clients ### run the slow tests
	@$(VENV)/bin/python -m pytest -n 2 -m slow

# Only the slow tests need the clients of the server.
$(VENV)/.clients: $(INSTALLED)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,clients]"
	@touch $@

compare-optimisers: venv ### compare PPO, GRPO, DPO, RAFT, ...: hours (ARGS=--help)
	@$(VENV)/bin/python benchmarks/optimisers.py $(ARGS)

mutations: venv ### break the maths in a few places and show which tests notice
	@$(VENV)/bin/python benchmarks/mutations.py $(or $(ARGS),--sample 3)

test-device: venv ### run the tests that hold on every device (DEVICE=mps)
	@$(VENV)/bin/python -m pytest tests/invariants/test_on_device.py --device $(or $(DEVICE),auto)

gpu: venv ### run the tests of a CUDA device, and the table of docs/gpu.md
	@$(VENV)/bin/python -m pytest tests/gpu tests/invariants/test_on_device.py --device cuda
	@$(VENV)/bin/python benchmarks/gpu.py --out $(or $(OUT),.)

lint: venv ### ruff
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

types: venv ### mypy
	@$(VENV)/bin/mypy

docs: venv ### write docs/recipes.md, the reference of every recipe value
	@$(VENV)/bin/python -P -m stages.reference > docs/recipes.md
