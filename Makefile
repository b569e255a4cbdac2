ROOTS := exporters quantize runtimes models calibration bench
BIN := .venv/bin
PYTHON ?= python3
# Where pip would bring a torch build with gigabytes of CUDA packages, name an index with a CPU build:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=

.PHONY: demo test test-slow test-random check lint types bench bench-models bench-int8 bench-pruning bench-projection bench-serve bench-compare bench-estimate bench-faults schemas

$(BIN)/tsexport: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e ".[build,quantize,report,serve,sign,tract,dask,dev]"
	@touch $@

demo: $(BIN)/tsexport  ## a bundle of the reference model, in dist/
	$(BIN)/tsexport build patchtst-cpu --target cpu4-int8 -o dist --force

# One after the other: some tests measure time, memory or idle processors, and two at once disturb each other.
test: $(BIN)/tsexport
	$(BIN)/pytest -m "not slow" $(PYTEST_ARGS)

test-slow: $(BIN)/tsexport
	$(BIN)/pytest -m slow $(PYTEST_ARGS)

# Property tests with new examples each time, and more of them: what fails becomes an @example.
test-random: $(BIN)/tsexport
	HYPOTHESIS_PROFILE=random $(BIN)/pytest -m "hypothesis and not slow" $(PYTEST_ARGS)

bench: $(BIN)/tsexport
	$(BIN)/python bench/suites/against_defaults.py $(BENCH_ARGS)

# Every registered model; a run that was interrupted goes on with BENCH_ARGS=--resume.
bench-models: $(BIN)/tsexport
	$(BIN)/python bench/suites/bench_models.py $(BENCH_ARGS)

bench-pruning: $(BIN)/tsexport
	$(BIN)/python bench/suites/pruning.py $(BENCH_ARGS)

# Nothing is timed: projections against public latencies.
bench-projection: $(BIN)/tsexport
	$(BIN)/python bench/suites/projection.py $(BENCH_ARGS)

# INT8 against the other tools' defaults; with Olive where BENCH_ARGS names its --olive-python.
bench-int8: $(BIN)/tsexport
	$(BIN)/python bench/suites/int8_defaults.py $(BENCH_ARGS)

# The server under load; needs wrk.
bench-serve: $(BIN)/tsexport
	$(BIN)/python bench/suites/serve_load.py $(BENCH_ARGS)

# How often `compare` is right; goes on with BENCH_ARGS=--resume.
bench-compare: $(BIN)/tsexport
	$(BIN)/python bench/suites/compare_calibration.py $(BENCH_ARGS)

# How far `estimate` is from measured peaks; what is measured is kept, and not measured again.
bench-estimate: $(BIN)/tsexport
	$(BIN)/python bench/suites/estimate_accuracy.py --folder bench/results/estimate.partial $(BENCH_ARGS)

# Builds and other commands killed at random points; goes on with BENCH_ARGS=--resume.
bench-faults: $(BIN)/tsexport
	$(BIN)/python bench/suites/faults.py $(BENCH_ARGS)

# The JSON schemas of bundle-format.md, from the records.
schemas: $(BIN)/tsexport
	$(BIN)/python -m tsexport.bundles.json_schemas docs/schemas

check: lint types test

lint: $(BIN)/tsexport
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/tsexport  ## mypy reads the package through a git-ignored link tree
	rm -rf .typing && mkdir -p .typing/tsexport
	@ln -sfn $(addprefix ../../,$(wildcard src/tsexport/*) $(ROOTS)) .typing/tsexport/
	$(BIN)/mypy
