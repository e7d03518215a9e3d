# make demo       the whole notebook on a small real model: no account, no Hub
# make notebook   the same for any model: make notebook MODEL=meta-llama/Llama-3.2-3B-Instruct [DOWNLOAD=no]
# make lab        open the notebook in JupyterLab
# make test       lint, types, tests
# make refresh    renew the committed notebook outputs and the pictures in charts/

PYTHON ?= $(shell command -v python3.11 || command -v python3)
MODEL ?= meta-llama/Llama-3.2-3B-Instruct
NOTEBOOK := base_model_visualize.ipynb
DEMO := SmolLM2-135M-Instruct
BIN := .venv/bin
READY := .venv/ready
TEST_READY := .venv/test-ready
DEMO_RUN := runs/$(DEMO)/$(NOTEBOOK)
SOURCES := $(NOTEBOOK) model_tools.py $(wildcard base_model/*.py)

# Nobody watches an executed notebook: no progress bars, and no time stamps that differ from run to run.
EXECUTE := HF_HUB_DISABLE_PROGRESS_BARS=1 $(BIN)/jupyter nbconvert --to notebook --execute $(NOTEBOOK) \
	--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.timeout=-1 \
	--KernelManager.transport=ipc --log-level=WARN --output-dir

.PHONY: demo notebook lab test refresh

demo: $(DEMO_RUN)
	@echo
	@echo "Made, in runs/$(DEMO)/:"
	@ls -1 runs/$(DEMO) | sed 's/^/  /'
	@echo "Read it: make lab, then open $(DEMO_RUN)"

$(DEMO_RUN): $(SOURCES) $(DEMO)/config.json
	MODEL=$(DEMO) $(EXECUTE) runs/$(DEMO)

notebook: $(READY)
	MODEL="$(MODEL)" $(EXECUTE) "runs/$(notdir $(MODEL))"
	@echo "Made: runs/$(notdir $(MODEL))/"

lab: $(READY)
	MODEL="$(MODEL)" $(BIN)/jupyter lab $(NOTEBOOK)

test: $(TEST_READY) $(DEMO)/config.json
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

refresh: $(TEST_READY) $(DEMO_RUN)
	$(BIN)/python -m tests.refresh $(DEMO_RUN)
	@touch $(DEMO_RUN)  # it is as new as the notebook that was just written from it

$(DEMO)/config.json: | $(READY)
	HF_HUB_DISABLE_PROGRESS_BARS=1 $(BIN)/python demo_model.py

$(READY): requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	@touch $@

$(TEST_READY): tests/requirements.txt $(READY)
	$(BIN)/pip install --quiet --requirement tests/requirements.txt
	@touch $@
