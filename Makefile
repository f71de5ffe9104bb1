# The verbs of the project: `make` lists them. Needs Python 3.11 or newer and nothing else.

SHELL = /bin/sh
.DEFAULT_GOAL = help
# Verbs share one environment and one set of ports: `make -j` runs them one after the other.
.NOTPARALLEL:
.PHONY: help up down status logs serve retrain test test-all check audit format bench
.PHONY: bench-peers bench-reliability bench-accuracy
.PHONY: screenshots lock clean
.PHONY: image smoke publish deploy

# Set, these reach the programs; set to nothing, they do not.
ifneq ($(strip $(PORT)),)
export PORT
else
unexport PORT
endif
ifneq ($(strip $(MLFLOW_PORT)),)
export MLFLOW_PORT
else
unexport MLFLOW_PORT
endif
export USE_CASE REASON

BIN = .venv/bin
# Any Python will do: tools/setup.py finds one that is new enough (PYTHON= names it).
# -S: the tools need the standard library only, and start in half the time.
ANY_PYTHON = python=$$(command -v "$(or $(PYTHON),python3)" || command -v python3.11 \
	|| command -v python3.12 || command -v python3.13) || { \
	echo "Python 3.11 or newer is needed, found none: install python3.11" \
	"or run make PYTHON=/path/to/python3.11 $@" >&2; exit 2; }; "$$python" -S
SETUP = $(ANY_PYTHON) tools/setup.py
# Verbs that only speak to what runs: without an environment, nothing does.
ASK = if [ -x $(BIN)/mlops ]; then $(BIN)/mlops $@; \
	else echo "nothing is running: no environment yet (make up makes it and starts all)"; fi

help: ## list these verbs
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' Makefile

up: ## start the API, its pages and MLflow in the background (PORT=8000 MLFLOW_PORT=5000)
	@$(SETUP) runtime
	@$(BIN)/mlops up

down: ## stop what make up started
	@$(ASK)

status: ## say what runs, where, and which model answers
	@$(ASK)

logs: ## show what the services print
	@$(ASK)

serve: ## run the API in this terminal until Ctrl-C (PORT=8000)
	@$(SETUP) runtime
	@exec $(BIN)/mlops serve

retrain: ## retrain what needs it (USE_CASE=housing REASON="why" does so without need)
	@$(SETUP) runtime
	@if [ -n "$$USE_CASE" ]; then $(BIN)/mlops retrain "$$USE_CASE" --reason "$$REASON"; \
	else $(BIN)/mlops watch --once; fi

test: ## run the fast tests (ARGS="-k drift" adds options of pytest)
	@$(SETUP) dev
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

test-all: ## run the slow tests: timed, privileged, from a bare clone
	@$(SETUP) dev
	@$(BIN)/python -m pytest -m slow $(ARGS)

check: ## check format, lint, types, layers, documents, workflow and what is deployed
	@$(SETUP) dev
	@$(BIN)/ruff check --quiet --select E9,F63,F7,F82 . # what cannot run fails first
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/python tools/docs.py --check
	@$(BIN)/python -m pytest -q tests/test_layers.py
	@$(BIN)/shellcheck .ci/run
	@$(BIN)/actionlint -shellcheck $(BIN)/shellcheck
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	@$(BIN)/zizmor --offline --no-progress --quiet --strict-collection --persona pedantic .github
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec compose.yaml
	@$(BIN)/python tools/manifests.py
	@$(BIN)/python tools/grafana.py --check

audit: ## look for known vulnerabilities, licences, secrets; list what ships (OFFLINE=1)
	@$(SETUP) dev
	@$(BIN)/python tools/audit.py $(if $(filter-out 0,$(OFFLINE)),--offline) $(ARGS)

format: ## put the code into its format, and mend what lint can mend
	@$(SETUP) dev
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .

bench: ## measure speed and accuracy (ARGS="serving --write")
	@$(SETUP) dev
	@$(BIN)/python -m benchmarks $(ARGS)

bench-peers: ## install other model servers, serve the same model with each, compare
	@$(SETUP) dev
	@$(BIN)/python -m benchmarks peers $(ARGS)

bench-reliability: ## provoke failures, count the damage (ARGS="--lines R1,R7 --scale goal")
	@$(SETUP) dev
	@$(BIN)/python -m benchmarks.reliability $(ARGS)

bench-accuracy: ## train the most accurate models on every split, compare (minutes; goes on)
	@$(SETUP) dev
	@$(BIN)/python -m benchmarks.accuracy $(ARGS)

screenshots: ## take the README's pictures of the dashboard (needs Debian's chromium)
	@$(SETUP) dev
	@$(BIN)/python tools/screenshots.py $(ARGS)

lock: ## pin the dependencies of pyproject.toml again (UPGRADE=1 takes newer ones)
	@$(ANY_PYTHON) tools/lock.py

image: ## build the container image mlops-housing-api
	@$(ANY_PYTHON) tools/image.py build

smoke: ## start the image, send it the README's request, look in its log, stop it
	@$(ANY_PYTHON) tools/image.py smoke

publish: ## push the image, tagged by version and commit (REPOSITORY=name/mlops-housing-api)
	@$(ANY_PYTHON) tools/image.py publish

deploy: ## apply deploy/kubernetes with a published image (IMAGE=name@sha256:...)
	@$(ANY_PYTHON) tools/image.py deploy

clean: ## remove caches and the environment, never data, models, runs or logs
	@if [ -x $(BIN)/mlops ]; then $(BIN)/mlops down || true; fi
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	@find api benchmarks src tests tools -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null; :
