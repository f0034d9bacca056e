.DEFAULT_GOAL := help
.PHONY: help deps build wheel demo test test-all golden format lint bench clean

PRESET ?= release
BUILD = build/$(PRESET)
JOBS ?= $(shell nproc)
GENERATOR = $(if $(shell command -v ninja),-G Ninja) $(if $(shell command -v ccache),-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
SOURCES = $(shell git ls-files -co --exclude-standard -- '*.cpp' '*.h' '*.cuh' '*.cu' ':!tests/golden')

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "PRESET=release|dev|asan-ubsan|tsan picks the build (CMakePresets.json)"

deps: ## install what the build needs (Debian 12, Ubuntu 24.04); NVRTC into .venv where there is no CUDA toolkit
	@bash cmake/deps.sh

build: ## configure and compile into build/release
	@[ -f $(BUILD)/CMakeCache.txt ] || cmake --preset $(PRESET) $(GENERATOR)
	cmake --build $(BUILD) -j $(JOBS)

wheel: ## the Python package as dist/ssmjit-*.whl, for any Python 3; needs libc only
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) .venv/bin/pip wheel --quiet --disable-pip-version-check --no-deps \
	  --no-build-isolation -w dist ./python
	@ls dist/ssmjit-*.whl

demo: build ## from a model's config to its kernels: described, looked up, compiled; measured where there is a GPU
	@examples/demo.sh $(BUILD)/ssmjit

test: build ## every test; the last line is "N passed, N failed, N skipped"
	@python3 tests/run.py $(BUILD) -j $(JOBS)

test-all: build ## the same over the full variant space (long)
	@SSMJIT_TEST_ALL=1 python3 tests/run.py $(BUILD) -j $(JOBS)

golden: build ## rewrite tests/golden from what is emitted now; review the diff
	SSMJIT_UPDATE_GOLDEN=1 $(BUILD)/tests/test_templates --gtest_filter='*GoldenFile*' --gtest_brief=1

format: ## clang-format over all sources
	clang-format -i $(SOURCES)

lint: build ## clang-format as a check, and clang-tidy over the library and the executable
	clang-format --dry-run -Werror $(SOURCES)
	printf '%s\n' $(filter codegen/%.cpp heuristics/%.cpp jit/%.cpp autotune/%.cpp cli/%.cpp,$(SOURCES)) | \
	  xargs -P $(JOBS) -n 1 clang-tidy -p $(BUILD) --quiet

bench: build ## host costs, and the GPU's where there is one
	@found=0; for b in $(BUILD)/bench/bench_*; do [ -f "$$b" ] && [ -x "$$b" ] || continue; found=1; "$$b" || exit 1; done; \
	 [ $$found = 1 ] || { echo "no benchmark was built"; exit 1; }

clean: ## remove the build folders
	rm -rf build dist
