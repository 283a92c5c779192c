# Every target takes RECIPE=recipes/x.yaml and SET="a.b=c d.e=f"; those that train also take NPROC=2 (processes, one per
# GPU). There is no logic here: see `tutelage --help`.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3.14 || echo python3)
RECIPE ?= recipes/quickstart.yaml
SET ?=
NPROC ?= 1
ARGS ?=

export SET
export TUTELAGE_MAKE := 1
# With pipefail a failed install is not hidden by the command that formats its output.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

VENV := .venv
INSTALLED := $(VENV)/.installed
TUTELAGE := $(VENV)/bin/tutelage
VALUES = --recipe "$(RECIPE)" --set "$$SET" $(ARGS)
STAGES := $(shell sed -nE 's/.*target="stages\.([a-z]+).*/\1/p' stages/registry.py)

.DEFAULT_GOAL := help
.PHONY: help venv init run round test slow gpu mutations lint types check plan show status report compare chat clean judge \
	publish export-rankings docs $(STAGES)

help: ## list the targets
	@grep -hE '^[a-z -]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /:/' | awk -F: '{printf "  %-16s %s\n", $$1, $$2}'
	@printf '  %-16s %s\n' $(foreach stage,$(STAGES),$(stage) "run $(stage) and the stages it needs")
	@echo 'Each takes RECIPE=recipes/x.yaml and SET="a.b=c d.e=f"; NPROC=2 shares the training between two processes.'

venv: $(INSTALLED) ## create .venv and install, if pyproject.toml or constraints.txt changed

$(INSTALLED): pyproject.toml constraints.txt
	@echo "creating $(VENV) with $$($(PYTHON) --version) and installing: this takes minutes, once"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --progress-bar off --disable-pip-version-check -c constraints.txt -e ".[dev]" \
		| awk '/^(Collecting|Installing)/ { print "  " substr($$0, 1, 76); fflush() }'
	@touch $@

init: venv ## write a recipe for your own tables and model (ARGS="--demonstrations A.csv --rankings B.csv --base MODEL")
	@$(TUTELAGE) init $(ARGS)

run: venv ## run every stage that is not up to date, then the report
	@$(TUTELAGE) run --nproc $(NPROC) $(VALUES)

$(STAGES): venv
	@$(TUTELAGE) run $@ --nproc $(NPROC) $(VALUES)

$(addsuffix -%,$(STAGES)): venv # a stage in a later round: make ppo-2
	@$(TUTELAGE) run $@ --nproc $(NPROC) $(VALUES)

round: venv ## run one more round of collect, rank, reward and ppo than is finished
	@$(TUTELAGE) round --nproc $(NPROC) $(VALUES)

publish: venv ## upload model, card and rankings to the Hub (ARGS=--dry-run to see what would be uploaded)
	@$(TUTELAGE) publish $(VALUES)

export-rankings: venv ## write the rankings as a data set for the Hub (ARGS=FOLDER)
	@$(TUTELAGE) export-rankings $(VALUES)

plan: venv ## show which stages would run, why, and how much memory they need
	@$(TUTELAGE) plan $(VALUES)

show: venv ## print every value of the recipe and where it was set
	@$(TUTELAGE) show $(VALUES)

status: venv ## show each stage's state, key, time and size
	@$(TUTELAGE) status $(VALUES)

report: venv ## write report.html from the finished stages (ARGS='--against "a.b=c"' to compare)
	@$(TUTELAGE) report $(VALUES)

compare: venv ## compare two runs by their folders or reports (ARGS="runs/a runs/b")
	@$(TUTELAGE) compare $(ARGS)

chat: venv ## chat with a model of the run (ARGS="sft ppo" for two side by side)
	@$(TUTELAGE) chat $(VALUES)

judge: venv ## have people compare PPO with SFT, blind (ARGS="--annotators ana,ben")
	@$(TUTELAGE) judge $(VALUES)

check: venv ## check the recipe and its files (ARGS=--artifacts to verify the artifacts' hashes)
	@$(TUTELAGE) check $(VALUES)

clean: venv ## remove runs that the recipe no longer uses (ARGS=--all for all its runs)
	@$(TUTELAGE) clean $(VALUES)

test: venv ## run the fast tests
	@$(VENV)/bin/python -m pytest -n 2 -m "not slow"

slow: venv ## run the slow tests
	@$(VENV)/bin/python -m pytest -n 2 -m slow

mutations: venv ## break the maths in a few places, other ones each day, and show which tests notice
	@$(VENV)/bin/python benchmarks/mutations.py $(or $(ARGS),--sample 3)

gpu: venv ## run the tests of a CUDA device, and the table of docs/gpu.md
	@$(VENV)/bin/python -m pytest tests/gpu
	@$(VENV)/bin/python benchmarks/gpu.py --out $(or $(OUT),.)

lint: venv ## ruff
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

types: venv ## mypy
	@$(VENV)/bin/mypy

docs: venv ## write docs/recipes.md, the reference of every recipe value
	@$(VENV)/bin/python -P -m stages.reference > docs/recipes.md
