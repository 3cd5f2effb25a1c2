# Everything runs from .venv at the root; whichever target needs it first makes it. `make help` lists the targets.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PROMPT ?= a slice of pizza
STUBS := $(wildcard protos/synerdiff/v1/*.proto)
CHECKED := synerdiff services synerdiff_cli deploy tests bench docs/settings_reference.py docs/metrics_reference.py docs/scheduler_table.py

# pytest processes at once: half as many again as cores, as tests wait much. Each takes about a gigabyte.
WORKERS ?= $(shell echo $$(( ($$(getconf _NPROCESSORS_ONLN) * 3 + 1) / 2 )))

# Every process of a test run would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-gpu gpu-kit images images-test pins chart pytest beside alone lint typecheck manifests format protos docs clean

help:
	@echo "make demo [PROMPT='a red car']  set everything up, start it all, make one picture, stop"
	@echo "make test                       set everything up, then every check and every test"
	@echo "make test-gpu                   what needs a real NVIDIA GPU; in an environment with a CUDA build of torch"
	@echo "make gpu-kit                    .gpu-kit/: packages for a GPU machine without a network; see docs/gpu.md"
	@echo "make images [TAG=.. REGISTRY=..] the four container images, with docker; see deploy/docker/README.md"
	@echo "make images-test                build the images without docker and make pictures with them; root, buildah, mmdebstrap"
	@echo "make pins                       deploy/docker/pins: what images install, with hashes; after a change of constraints.txt"
	@echo "make chart                      build/synerdiff: a Helm chart of the manifests of deploy/k8s"
	@echo "make setup                      only make .venv with everything in it"
	@echo "make lint | typecheck | pytest  one part of make test; WORKERS=n: pytest processes at once"
	@echo "make manifests                  render and check the Kubernetes manifests of deploy/k8s"
	@echo "make format                     let ruff format the code"
	@echo "make protos                     generate the Python stubs from protos/"
	@echo "make docs                       generate docs/configuration.md and docs/metrics.md from the code"
	@echo "make clean                      remove .venv and caches"

setup: $(INSTALLED)

demo: $(INSTALLED)
	@$(BIN)/synerdiff demo "$(PROMPT)"

# What lint and typecheck have to say is kept until the tests beside them are done, so that it is seen.
test: $(INSTALLED)
	@status=0; said=$$(mktemp); \
	$(MAKE) --no-print-directory --keep-going lint typecheck > $$said 2>&1 & checking=$$!; \
	$(MAKE) --no-print-directory beside || status=$$?; \
	wait $$checking || status=$$?; cat $$said; rm $$said; \
	$(MAKE) --no-print-directory alone || status=$$?; \
	exit $$status

lint: $(INSTALLED)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "not formatted: run 'make format'"; exit 1; }
	@report=$$($(BIN)/lint-imports --no-logo) || { echo "$$report"; exit 1; }

typecheck: $(INSTALLED)
	@$(BIN)/mypy $(CHECKED)

# Only what has tests that run alone is read for them: all tests import much.
ALONE := $(shell grep -rl --include='*.py' 'mark\.alone' tests | sed 's|/conftest\.py||' | sort)

pytest: $(INSTALLED)
	@status=0; \
	$(MAKE) --no-print-directory beside || status=$$?; \
	$(MAKE) --no-print-directory alone || status=$$?; \
	exit $$status

beside: $(INSTALLED)
	@$(BIN)/pytest -m "not alone and not gpu" --numprocesses $(WORKERS) --maxprocesses 8 --dist worksteal

alone: $(INSTALLED)
	@$(BIN)/pytest -m "alone and not gpu" $(ALONE)

manifests: $(INSTALLED)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m deploy.checks

# PYTHON: an interpreter of your own with a CUDA build of torch and `pip install -e '.[worker,local,gpu,dev]'`.
PYTHON ?= $(BIN)/python
test-gpu:
	@$(PYTHON) -m pytest -m gpu -s tests/gpu

# What is in it comes from package registries; nothing of it needs .venv.
gpu-kit:
	@sh bench/gpu/kit.sh .gpu-kit

images:
	@sh deploy/docker/build.sh

images-test:
	@sh deploy/docker/images_test.sh

pins: $(INSTALLED)
	@PYTHON=$(BIN)/python sh deploy/docker/pins.sh

chart: $(INSTALLED)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m deploy.helm.make_chart build/synerdiff
	@echo "helm install synerdiff build/synerdiff: see deploy/helm/README.md"

format: $(INSTALLED)
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format .

protos: $(INSTALLED)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos \
		--python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. $(STUBS)

docs: $(INSTALLED)
	@$(BIN)/python docs/settings_reference.py > docs/configuration.md
	@$(BIN)/python -m docs.metrics_reference > docs/metrics.md

clean:
	find $(CHECKED) -name __pycache__ -prune -exec rm -rf {} +
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# The stamp is written last, so an interrupted set-up is taken up again by the next make.
$(INSTALLED): pyproject.toml constraints.txt
	@sh .ci/make_venv.sh $(VENV)
	@echo "Installing into $(VENV) (PyTorch is large: the first time takes a few minutes) ..."
	@$(BIN)/python -m pip install --quiet --quiet -c constraints.txt -e '.[worker,local,gpu,tracing,s3,dev]'
	@touch $@
