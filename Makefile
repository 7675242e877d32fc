# Every target makes what it needs: on a fresh machine with Python 3.11 and pip, `make demo` and `make test` are enough.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
KERNEL := CMakeLists.txt $(wildcard csrc/*.cpp csrc/*.hpp)

.PHONY: demo test test-milvus test-lowest test-vnni check bench sanitize docs figures venv clean

demo: .venv/.installed   ## tables and figures on 400 photos, into runs/demo/
	$(BIN)/diml demo

test: .venv/.complete    ## the default tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

# The server listens on all interfaces, whatever it is told; so it gets a network of its own, where the kernel allows.
ALONE = $(shell unshare --map-root-user --net ip link set lo up 2>/dev/null && echo unshare --map-root-user --net)

test-milvus: .venv/.complete .milvus/.installed   ## the tests that need a Milvus server, which they start and stop
	OMP_NUM_THREADS=1 $(ALONE) sh -c '$(if $(ALONE),ip link set lo up &&) exec $(BIN)/python -m pytest -m milvus tests/unit/search tests/laws/test_condition_laws.py'

test-lowest: .venv-lowest/.installed   ## the unit tests and laws with the lowest versions that pyproject.toml admits
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest --numprocesses auto --dist worksteal -o filterwarnings=default tests/unit tests/laws

# The package is a tool of this test alone. Later versions need glibc 2.38.
test-vnni: .venv/.complete   ## instruction sets with VNNI, in an emulated processor that has it
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps bochscpu-python==0.3.1
	$(BIN)/python -m pytest -m slow -rP tests/unit/matching/test_portable_kernel.py

check: .venv/.complete   ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/check_wording.py

bench: .venv/.complete   ## small sizes of all benchmarks, into runs/bench/
	$(BIN)/python benchmarks/regimes.py --images 3000 --queries 20 --json runs/bench/regimes.json
	$(BIN)/python benchmarks/iterations.py --queries 5 --json runs/bench/iterations.json
	$(BIN)/python benchmarks/rerank.py --queries 40 --runs 3 --pairs 300 --json runs/bench/rerank.json
	$(BIN)/python benchmarks/evaluate.py --images 1000 --classes 20 --plain-queries 100 --json runs/bench/evaluate.json
	$(BIN)/python benchmarks/loss.py --runs 3 --json runs/bench/loss.json
	$(BIN)/python benchmarks/peers.py --images 1000 --pairs 500 --runs 3 --peers pot_batch pot_batch_log torch_batch maxsim_cpu torch_maxsim faiss_flat torch_topk --json runs/bench/peers.json
	$(BIN)/python benchmarks/exact_plans.py --embeddings easy --queries 10 --pairs 100 --json runs/bench/exact_plans.json
	$(BIN)/python benchmarks/storage.py --embeddings orl orl-whitened --json runs/bench/storage.json
	$(BIN)/python benchmarks/memory.py --images 5000 --queries 500 --classes 1000 --json runs/bench/memory.json
	$(BIN)/python benchmarks/scaling.py --embeddings hard --queries 20 --plain-queries 5 --runs 1 --vary-images 1000 4000 \
		--vary-rerank-at 10 100 --vary-regions 4 16 49 --vary-dim 64 256 --plot runs/bench/scaling.png --json runs/bench/scaling.json
	$(BIN)/python benchmarks/search.py --images 10000 --queries 50 --json runs/bench/search.json
	$(BIN)/python benchmarks/startup.py --runs 3 --json runs/bench/startup.json
	$(BIN)/python benchmarks/limit.py --json runs/bench/limit.json
	$(BIN)/python benchmarks/embedding.py --images 128 --runs 3 --json runs/bench/embedding.json
	$(BIN)/python benchmarks/embedding_files.py --images 128 --runs 2 --models mobilenetv2_100 --json runs/bench/embedding_files.json

# The kernel is built again with the sanitizers, into build/sanitized, and imported from there: the import hook of the
# editable installation, which would come first, is removed.
sanitize: .venv/.complete   ## the tests of the kernel under AddressSanitizer and UndefinedBehaviorSanitizer
	rm -rf build/sanitized
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target build/sanitized \
		--config-settings=cmake.define.DIML_SANITIZE=ON --config-settings=build-dir=build/sanitize .
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
		PYTHONPATH=build/sanitized $(BIN)/python -c "import sys; \
		sys.meta_path = [finder for finder in sys.meta_path if 'ScikitBuild' not in type(finder).__name__]; \
		import diml, pytest; assert 'sanitized' in diml.__file__, diml.__file__; \
		sys.exit(pytest.main(['-n', '0', '-p', 'no:randomly', 'tests/unit/matching/test_native.py', 'tests/unit/matching/test_exact.py', 'tests/unit/matching/test_share.py', 'tests/unit/matching/test_maxsim.py', 'tests/unit/matching/test_votes.py', 'tests/unit/matching/test_codebooks.py', 'tests/unit/objectives/test_planned.py']))"

docs: .venv/.complete    ## the documentation as a site, into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

figures: .venv/.complete   ## draw the figures of the README and docs/explain.md again
	$(BIN)/python docs/draw_figures.py

venv: .venv/.complete    ## .venv with all extras

clean:                   ## remove .venv and what tools left behind
	rm -rf .venv .venv-lowest .milvus .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "diml needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

# A stamp is written only when its installation ended well, so an interrupted one is taken up again.
.venv/.installed: pyproject.toml $(KERNEL) | .venv/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[train,plot]'
	touch $@

.venv/.complete: pyproject.toml $(KERNEL) | .venv/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[all,bninception,dev]'
	touch .venv/.installed $@

# Apart from .venv: the wheel is a server with libraries of its own, and nothing of ours imports it.
.milvus/.installed: | .venv/bin/python
	$(BIN)/python -m venv .milvus
	.milvus/bin/python -m pip install --disable-pip-version-check --quiet --no-deps milvus==2.3.5
	touch $@

# uv finds the lowest versions that fit together, which pip cannot. Libraries of that age warn of newer ones that they
# need, so warnings are no errors here. Torch is that of .venv, as 2.4 comes with gigabytes of CUDA libraries of its own:
# make test-lowest LOWEST_TORCH="torch==2.4.0 torchvision==0.19.0" takes them. The test client of Starlette 0.46 needs httpx.
LOWEST_TORCH ?= $(shell $(BIN)/python -m pip freeze --disable-pip-version-check 2>/dev/null | grep -E '^torch(vision)?==')

.venv-lowest/bin/python:
	$(PYTHON) -m venv .venv-lowest

.venv-lowest/.installed: pyproject.toml $(KERNEL) | .venv/.complete .venv-lowest/bin/python
	.venv-lowest/bin/python -m pip install --disable-pip-version-check --quiet uv
	printf '%s\n' $(LOWEST_TORCH) > .venv-lowest/overrides.txt
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python \
		--resolution lowest-direct --override .venv-lowest/overrides.txt --config-settings build-dir=build/lowest \
		'.[all,faithfulness,bninception,dev]' 'httpx>=0.27'
	touch $@
