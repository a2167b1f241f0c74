# make demo   the main job: prune a digits classifier, export it, run it in LiteRT (writes runs/demo/)
# make test   the tests, on TensorFlow and then on JAX
# make test-arm   what sparse files do on emulated ARM, against what is predicted
# Both make an environment in .venv first. PYTHON=python3.12 picks another interpreter, WORKERS=4
# the number of processes for the tests (5 GB of memory each).

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
RUN := $(VENV)/bin/python

# Versions of LiteRT for test-arm; tflite-2.14.0 is its predecessor tflite-runtime.
ARM_LITERT := 2.3.0 2.1.0 1.4.0 1.2.0 tflite-2.14.0

.PHONY: demo test test-slow test-arm bench clean

demo: $(VENV)/demo.stamp
	$(RUN) -m recipes.digits_demo

# A thread for each process of the tests: they share the cores already.
test test-slow: export TF_NUM_INTRAOP_THREADS := 1
test test-slow: export TF_NUM_INTEROP_THREADS := 1
test test-slow: export OMP_NUM_THREADS := 1
test test-slow: export XLA_FLAGS := --xla_cpu_multi_thread_eigen=false

test: $(VENV)/test.stamp
	KERAS_BACKEND=tensorflow $(RUN) -m pytest -n $(WORKERS) -m "not slow"
	KERAS_BACKEND=jax $(RUN) -m pytest -n $(WORKERS) -m "any_backend and not slow"

test-slow: $(VENV)/test.stamp
	$(RUN) -m pytest -m slow

# Needs Debian (qemu-user), gcc and the network; writes benchmarks/results/arm_*.json.
test-arm: $(VENV)/test.stamp build/arm/made.stamp
	cd tests && KERAS_BACKEND=tensorflow ../$(RUN) -m arm ../build/arm graphs
	cd tests && KERAS_BACKEND=tensorflow ../$(RUN) -m arm ../build/arm networks
	cd tests && KERAS_BACKEND=tensorflow ../$(RUN) -m arm ../build/arm exports

bench: $(VENV)/test.stamp
	$(RUN) -m benchmarks

clean:
	rm -rf $(VENV) build dist runs *.egg-info .pytest_cache .hypothesis

build/arm/made.stamp: tools/arm/setup tools/arm/insn.c $(VENV)/made.stamp
	for version in $(ARM_LITERT); do PYTHON=$(RUN) tools/arm/setup build/arm $$version || exit 1; done
	@touch $@

# The last step writes the stamp, so that what was interrupted is done again.
$(VENV)/made.stamp:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or newer is needed; $(PYTHON) is {v.major}.{v.minor}. Try make PYTHON=python3.11")'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/%.stamp: setup.py $(VENV)/made.stamp
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@
