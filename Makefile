# make demo       the whole notebook on a small real model: no account, no Hub
# make notebook   the same for any model: make notebook MODEL=meta-llama/Llama-3.2-3B-Instruct [DOWNLOAD=no]
# make report     a page of the last run, without code, to send to others: runs/<model name>/report.html
# make zip        the project in one file, for Colab or Kaggle: base_model_visualize.zip
# make train      a training script for the demo model, run for 20 steps on this machine, beside its plan
# make lab        open the notebook in JupyterLab
# make test       lint, types, tests
# make benchmark  headers against json.loads; generation against a bare call, its limit and llama.cpp
# make refresh    renew the committed notebook outputs and the pictures in charts/

PYTHON ?= $(shell command -v python3.11 || command -v python3)
MODEL ?= meta-llama/Llama-3.2-3B-Instruct
NAME = $(shell basename "$(MODEL)")
NOTEBOOK := base_model_visualize.ipynb
DEMO := SmolLM2-135M-Instruct
# `make lab` without a MODEL opens on the demo model when it is there
LAB_MODEL = $(if $(filter file,$(origin MODEL)),$(or $(patsubst %/config.json,%,$(wildcard $(DEMO)/config.json)),$(MODEL)),$(MODEL))
RUN_NAME = $(shell basename "$(LAB_MODEL)")
BIN := .venv/bin
READY := .venv/ready
TEST_READY := .venv/test-ready
DEMO_RUN := runs/$(DEMO)/$(NOTEBOOK)
SOURCES := $(NOTEBOOK) model_tools.py $(wildcard base_model/*.py base_model/*/*.py base_model/show/report_page/*)

# Nobody watches an executed notebook: no progress bars, and no time stamps that differ from run to run. The kernel is
# reached through files of its own (ipc): by the network, which is the default, it warns of being heard.
EXECUTE := HF_HUB_DISABLE_PROGRESS_BARS=1 $(BIN)/jupyter nbconvert --to notebook --execute $(NOTEBOOK) \
	--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.timeout=-1 \
	--KernelManager.transport=ipc --KernelManager.ip="$$(mktemp -u)-kernel" --log-level=WARN --output-dir
# Text that was printed word by word, as one output.
MERGE := $(BIN)/jupyter nbconvert --to notebook --inplace --CoalesceStreamsPreprocessor.enabled=True --log-level=ERROR

# A page of text, tables and charts in one file: no code cells, no script, nothing from the network.
PAGE := $(BIN)/jupyter nbconvert --to html --no-input --template report_page \
	--TemplateExporter.extra_template_basedirs=base_model/show --log-level=ERROR --output report.html

.PHONY: demo demo-model notebook report train zip lab test benchmark refresh

demo: $(DEMO_RUN)
	@echo
	@echo "Made, in runs/$(DEMO)/:"
	@ls -1 runs/$(DEMO) | sed 's/^/  /'
	@echo "Read it: make lab, then open $(DEMO_RUN)"

$(DEMO_RUN): $(SOURCES) | demo-model
	MODEL=$(DEMO) $(EXECUTE) runs/$(DEMO)
	@$(MERGE) $@
	$(PAGE) $@

notebook: $(READY)
	@$(BIN)/python model_tools.py get "$(MODEL)"
	MODEL="$(MODEL)" $(EXECUTE) "runs/$(NAME)"
	@$(MERGE) "runs/$(NAME)/$(NOTEBOOK)"
	$(PAGE) "runs/$(NAME)/$(NOTEBOOK)"
	@echo "Made: runs/$(NAME)/"

report: $(READY)
	$(PAGE) "runs/$(RUN_NAME)/$(NOTEBOOK)"

train: demo-model
	$(BIN)/python model_tools.py train $(DEMO)

zip:
	git archive --format=zip --output=base_model_visualize.zip HEAD

lab: $(READY)
	MODEL="$(LAB_MODEL)" PYTHONPATH="$(CURDIR)" $(BIN)/jupyter lab $(NOTEBOOK)

test: $(TEST_READY) demo-model
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile  # torch's threads would fight for the cores

benchmark: $(TEST_READY) demo-model
	$(BIN)/python -m tests.benchmark
	$(BIN)/python -m tests.benchmark_generation

refresh: $(TEST_READY) $(DEMO_RUN)
	$(BIN)/python -m tests.refresh $(DEMO_RUN)
	@touch $(DEMO_RUN)  # it is as new as the notebook that was just written from it

demo-model: $(READY)
	@HF_HUB_DISABLE_PROGRESS_BARS=1 $(BIN)/python model_tools.py demo

$(READY): requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=...')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	@touch $@

$(TEST_READY): tests/requirements.txt $(READY)
	$(BIN)/pip install --quiet --requirement tests/requirements.txt
	@touch $@
