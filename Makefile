# Everything that a fresh machine needs is Python; `make demo PYTHON=python3.12` chooses another one.
PYTHON ?= python3
# Arguments for the installation of torch alone, for example TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu".
TORCH_ARGS ?=

# Processes that run the tests; each computes with one thread.
WORKERS ?= 2

# Which mutants are drawn, and how many.
SEED ?= 0
COUNT ?= 48

# Release of node-llama-cpp that the GGUF tests ask.
LLAMA_CPP := 3.22.1

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q

.PHONY: help demo board test test-fast mutants check format golden docs clean
.DEFAULT_GOAL := help

help: ## Show this list.
	@grep -hE '^[a-z.-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z.-]+):.*## /\1|/' | \
		while IFS='|' read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

.venv: .venv/.installed ## Make the virtual environment with the pinned requirements.

.venv/.created:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) on this machine. Run: make $(or $(firstword $(MAKECMDGOALS)),demo) PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' || { \
		echo "llmtune needs Python 3.11 to 3.14 here; $(PYTHON) is $$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'). Run: make $(or $(firstword $(MAKECMDGOALS)),demo) PYTHON=python3.11" >&2; exit 1; }
	@echo "[1/4] Making the virtual environment .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/.installed: requirements.txt setup.py | .venv/.created
	@torch=$$(grep '^torch==' requirements.txt) && echo "[2/4] Installing $$torch (a large download: this can take minutes)" && \
		$(PIP) $(TORCH_ARGS) "$$torch"
	@echo "[3/4] Installing requirements.txt (some minutes on a slow line)"
	@$(PIP) -r requirements.txt
	@echo "[4/4] Installing llmtune itself"
	@$(PIP) --no-deps -e .
	@touch $@

.venv/.installed-test: requirements-test.txt requirements-test-nodeps.txt .venv/.installed
	@echo "[+] Installing requirements-test.txt"
	@$(PIP) -r requirements-test.txt
	@echo "[+] Installing requirements-test-nodeps.txt (deepspeed, gptqmodel and what it needs)"
	@BUILD_CUDA_EXT=0 DS_ACCELERATOR=cpu $(PIP) --no-build-isolation --no-deps \
		$$(grep -E '^(deepspeed|gptqmodel)==' requirements-test-nodeps.txt)
	@$(PIP) --no-deps -r requirements-test-nodeps.txt
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { \
		echo "[+] Installing chromium for the tests of the web page" && (apt-get install -y -qq chromium || \
		(apt-get update -qq && apt-get install -y -qq chromium)) >/dev/null 2>&1; } || \
		echo "    It cannot be installed here: those tests will be skipped." >&2
	@command -v npm >/dev/null && echo "[+] Installing llama.cpp for the tests of GGUF files" && npm install --silent \
		--no-save --ignore-scripts --omit=optional --no-audit --no-fund --prefix .venv/llama.cpp \
		node-llama-cpp@$(LLAMA_CPP) @node-llama-cpp/$$(node -p 'process.platform + "-" + process.arch')@$(LLAMA_CPP) || \
		echo "    llama.cpp, which npm brings, cannot be installed here: those tests will be skipped." >&2
	@touch $@

demo: .venv/.installed ## Fine-tune the embedded model, ask it before and after: three minutes on two cores, with the installation. WEB=1 opens a chat page.
	@$(BIN)/python examples/demo.py $(if $(WEB),--web)

board: .venv/.installed ## Open the board over this folder in a browser; installs what it needs.
	@$(BIN)/python -c "import nicegui" 2>/dev/null || { echo "[+] Installing the extra board" && $(PIP) -e '.[board]'; }
	@$(BIN)/llmtune board --open_browser true

test: check ## Everything that CI runs: the checks and all the tests.
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations=25

test-fast: .venv/.installed-test ## The tests that take up to a second each: three minutes on two cores.
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not medium and not slow and not gpu"

mutants: .venv/.installed-test ## Small faults of the code, drawn by SEED: do the tests of their modules fail? An hour at most; not in CI.
	$(BIN)/python -m tests.mutants --seed $(SEED) --count $(COUNT)

check: .venv/.installed-test ## Lint, format, types and spelling.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/codespell

format: .venv/.installed-test ## Let ruff repair and format the code.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

golden: .venv/.installed-test ## Regenerate tests/golden, scripts/ and docs/; review the difference.
	$(BIN)/python tests/golden/generate.py
	$(BIN)/python tests/golden/launch_texts.py
	$(BIN)/python scripts/generate.py
	$(BIN)/python docs/generate.py

docs: .venv/.installed-test ## Build the documentation into site/, without a network.
	$(BIN)/zensical build --strict
	@echo "Open site/index.html"

clean: ## Remove the virtual environment, caches and build products. What was trained stays.
	rm -rf .venv .cache build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	find llmtune tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
