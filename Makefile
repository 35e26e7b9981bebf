# Every target is a line or two that call the command `grasp` or a tool; `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

export GRASP_HOME ?= $(CURDIR)/.grasp
VENV := .venv
PYTHON := $(VENV)/bin/python
GRASP := $(VENV)/bin/grasp
RUN := $(PYTHON) -m grasp.environment
INSTALLED := $(VENV)/.installed
WRITTEN := airflow benchmarks data_docs demo.mk demos downloads feast java jre lake logs metrics milvus* mlflow* models quality releases source stages training

# What the last demo left, its clock included. These targets show it until the file is removed.
ifneq ($(filter serve airflow sql,$(MAKECMDGOALS)),)
EMPTY :=
-include $(subst $(EMPTY) ,\ ,$(GRASP_HOME))/demo.mk
endif

.PHONY: help setup demo test check lint fast serve airflow sql bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(INSTALLED): requirements/base.txt requirements/dev.txt requirements/constraints.txt requirements/install.sh
	@bash requirements/install.sh $(VENV)
	@touch $@

setup: $(INSTALLED) ## install packages from exact pins, Java if missing, model weights and demo data
	@$(RUN) $(PYTHON) requirements/java.py
	@$(RUN) $(PYTHON) requirements/spark_classes.py
	@$(GRASP) fetch $(if $(DATA),--models)

demo: setup ## both DAGs on MovieLens-100K, then recommendations; DATA=FOLDER runs it on your own data
	@$(GRASP) demo $(if $(DATA),--data "$(DATA)")

test: setup ## the whole test-suite
	@$(RUN) $(PYTHON) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: $(INSTALLED) ## linters, types, import rules and the fast tests, side by side
	@$(MAKE) --no-print-directory --jobs=2 lint fast

lint: $(INSTALLED) ## ruff, mypy and import rules
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(RUN) lint-imports

fast: $(INSTALLED) ## the tests that need no Spark, model, server or browser
	@$(RUN) $(PYTHON) -m pytest -q -n 2 -m "not spark and not models and not integration and not e2e"

serve: $(INSTALLED) ## HTTP server for the release in force
	@$(GRASP) serve

airflow: setup ## Airflow with its UI, both DAGs loaded
	@$(GRASP) airflow

# The query goes through the environment: the shell must not read its quotes and lines as its own.
sql: $(INSTALLED) ## DuckDB on every table and feature view; QUERY="..." answers a query, FORMAT=csv as CSV
	@$(GRASP) sql $${QUERY:+"$$QUERY"} $(if $(FORMAT),--format "$(FORMAT)")

bench: $(INSTALLED) ## quality benchmark, resumable; DATA=FOLDER OUT=FOLDER, else MovieLens-100K
	@$(RUN) $(PYTHON) -m benchmarks.quality --data "$(or $(DATA),movielens)" --out "$(or $(OUT),$(GRASP_HOME)/quality)"

clean: ## remove everything the system wrote below GRASP_HOME, but not the virtual environment
	@[ ! -d "$(GRASP_HOME)" ] || { cd "$(GRASP_HOME)" && rm -rf $(WRITTEN); }
