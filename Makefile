# Everything runs in .venv, made on first use. `make demo` is the place to start.

PYTHON ?= python3
BIN := .venv/bin
# Several processes compute on the same cores; OpenMP threads that spin while they wait slow each other down.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo serve gateway load-test test test-long faults soak lint format bench bench-gpu demo-checkpoint setup clean

demo: setup ## start the server, make a sheet of pictures, say where it is
	$(BIN)/python tools/demo.py

serve: setup ## start the server; options: make serve ARGS="--free-ports"
	$(BIN)/python tools/serve.py $(ARGS)

gateway: setup ## Triton, and the REST API and the playground in front of it; options: make gateway ARGS="--port 9000"
	$(BIN)/python tools/gateway.py $(ARGS)

load-test: setup ## half a minute of Locust against Triton and the gateway; options: make load-test ARGS="-- --rate 2"
	$(BIN)/python tools/load_test.py $(ARGS)

test: setup ## the tests, on a real Triton, real databases and a real browser, but for the longest; options: make test ARGS="-k stream"
	tests/packages.sh
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m "not long" $(ARGS)

test-long: setup ## what takes minutes more: every process killed or hung in turn, 300 generations of which half are left
	tests/packages.sh
	$(BIN)/python -m pytest -m long --deselect tests/faults/test_soak.py $(ARGS)

faults: setup ## every fault that is survived, as a table in output/faults.md; ten minutes
	tests/packages.sh
	$(BIN)/python -m pytest tests/faults --deselect tests/faults/test_soak.py $(ARGS)

soak: setup ## memory over thousands of requests, as a table in output/soak.md; half an hour
	$(BIN)/python -m pytest tests/faults/test_soak.py $(ARGS)

lint: setup ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

REPORTS := docs/benchmarks
BENCH := $(BIN)/python tools/bench.py
# openvino is worth adding on a CPU; it wants .venv/bin/pip install '.[openvino]'
CONTENDERS ?= diffusers,diffusers-best,engine,served

bench: setup ## baselines, engine and server side by side on this CPU; two hours on two cores; options: make bench CONTENDERS=openvino,engine
	$(BENCH) --device CPU --architecture test --contenders $(CONTENDERS) --repeats 10 --report $(REPORTS)/cpu-test
	$(BENCH) --device CPU --architecture test --scenario mixed --report $(REPORTS)/cpu-test-mixed
	$(BENCH) --device CPU --architecture test --scenario throughput --report $(REPORTS)/cpu-test-throughput
	$(BENCH) --device CPU --architecture test --scenario trace --report $(REPORTS)/cpu-test-trace
	$(BENCH) --device CPU --architecture test --scenario near-capacity --repeats 3 --run-seconds 600 --report $(REPORTS)/cpu-test-near-capacity
	$(BENCH) --device CPU --architecture test --scenario first-signs --repeats 10 --report $(REPORTS)/cpu-test-first-signs
	$(BENCH) --device CPU --architecture test --scenario gateway --repeats 20 --report $(REPORTS)/cpu-test-gateway
	$(BENCH) --device CPU --architecture tiny-sd --scenario start --repeats 4 --report $(REPORTS)/cpu-tiny-sd-start
	$(BENCH) --device CPU --architecture tiny-sd --contenders $(CONTENDERS) --report $(REPORTS)/cpu-tiny-sd

bench-gpu: setup ## the same on the GPU, with full-size Tiny-SD
	$(BENCH) --device GPU --contenders $(CONTENDERS) --repeats 6 --report $(REPORTS)/gpu-tiny-sd
	$(BENCH) --device GPU --scenario mixed --report $(REPORTS)/gpu-tiny-sd-mixed
	$(BENCH) --device GPU --scenario throughput --report $(REPORTS)/gpu-tiny-sd-throughput
	$(BENCH) --device GPU --scenario trace --report $(REPORTS)/gpu-tiny-sd-trace
	$(BENCH) --device GPU --scenario near-capacity --repeats 3 --run-seconds 600 --report $(REPORTS)/gpu-tiny-sd-near-capacity
	$(BENCH) --device GPU --scenario first-signs --repeats 10 --report $(REPORTS)/gpu-tiny-sd-first-signs
	$(BENCH) --device GPU --scenario gateway --repeats 20 --report $(REPORTS)/gpu-tiny-sd-gateway

demo-checkpoint: setup ## train the built-in checkpoint from nothing; some hours on two cores, goes on where it was broken off
	$(BIN)/python tools/demo_checkpoint.py

setup: .venv/installed ## install everything into .venv

.venv/installed: pyproject.toml client/pyproject.toml gateway/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
		{ echo "Python 3.11 or 3.12 is needed; $(PYTHON) is another. Name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || \
		{ echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Installing into .venv; this takes some minutes the first time"
	$(BIN)/python -m pip install --quiet --editable ./client --editable './gateway[test]' --editable '.[server,train,load,dev]'
	@touch $@

clean: ## remove what was made here
	rm -rf .venv .cache output build *.egg-info client/*.egg-info gateway/*.egg-info engine/*.egg-info
