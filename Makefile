# `make` alone prints this list. Needs Python 3.11+, git and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup repro verify reproduce check start update keep history plots pull push doctor test test-slow test-product torture lint format schema lock bench clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.ready  ## create .venv from requirements.lock

$(VENV)/.ready: requirements.lock requirements-torch.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] \
	  + "; name another: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "setting up $(VENV) from requirements.lock: a few minutes, once"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-torch.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

repro: setup  ## run what has changed: download, preprocess, train, evaluate, export
	@python -m reprise doctor --check
	@dvc repro

verify: setup  ## hash workspace and cache anew and compare with dvc.lock
	@python -m reprise verify

reproduce: setup  ## run the committed pipeline twice from scratch and compare every byte
	@python -m reprise reproduce

check: setup  ## your project's gate, as CI runs it: dvc.lock, files, bars, comparison with main (ARGS=--reproduce)
	@python -m reprise review $(ARGS)

.PHONY: review
review: check

.PHONY: start update keep
start: setup  ## make this clone a project of your own, in one commit (NAME="Our flowers")
	@python -m reprise start "$(or $(NAME),$(error name it: make start NAME="Our flowers"))"

update: setup  ## merge a newer version of Reprise into your project (ARGS="--to 1.2.0")
	@python -m reprise update $(ARGS)

keep: setup  ## keep the trained model after a change of the code, if a short training changes no bit
	@python -m reprise keep $(ARGS)

history: setup  ## show the test metrics over the commits of this branch (ARGS names metrics)
	@python -m reprise history $(ARGS)

# DVC's own page loads Vega from a CDN; this one holds it
VEGA := import vl_convert as v; print("<meta charset=utf-8><title>Plots</title><script>{", \
  v.javascript_bundle("window.vegaEmbed = vegaEmbed"), "}</script>{plot_divs}")
plots: setup  ## draw DVC's plots on one page that opens without a network: runs/plots/index.html
	@mkdir -p runs
	@python -c 'import vl_convert' 2>/dev/null || \
	  { echo "error: this needs Vega: $(BIN)/python -m pip install vl-convert-python" >&2; exit 1; }
	@python -c '$(VEGA)' > runs/plots.template
	@dvc plots show --html-template runs/plots.template --out runs/plots

pull: setup  ## fetch data, model and known runs from the DVC remote
	@dvc pull --run-cache

push: setup  ## send them there
	@dvc push --run-cache

doctor: setup  ## put the workspace right after a crash of DVC, saying how (ARGS=--dry-run only says it)
	@python -m reprise doctor $(ARGS)

test: setup  ## run the tests
	@python -m pytest

test-slow: setup  ## run the tests that take minutes
	@python -m pytest -m "slow and not product"

test-product: setup  ## run those of this repository's own texts and results, not for a project of your own
	@python -m pytest -m product

torture: setup  ## kill the pipeline at random moments, many times, and compare what comes out (half an hour)
	@python tests/torture.py

lint: setup  ## check style, format and types
	@ruff check .
	@ruff format --check .
	@mypy src
	@mypy stages

format: setup  ## put style and format right
	@ruff check --fix .
	@ruff format .

schema: setup  ## write the JSON schemas of params.yaml and of sweeps anew
	@python -m reprise.params.schema
	@python -m reprise.search.space

# torch and torchvision have other hashes for CPUs and GPUs, and torch brings its own CUDA packages
APART := torch==|torchvision==|nvidia-|cuda-|triton
lock: setup  ## resolve requirements.lock, with hashes, and requirements-torch.lock anew
	@mkdir -p runs
	@uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade --quiet --generate-hashes \
	  --no-annotate --no-header --no-emit-index-url --no-emit-find-links --output-file runs/lock.new
	@awk '/^[^ ]/{apart = /^($(APART))/} !apart' runs/lock.new > runs/requirements.lock
	@sed -nE 's/^(torch(vision)?==[^ ]+).*/\1/p' runs/lock.new > runs/requirements-torch.lock
	@mv runs/requirements.lock runs/requirements-torch.lock .
	@rm runs/lock.new

bench: setup  ## measure what needs no further data, as Markdown tables (about half an hour; with nothing else running)
	@for name in limit conventional scale pipeline promises models; do \
	  echo; echo "## $$name"; echo; python benchmarks/$$name.py || exit 1; done

clean:  ## remove the environment, scratch runs and caches of tools (not the data, not the DVC cache)
	rm -rf $(VENV) runs build dist .pytest_cache .ruff_cache .mypy_cache
