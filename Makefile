# Everything runs in .venv; a fresh machine needs Python 3.11 or newer, and no root.
PYTHON ?= python3
BIN := .venv/bin
CT ?=
STATES ?= 3000
FILES ?= 5500
MINUTES ?= 60
CALLS ?= 10000

.DEFAULT_GOAL := help


.PHONY: help install demo web test-browser openapi-check test lint types layers unit test-states test-files test-hostile fuzz test-tenants test-issuer test-monitoring test-proxies first-hour docs images chaos chaos-small soak k8s-check load load-check test-clients audit-code audit-dependencies sbom format constraints clean

help: ## show the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: .venv/.installed ## build .venv with everything

.venv/.installed: pyproject.toml constraints.txt clients/python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Lobewise needs Python 3.11 or newer; say which one: make install PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e clients/python -e '.[api,worker,dev]'
	@touch $@

demo: install ## score a scan over HTTP: make demo [CT=scan.nii.gz | CT=dicom.zip | CT=dicom-folder/] [LOOK=1: and look at it in a browser]
	$(if $(LOOK),-command -v npm > /dev/null && $(MAKE) web)
	$(BIN)/lobewise demo $(if $(LOOK),--look) $(if $(CT),"$(CT)")

web: web/node_modules/.installed ## build the pages of the gateway into api/web (needs node and npm)
	cd web && npx tsc --noEmit && npx vite build --logLevel warn

web/node_modules/.installed: web/package.json web/package-lock.json
	cd web && npm ci --no-fund --no-audit --silent
	@touch $@

test: install lint types layers unit ## all checks and tests

lint: install ## ruff and hadolint: style and common faults
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/hadolint Dockerfile.api Dockerfile.worker

