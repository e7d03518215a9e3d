# make demo       the whole notebook on a small real model: no account, no Hub
# make notebook   the same for any model: make notebook MODEL=meta-llama/Llama-3.2-3B-Instruct [DOWNLOAD=no]
# make report     a page of the last run, without code, to send to others: runs/<model name>/report.html
# make zip        the project in one file, for Colab or Kaggle: base_model_visualize.zip
# make train      a training script for the demo model, run for 20 steps on this machine, compared with its plan
# make lab        open a copy of the notebook in JupyterLab: runs/base_model_visualize.ipynb
# make test       lint, types, tests
# make benchmark  headers against json.loads; generation against a bare call, its limit and llama.cpp
# make refresh    renew the committed notebook outputs and the pictures in charts/

# Whatever is given on the command line (MODEL, DOWNLOAD, PROMPT, ...) goes through the environment, as it stands, to
# Python, which makes the names of files; no shell reads it, nor does make, which would run a $(shell ...) in it.
$(foreach given,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(given)))),\
	$(eval override $(given) := $$(value $(given)))$(eval export $(given))))

override NOTEBOOK := base_model_visualize.ipynb
override DEMO := SmolLM2-135M-Instruct
override BIN := .venv/bin
override READY := .venv/ready
override TEST_READY := .venv/test-ready
override DEMO_RUN := runs/$(DEMO)/$(NOTEBOOK)
override SOURCES := $(NOTEBOOK) model_tools.py $(wildcard base_model/*.py base_model/*/*.py base_model/show/report_page/*)

.PHONY: demo demo-model notebook report train zip lab test benchmark refresh

demo: $(DEMO_RUN)
	@echo
	@echo "Made, in runs/$(DEMO)/:"
	@ls -1 runs/$(DEMO) | sed 's/^/  /'
	@echo "Read it: open runs/$(DEMO)/report.html in a browser. To change it and run it again: make lab"

$(DEMO_RUN): $(SOURCES) | demo-model
	$(BIN)/python model_tools.py notebook $(DEMO)

notebook: $(READY)
	$(BIN)/python model_tools.py notebook

report: $(READY)
	$(BIN)/python model_tools.py page

train: demo-model
	$(BIN)/python model_tools.py train $(DEMO)

zip:
	git archive --format=zip --output=base_model_visualize.zip HEAD

lab: $(READY)
	exec $(BIN)/python model_tools.py lab

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
	@"$${PYTHON:-$$(command -v python3.11 || command -v python3)}" -c \
	"import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=...')"
	"$${PYTHON:-$$(command -v python3.11 || command -v python3)}" -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	@touch $@

$(TEST_READY): tests/requirements.txt $(READY)
	$(BIN)/pip install --quiet --requirement tests/requirements.txt
	@touch $@
