# Every target sets up .venv by itself; PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
ORACLE := $(wildcard ../shared)
export SGPIPE_ORACLE ?= $(if $(ORACLE),$(abspath $(ORACLE)))
export HF_HUB_OFFLINE ?= 1
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: install demo miniworld-models parser-model layout-model experiments experiment test test-integration test-all test-soak test-simulated-gpu label-studio transformers-serve lint lint-github format docs bench gpu-check clean

install: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev,docs]'
	touch $@

demo: install
	$(BIN)/sgpipe generate --out demo-out/labels
	$(BIN)/sgpipe train tagger --miniature --data demo-out/labels --epochs 4 --out demo-out/tagger
	$(BIN)/sgpipe stats demo-out/labels --html demo-out/report.html --sheet demo-out/images.png
	@$(BIN)/python -m experiments.miniworld.demo demo-out

# The models that ship with sgpipe, from scratch: about two hours on one core.
miniworld-models: install
	$(BIN)/python -m experiments.miniworld.make_models --out build/miniworld-models

# The learned parser, from scratch, of FACTUAL's captions (make parser-model DATA=train.csv.gz): ten minutes on one core.
parser-model: install
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.parser.train $(DATA) --out build/parser-model

# The layout model, from V-COCO's interactions (make layout-model DATA=vcoco_layout INSTANCES=instances_train2014.json).
layout-model: install
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.layout $(DATA) --instances $(INSTANCES) --out build/layout-model

# The claims of the paper in miniature: hours, in pieces of any length (ARGS="--minutes 60"); see docs/experiments.md.
experiments: install
	$(BIN)/python -m experiments.run $(ARGS)
	$(BIN)/python -m experiments.report

experiment: install
	$(BIN)/python -m experiments.run $(NAME) $(ARGS)
	$(BIN)/python -m experiments.report

# Unit tests: everything outside tests/integration that is not marked slow. Integration tests: what is, and the rest.
# Soak tests: kills, faults of stores, containers, big clusters, long trainings.
test: install
	$(BIN)/python -m pytest --ignore tests/integration -m 'not slow and not soak' -n 2 --dist loadfile --no-loadscope-reorder --durations=20 --durations-min=3

test-integration: install
	$(BIN)/python -m pytest -m '(slow or integration) and not soak' -n 2 --dist loadfile --no-loadscope-reorder --durations=40 --durations-min=10

test-all: test test-integration

# Hours on two cores; every night in .github/workflows/nightly.yml.
test-soak: install
	$(BIN)/python -m pytest -m soak --durations=20

# What runs on a GPU, on a simulated one (g++, two minutes), and how often the host launches kernels and waits for it.
test-simulated-gpu: install
	$(BIN)/python -m pytest -p tests.simulated_gpu.plugin -m '' tests/test_gpu.py tests/simulated_gpu

# A real Label Studio for tests/integration/test_label_studio.py, apart from sgpipe, with an empty database: 1 GB, minutes.
label-studio: .label-studio/data

.label-studio/data:
	$(PYTHON) -m venv .label-studio
	.label-studio/bin/python -m pip install --quiet 'label-studio>=1.23,<2'
	rm -rf $@.part
	LABEL_STUDIO_BASE_DATA_DIR=$(abspath $@.part) LABEL_STUDIO_COLLECT_ANALYTICS=false \
		LABEL_STUDIO_LATEST_VERSION_CHECK=false LABEL_STUDIO_SENTRY_DSN= .label-studio/bin/label-studio version
	mv $@.part $@

# `transformers serve` for tests/integration/test_transformers_serve.py: its few packages apart from sgpipe's.
transformers-serve: .serving/.installed

.serving/.installed: .venv/.installed
	$(PYTHON) -m venv .serving
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
		> "$$(.serving/bin/python -c 'import site; print(site.getsitepackages()[0])')/sgpipe.pth"
	.serving/bin/python -m pip install --quiet 'transformers[serving]>=5,<6'
	touch $@

lint: install lint-github
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# actionlint is not a Python program: its PyPI package downloads it from GitHub, so it runs only if it is installed.
lint-github: install
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/feature.yml
	@if command -v actionlint; then actionlint; else echo "actionlint is not installed: workflows checked by schema only"; fi

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation, into site/; a broken link or a missing page is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Each benchmark prints its page; one thread, unless it says otherwise.
bench: install
	@for script in benchmarks/bench_*.py; do \
		name=$$(basename $$script .py); page=benchmarks/results/$${name#bench_}.md; echo $$page; \
		OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.$$name > $$page.part && mv $$page.part $$page || exit 1; \
	done

# On a machine with an NVIDIA GPU: whether it computes what a CPU does, and how fast; in some minutes.
gpu-check: install
	$(BIN)/python -m pip install --quiet -e '.[gpu]'
	$(BIN)/python -m benchmarks.gpu

clean:
	rm -rf .venv .serving demo-out build dist site .cache .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