types: install ## mypy, strict
	$(BIN)/mypy
	MYPYPATH=. $(BIN)/mypy --follow-imports=silent k8s/measure.py
	MYPYPATH=. $(BIN)/mypy --follow-imports=silent -p tests.chaos
	MYPYPATH=. $(BIN)/mypy --follow-imports=silent -p tests.supply
	MYPYPATH=. $(BIN)/mypy --follow-imports=silent tests/load/audit.py tests/load/counting.py
	MYPYPATH=. $(BIN)/mypy --follow-imports=silent $(filter-out %/test_images.py,$(wildcard tests/images/*.py))

layers: install ## who may import whom
	$(BIN)/lint-imports

unit: install ## pytest, on two processes
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

test-states: install ## jobs in every order of steps, a quarter of an hour: make test-states [STATES=3000]
	LOBEWISE_TEST_STATES=$(STATES) $(BIN)/pytest -s tests/jobs/test_state_machine.py tests/jobs/test_lifecycle.py

test-tenants: install ## calls that name another tenant's ids, a quarter of an hour: make test-tenants [CALLS=10000]
	LOBEWISE_TEST_TENANT_CALLS=$(CALLS) $(BIN)/pytest -s tests/api/test_tenants.py

test-files: install ## generated files of every format, half an hour: make test-files [FILES=5500]
	LOBEWISE_TEST_FILES=$(FILES) $(BIN)/pytest -q tests/pipeline/io/formats/test_generated_files.py tests/pipeline/io/formats/test_dicom_worlds.py

test-hostile: install ## files that mean harm, through a whole service: make test-hostile [ONLY=zip]
	$(BIN)/python -m tests.support.hostile --only "$(ONLY)"

fuzz: install ## fuzz the readers of all formats, guided by coverage: make fuzz [MINUTES=60] [ONLY=dicom,zip]
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) --only "$(ONLY)"

first-hour: install clients/postman/node_modules/.installed ## a notebook and a collection of all calls, run against a service (npm)
	$(BIN)/python -m tests.first_hour

clients/postman/node_modules/.installed: clients/postman/package.json
	npm install --prefix clients/postman --no-package-lock --no-fund --no-audit --silent
	@touch $@

test-browser: install web .venv/.browser ## the pages in a real browser: types, WCAG, policy, orientation (node, npm; Debian: chromium)
	command -v chromium
	$(BIN)/pytest tests/browser

.venv/.browser: constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt playwright
	@touch $@

test-issuer: install tests/access/node_modules/.installed ## tokens of a real OpenID Connect issuer (node and npm)
	$(BIN)/python -m tests.access

tests/access/node_modules/.installed: tests/access/package.json
	npm install --prefix tests/access --no-package-lock --no-fund --no-audit --silent
	@touch $@

docs: install ## the documentation as a site, in build/site; strict: no dead link, nothing from elsewhere
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python -m tests.support.site_check build/site

test-monitoring: install ## alert rules and metric names, with promtool (Debian: prometheus)
	command -v promtool
	$(BIN)/pytest tests/api/test_monitoring.py

CHAOS := PYTHONPATH=. $(BIN)/python -m

chaos: install ## attack the service: 2000 scans, 200 kill -9 and 100 other faults, then the drills (an hour or two)
	$(CHAOS) tests.chaos --seed $(or $(SEED),1) --jobs 2000 --kills 200 --others 100
	$(CHAOS) tests.chaos --seed $(or $(SEED),1) --jobs 200 --kills 10 --others 30 --store s3
	$(CHAOS) tests.chaos --seed $(or $(SEED),1) --jobs 200 --kills 10 --others 20 --timing shipped --pause-seconds 5
	$(CHAOS) tests.chaos.drills

chaos-small: install ## the same in minutes: 100 scans and 20 faults, small drills; CI runs it
	$(CHAOS) tests.chaos --seed $(or $(SEED),1) --jobs 100 --kills 8 --others 12
	$(CHAOS) tests.chaos.drills --scale 0.05

soak: install ## an hour of mixed load: does anything grow?
	$(CHAOS) tests.chaos.soak

test-proxies: install ## behind a real nginx and a real HAProxy (Debian: nginx-light haproxy)
	PATH=$$PATH:/usr/sbin; command -v nginx && command -v haproxy
	$(BIN)/pytest tests/proxies

images: install ## build the images, score a scan with them (as root; Debian: buildah crun debootstrap iproute2)
	$(BIN)/python -m tests.images.make $(if $(ONLY),--only $(ONLY))

openapi-check: install tests/openapi/node_modules ## lint the OpenAPI document, and compare it with the last release's (needs node and npm)
	$(BIN)/python -m tests.openapi.breaking
	cd tests/openapi && REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true npx redocly lint openapi.json --max-problems 100
	cd tests/openapi && npx spectral lint openapi.json --ruleset spectral.yaml --fail-severity hint

tests/openapi/node_modules: tests/openapi/package.json
	cd tests/openapi && npm install --no-audit --no-fund --no-package-lock --silent
	@touch $@

k8s-check: .venv-k8s/.installed ## render the Kubernetes overlays and look for faults, types of the checker included
	MYPYPATH=k8s .venv-k8s/bin/mypy --strict --exclude measure.py k8s
	.venv-k8s/bin/python k8s/check.py

.venv-k8s/.installed: k8s/requirements.txt
	$(PYTHON) -m venv .venv-k8s
	.venv-k8s/bin/pip install --quiet --disable-pip-version-check -r k8s/requirements.txt
	@touch $@

load: install .venv-load/.installed ## 50 clients post 60 MiB scans, 500 poll: latency, throughput, memory, saturation (10 minutes, 35 GB of disk)
	.venv-load/bin/python -m tests.load.run

# They measure parts of the service from within, and need what it needs.
IN_THE_SERVICE := tests/load/audit.py tests/load/counting.py tests/load/turns.py

load-check: install .venv-load/.installed ## the same with a few clients for a few seconds: does it work still
	MYPYPATH=. .venv-load/bin/mypy --strict --follow-imports=silent $(filter-out $(IN_THE_SERVICE),$(wildcard tests/load/*.py))
	.venv-load/bin/python -m tests.load.run --light

.venv-load/.installed: tests/load/requirements.txt
	$(PYTHON) -m venv .venv-load
	.venv-load/bin/pip install --quiet --disable-pip-version-check -r tests/load/requirements.txt
	@touch $@

audit-code: install ## bandit: each finding is mended or has its reason; CI runs it
	$(BIN)/python -m tests.supply.code

audit-dependencies: install ## pip-audit on all pins; fails where nobody knows (3) as where one is vulnerable (1); CI runs it
	$(BIN)/python -m tests.supply.dependencies

sbom: install ## CycloneDX bills of materials of both images, in build/sbom; CI runs it
	$(BIN)/python -m tests.supply.materials

format: install ## let ruff mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

constraints: ## pin what .venv holds now into constraints.txt
	$(BIN)/pip freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//' > constraints.txt

test-clients: install .venv-clients/.installed ## generate clients with ten generators, drive each against a service: make test-clients [ONLY=orval] [WRITE=1]
	$(BIN)/python -m tests.clients $(if $(ONLY),--only "$(ONLY)") $(if $(WRITE),--write) $(if $(ALL),--all)

.venv-clients/.installed: tests/clients/requirements.txt tests/clients/package-lock.json
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
	cd tests/clients && PATH="$(CURDIR)/.venv-clients/bin:$$PATH" npm ci --no-audit --no-fund --ignore-scripts --loglevel=error
	@touch $@

clean: ## remove .venv and everything that was generated
	rm -rf .venv api/web web/node_modules clients/postman/node_modules tests/access/node_modules .venv-k8s .venv-load .venv-clients tests/clients/node_modules tests/clients/build .images out build *.egg-info lobewise-data .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
