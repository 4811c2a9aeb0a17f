# Sluice. `make help` lists the targets.
#
# Every source file is found by its place in the tree:
#   common/ graphs/ kernels/ kernels/cpu/ stages/X/   one static library
#   stages/X/main.c           the program sluice-X (stages/cli: sluice), in bin/; a folder without
#                             one (stages/bench, job, seat, sizes) is library alone
#   tests/test_X.c            a test
#   tests/bench_X.c (or .sh)  a benchmark
#   tests/fuzz_X.c            a libFuzzer target
#   tests/helper_X.c          a program that tests start; helper_weights makes golden weights
#   kernels/cuda/*.cu, *.c    the plug-in sluice_cuda.so, only where nvcc is
#   tests/gpu_X.c             a test of the plug-in
# Objects go to build/FLAVOUR. Flavours: release; asan (addresses, leaks, undefined behaviour), tsan
# (threads), fuzz (clang) and werror (lint), with their programs in build/FLAVOUR/bin. A change of
# compiler or flags builds anew what it concerns.
#
# Settings: CC CXX NVCC CFLAGS CXXFLAGS LDFLAGS PREFIX DESTDIR as everywhere, and
#   JOBS=n                    compilers at once
#   ARCH=x86-64-v3            another machine than this one; ARCH= for any
#   WERROR=1                  warnings are errors
#   CUDA=0                    no plug-in, even where nvcc is
#   ARCHES="90a"              the GPUs that the plug-in is for (80: A100; 90a: H100, H200; 80ptx: later
#                             GPUs take the A100's code and choices)
#   CUDNN_DIR=DIR             cuDNN's include/ and lib/, else looked for in the toolkit, in /usr and
#                             in python3's nvidia-cudnn package
#   CUDA_INCLUDE, CUDA_LIBS   flags in their place
#   NVCCFLAGS                 more flags for nvcc

define newline


endef

FLAVOUR ?= release
ARCH    ?= native
PREFIX  ?= /usr/local
JOBS    ?= $(shell nproc 2>/dev/null || echo 2)

B       := build/$(FLAVOUR)
BIN     := $(if $(filter release,$(FLAVOUR)),bin,$(B)/bin)
TBIN    := $(B)/tests

ifeq ($(FLAVOUR),fuzz)
CC      := clang
CXX     := clang++
endif

# ---- flags ----

PKGS     := libzmq libavfilter libavformat libavcodec libswscale libavutil libconfig jansson openblas sentencepiece libutf8proc \
            libmicrohttpd libcurl sqlite3 hiredis libjpeg zlib
SAN_asan := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
SAN_tsan := -fsanitize=thread
SAN_fuzz := -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
SAN      := $(SAN_$(FLAVOUR))
OMP      := $(if $(filter tsan fuzz,$(FLAVOUR)),-Wno-unknown-pragmas,-fopenmp)
WARN     := -Wall -Wextra -Wshadow $(if $(WERROR),-Werror)
WARN_C   := $(WARN) -Wpointer-arith -Wmissing-prototypes -Wstrict-prototypes -Wvla
SHARED_FLAGS := $(if $(SAN),-O1,-O3 -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3) -g $(if $(ARCH),-march=$(ARCH)) -D_GNU_SOURCE -I. $(SAN) $(OMP) \
            -fPIC -fno-semantic-interposition -ffp-contract=off -fno-math-errno -fno-trapping-math -MMD -MP \
            $(shell pkg-config --cflags $(PKGS) cmocka 2>/dev/null | sed 's/-I/-isystem /g')
C_FLAGS   := -std=c17 $(WARN_C) $(SHARED_FLAGS) $(CFLAGS)
CXX_FLAGS := -std=c++17 $(WARN) $(SHARED_FLAGS) $(CXXFLAGS)
# A program is linked with the libraries that it uses: a stage starts without HTTP's and SQLite's.
LD_FLAGS  := $(SAN) $(OMP) -rdynamic -Wl,--as-needed $(LDFLAGS)
LD_LIBS   := $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lstdc++ -lm -lpthread -ldl $(LDLIBS)

# ---- what is there ----

LIB_SRC := $(filter-out %/main.c,$(wildcard common/*.c graphs/*.c kernels/*.c kernels/cpu/*.c stages/*.c stages/*/*.c)) \
           $(wildcard common/*.cc stages/*/*.cc)
LIB_O   := $(patsubst %,$(B)/%.o,$(basename $(LIB_SRC)))
LIB     := $(B)/libsluice.a
# What stages of one's own are linked with; its number is SL_STAGE_ABI of stages/own/stage.h.
STAGE_ABI := $(shell sed -n 's/^.define SL_STAGE_ABI \([0-9]*\).*/\1/p' stages/own/stage.h)
STAGE_SO  := $(BIN)/libsluice-stage.so.$(STAGE_ABI)
STAGE_O   := $(B)/stages/own/process.o $(B)/stages/own/hand.o $(B)/stages/own/filter.o
MAINS   := $(wildcard stages/*/main.c)
PROGS   := $(patsubst %,$(BIN)/sluice-%,$(filter-out cli,$(patsubst stages/%/main.c,%,$(MAINS)))) $(if $(filter stages/cli/main.c,$(MAINS)),$(BIN)/sluice)
TESTS   := $(patsubst tests/%.c,$(TBIN)/%,$(wildcard tests/test_*.c))
HELPERS := $(patsubst tests/%.c,$(TBIN)/%,$(wildcard tests/helper_*.c))
BENCHES := $(patsubst tests/%.c,$(TBIN)/%,$(wildcard tests/bench_$(or $(K),*).c)) $(wildcard tests/bench_$(or $(K),*).sh)
FUZZERS := $(patsubst tests/%.c,build/fuzz/tests/%,$(wildcard tests/fuzz_$(or $(K),*).c))
OBJECTS := $(LIB_O) $(patsubst %.c,$(B)/%.o,$(MAINS) $(wildcard tests/test_*.c tests/helper_*.c tests/bench_*.c tests/fuzz_*.c))

GPU_TESTS := $(patsubst tests/%.c,$(TBIN)/%,$(wildcard tests/gpu_*.c))
OBJECTS += $(patsubst %.c,$(B)/%.o,$(wildcard tests/gpu_*.c))

# The plug-in's table lists all of it: without it there is none yet.
CUDA    ?= 1
ifeq ($(origin NVCC),undefined)
NVCC    := $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
endif
CU_O    := $(patsubst %,$(B)/%.o,$(basename $(wildcard kernels/cuda/*.cu kernels/cuda/*.c)))
ifneq ($(and $(NVCC),$(filter release,$(FLAVOUR))),)
PLUGIN_SO := $(BIN)/sluice_cuda.so
PLUGIN    := $(if $(filter 0,$(CUDA)),,$(if $(wildcard kernels/cuda/table.cu),$(PLUGIN_SO)))
OBJECTS   += $(CU_O)
endif

# A sub-make runs JOBS compilers, unless make itself was told how many.
PARALLEL = $(if $(filter -j% --jobserver%,$(MAKEFLAGS)),,-j$(JOBS))
SUB      = +@$(MAKE) --no-print-directory $(PARALLEL)

# ---- targets ----

.PHONY: all setup programs plugin tests golden layouts gpu-tests gpu demo test test-clients test-python test-golden test-fleet test-slurm test-deploy check check-asan check-tsan soak bench fuzz lint format install help clean
.DEFAULT_GOAL := all

all: setup          ## set-up and programs (what `make` alone does)
	$(SUB) programs

gpu: setup plugin   ## set-up, programs, the CUDA plug-in and the whole GPU suite, on this machine's GPU; GPU_FLAGS="--bench --sanitize"
	$(SUB) programs gpu-tests
	@SLUICE_BIN=$(BIN) GPU_TESTS=$(TBIN) tests/gpu.sh $(GPU_FLAGS)

demo: setup         ## set-up, programs, and a video from the small model: demo.mp4, its report demo.json, eight of its frames demo.png; the same in 4 steps with a LoRA, demo-4steps.mp4
	$(SUB) programs golden
	@tests/demo.sh

test: setup         ## set-up, programs, and every test; ends with the line `N passed, N failed`
	$(SUB) programs tests
	@SLUICE_BIN=$(BIN) tests/run.sh $(TESTS)

test-clients:       ## sluice serve with real clients: openai, curl, Chromium, Prometheus, nginx, schemathesis; and with a real S3 server; PARTS="curl page" for some
	@tests/setup.sh --clients
	$(SUB) programs golden $(addprefix $(TBIN)/,test_blobs test_fleet test_fleet_store)
	@SLUICE_BIN=$(BIN) TESTS_BIN=$(TBIN) tests/clients.sh $(PARTS)

test-python:        ## stages in Python: package sluice, examples/, diffusers' denoiser against the golden latents; PARTS="test_stage" for some
	@tests/setup.sh --python
	$(SUB) programs golden $(addprefix $(TBIN)/,test_own_stage helper_decode_flat linear_decode test_filters helper_filter)
	@SLUICE_BIN=$(BIN) TESTS_BIN=$(TBIN) tests/python.sh $(PARTS)

test-deploy:        ## conf/kubernetes against Kubernetes' schemas and the program; the Containerfile, built on a bare Debian where root is there; PARTS="manifests" for one
	@tests/setup.sh --deploy
	$(SUB) programs golden
	@SLUICE_BIN=$(BIN) tests/deploy.sh $(PARTS)

test-golden: setup  ## the golden comparisons on other folders: make test-golden DIRS="DIR/tiny-i2v DIR/tiny-t2v"
	$(SUB) programs $(TBIN)/test_run_golden $(TBIN)/test_denoise_golden $(TBIN)/test_lora_run
	@test -n "$(DIRS)" || { echo 'test-golden: DIRS is empty, want the golden folders: make test-golden DIRS="DIR ..."' >&2; exit 2; }
	SLUICE_BIN=$(BIN) $(TBIN)/test_run_golden $(DIRS)
	@for parent in $(sort $(dir $(patsubst %/,%,$(DIRS)))); do [ -d $$parent/tiny-t2v ] || continue; echo "$(TBIN)/test_denoise_golden $$parent"; $(TBIN)/test_denoise_golden $$parent || exit 1; done
	@for parent in $(sort $(dir $(patsubst %/,%,$(DIRS)))); do [ -d $$parent/lora-i2v ] || continue; echo "$(TBIN)/test_lora_run $$parent"; SLUICE_BIN=$(BIN) $(TBIN)/test_lora_run $$parent || exit 1; done

check: setup        ## the tests under the sanitizers: addresses, leaks, undefined behaviour; then threads
	$(SUB) check-asan
	$(SUB) check-tsan

check-asan:         ## the first half of check
	$(SUB) FLAVOUR=asan programs tests
	@tests/sanitize.sh asan $(notdir $(TESTS))

check-tsan:         ## the second half of check: the tests with threads, and a whole job
	$(SUB) FLAVOUR=tsan programs tests
	@tests/sanitize.sh tsan $(notdir $(TESTS))

soak: setup         ## a server, 50 jobs from 8 clients, 100 SIGKILLs: every job ends once with the right bytes; ranks likewise
	$(SUB) programs golden $(TBIN)/test_serve_kill $(TBIN)/test_ranks
	SLUICE_BIN=$(BIN) SLUICE_SOAK=1 $(TBIN)/test_serve_kill
	SLUICE_BIN=$(BIN) SLUICE_SOAK=1 $(TBIN)/test_ranks

test-fleet: setup   ## a real Redis, 2 front ends, 3 workers with models/demo, 60 jobs, in network namespaces: servers killed, stopped and cut off, Redis killed, the jobs' files away, at random; their files in a folder, then in a real S3 server; then test-slurm
	@tests/setup.sh --python && tests/s3.sh
	$(SUB) programs golden $(addprefix $(TBIN)/,test_blobs test_fleet test_fleet_store)
	$(TBIN)/test_blobs
	SLUICE_BIN=$(BIN) $(TBIN)/test_fleet_store
	SLUICE_BIN=$(BIN) SLUICE_FLEET=full SLUICE_FLEET_MODEL=models/demo $(TBIN)/test_fleet
	SLUICE_BIN=$(BIN) SLUICE_FLEET=full SLUICE_FLEET_MODEL=models/demo SLUICE_FLEET_STORE=s3 $(TBIN)/test_fleet
	$(SUB) test-slurm

test-slurm:         ## conf/slurm under a real Slurm on the loopback: two workers, a node is drained, a time limit comes
	@tests/setup.sh --fleet
	$(SUB) programs
	@SLUICE_BIN=$(BIN) tests/slurm.sh

bench: setup        ## the benchmarks, on this machine; K=name for one of them (alone, dispatch, dit, fleet, gemm, lease, mux, ops, queue, serve, team, vae), PARTS="1 3" for parts of serve
	$(SUB) programs golden $(filter-out %.sh,$(BENCHES))
	@test -n "$(strip $(BENCHES))" || { echo "bench: no tests/bench_$(K).c" >&2; exit 2; }
	@lscpu | sed -n 's/^Model name: */machine: /p; s/^CPU(s): */CPUs: /p; s/^L3 cache: */L3 cache: /p'
	@for b in $(BENCHES); do echo "== $${b##*/}"; SLUICE_BIN=$(BIN) $$b $(PARTS) || exit 1; done

fuzz:               ## every fuzz target for FUZZ_SECONDS (60) each; needs clang; K=name for one of them
	@tests/setup.sh --fuzz
	$(SUB) FLAVOUR=fuzz golden $(FUZZERS)
	@tests/fuzz.sh $(FUZZERS)

lint: setup         ## format, warnings as errors, static analysis, scripts, direction of includes
	$(SUB) FLAVOUR=werror WERROR=1 programs tests gpu-tests
	@tests/lint.sh

format:             ## clang-format on every C file
	@git ls-files '*.c' '*.h' '*.cc' | grep -v common/html5.h | xargs clang-format -i

install: setup      ## programs to PREFIX/lib/sluice, the command as PREFIX/bin/sluice, settings, manual page and completion to PREFIX/share; libsluice-stage with its headers and sluice-stage.pc
	$(SUB) programs
	$(call INSTALL_STAGE,$(DESTDIR)$(PREFIX),$(PREFIX))
	install -d $(addprefix $(DESTDIR)$(PREFIX)/,bin lib/sluice share/sluice share/man/man1 share/bash-completion/completions)
	install $(PROGS) $(PLUGIN) $(DESTDIR)$(PREFIX)/lib/sluice
	install -m 644 $(wildcard conf/*.*) docs/report.schema.json $(DESTDIR)$(PREFIX)/share/sluice
	cp -r $(patsubst %/,%,$(wildcard conf/*/)) $(DESTDIR)$(PREFIX)/share/sluice
	ln -sf ../lib/sluice/sluice $(DESTDIR)$(PREFIX)/bin/sluice
	$(BIN)/sluice man >$(DESTDIR)$(PREFIX)/share/man/man1/sluice.1
	$(BIN)/sluice completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/sluice

setup:              ## install the packages that are missing, or print the one command to type
	@tests/setup.sh

programs: $(PROGS) $(STAGE_SO) $(PLUGIN)  ## the programs, without looking for missing packages
plugin: $(or $(PLUGIN_SO),no-nvcc)  ## the CUDA plug-in alone
tests: $(TESTS) $(HELPERS) $(TBIN)/linear_decode golden layouts  ## the test programs and what they read, likewise
golden: $(TBIN)/helper_weights  ## the golden models' weights, made from their seeds where they are missing
	@$< && cd tests/golden && sha256sum --quiet --check weights.sha256
layouts: build/layouts/made  ## one golden checkpoint as other programs have it, which several tests read
build/layouts/made: tests/golden/layouts/build.py tests/golden/layouts/layouts.json tests/golden/gguf/model.py | golden
	@rm -rf $(@D)
	@echo "  MAKE  $(@D)"
	@{ python3 tests/golden/layouts/build.py tests/golden $(@D) && python3 tests/golden/gguf/model.py tests/golden $(@D)/gguf; } >build/layouts.log || { cat build/layouts.log; exit 1; }
	@touch $@
gpu-tests: $(GPU_TESTS) golden layouts  ## the test programs of the plug-in; tests/gpu.sh runs them

.PHONY: no-nvcc
no-nvcc:
	@echo "plugin: no nvcc on the PATH and none in /usr/local/cuda/bin, want the CUDA toolkit (13.0 or later), or NVCC=FILE" >&2; exit 1

clean:              ## remove what was built
	rm -f tests/golden/tiny-*/model/*/*.safetensors
	rm -rf build bin/sluice bin/sluice-* bin/sluice_cuda.so bin/libsluice-stage.so* demo.mp4 demo-4steps.mp4 demo.json demo.png

help:               ## this list
	@sed -n 's/^\([a-z-]*\):[^#=]*## */\1\t/p' Makefile | sort | while IFS="$$(printf '\t')" read -r name what; do printf '  make %-12s %s\n' "$$name" "$$what"; done

# ---- rules ----

# $(1) holds the text $(2) and is as old as its last change.
define REMEMBER
$(1): FORCE
	@mkdir -p $$(@D); printf '%s\n' '$(2)' | cmp -s - $$@ || printf '%s\n' '$(2)' > $$@
endef
.PHONY: FORCE
$(eval $(call REMEMBER,$(B)/flags,$(CC) $(C_FLAGS) | $(CXX) $(CXX_FLAGS)))
$(eval $(call REMEMBER,$(B)/link,$(CC) $(LD_FLAGS) $(LD_LIBS)))
$(eval $(call REMEMBER,$(B)/objects,$(LIB_O)))

$(B)/%.o: %.c $(B)/flags
	@mkdir -p $(@D)
	@echo "  CC    $<"
	@$(CC) $(C_FLAGS) -c -o $@ $<
# The tests' own code is quick enough so; half the time to build them. What they test is the library.
$(B)/tests/test_%.o: C_FLAGS += -O1
# The commit is told by one file alone.
COMMIT := $(shell git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)
$(eval $(call REMEMBER,$(B)/commit,$(COMMIT)))
$(B)/common/version.o: C_FLAGS += -DSL_COMMIT='"$(COMMIT)"'
$(B)/common/version.o: $(B)/commit
$(B)/%.o: %.cc $(B)/flags
	@mkdir -p $(@D)
	@echo "  CXX   $<"
	@$(CXX) $(CXX_FLAGS) -c -o $@ $<

# Taken in by the assembler, which tells nobody.
$(B)/stages/serve/page.o: $(wildcard stages/serve/page/*.*)
$(B)/stages/serve/journal_redis_link.o: stages/serve/journal.lua stages/serve/journal_verbs.lua

$(LIB): $(LIB_O) $(B)/objects
	@rm -f $@; ar rcs $@ $(LIB_O)
$(BIN)/sluice: $(B)/stages/cli/main.o
$(filter-out $(BIN)/sluice,$(PROGS)): $(BIN)/sluice-%: $(B)/stages/%/main.o
$(PROGS): $(LIB) $(B)/link
	@mkdir -p $(@D)
	@echo "  LINK  $@"
	@$(CC) $(LD_FLAGS) -o $@ $(filter %.o,$^) $(LIB) $(LD_LIBS)
$(STAGE_SO): $(STAGE_O) $(LIB) $(B)/link stages/own/exports.map
	@mkdir -p $(@D)
	@echo "  LINK  $@"
	@$(CC) $(LD_FLAGS) -shared -Wl,-soname,$(@F) -Wl,--version-script=stages/own/exports.map \
	    $(if $(SAN),,-Wl,-z,defs) -o $@ $(STAGE_O) $(LIB) $(LD_LIBS)
	@ln -sf $(@F) $(@D)/libsluice-stage.so
# What a stage in C is built with, and the documented line that does it, in folder $(1); the
# settings of pkg-config say $(2).
define INSTALL_STAGE
install -d $(addprefix $(1)/,include/sluice/common lib/sluice lib/pkgconfig)
install -m 644 common/err.h common/tensor.h $(1)/include/sluice/common
install -m 644 stages/own/stage.h $(1)/include/sluice
install $(STAGE_SO) $(1)/lib/sluice
ln -sf sluice/$(notdir $(STAGE_SO)) $(1)/lib/$(notdir $(STAGE_SO))
ln -sf $(notdir $(STAGE_SO)) $(1)/lib/libsluice-stage.so
sed 's|@PREFIX@|$(2)|; s|@ABI@|$(STAGE_ABI)|' stages/own/sluice-stage.pc >$(1)/lib/pkgconfig/sluice-stage.pc
endef
SDK := $(B)/sdk
$(SDK)/made: $(STAGE_SO) stages/own/stage.h stages/own/sluice-stage.pc common/err.h common/tensor.h
	@rm -rf $(SDK)
	@$(subst $(newline),&& ,$(call INSTALL_STAGE,$(SDK),$(CURDIR)/$(SDK)))
	@touch $@
$(TBIN)/linear_decode: examples/linear_decode.c $(SDK)/made
	@mkdir -p $(@D)
	@echo "  CC    $<"
	@$(CC) $(SAN) -O2 -Wall -Wextra -o $@ $< $$(PKG_CONFIG_PATH=$(SDK)/lib/pkgconfig pkg-config --cflags --libs sluice-stage) -lm
$(TBIN)/%: $(B)/tests/%.o $(LIB) $(B)/link
	@$(CC) $(LD_FLAGS) $(if $(filter fuzz_%,$*),-fsanitize=fuzzer -fsanitize-link-c++-runtime) -o $@ $< $(LIB) $(LD_LIBS) -lcmocka
.SECONDARY: $(OBJECTS)

ifneq ($(PLUGIN_SO),)
ARCHES     ?= 80 90a
CUDA_HOME  ?= $(patsubst %/bin/,%,$(dir $(realpath $(shell command -v $(NVCC)))))
ifeq ($(origin CUDNN_DIR),undefined)
CUDNN_DIR  := $(patsubst %/include/cudnn.h,%,$(firstword $(wildcard $(CUDA_HOME)/include/cudnn.h /usr/include/cudnn.h) \
    $(shell python3 -c 'import glob, sys; print(*[f for p in sys.path for f in glob.glob(p + "/nvidia/cudnn/include/cudnn.h")])' 2>/dev/null)))
endif
CUDA_DIRS  := $(filter-out /usr,$(sort $(CUDA_HOME) $(CUDNN_DIR)))
CUDA_INCLUDE ?= $(addprefix -isystem ,$(wildcard $(addsuffix /include,$(CUDA_DIRS))))
CUDA_LIBS  ?= $(foreach d,$(foreach d,$(CUDA_DIRS),$(firstword $(wildcard $d/lib64 $d/lib))),-L$d -Xlinker -rpath -Xlinker $d) \
              -lcublasLt -l:libcudnn.so.9 -lcudart
NVCC_FLAGS := -O3 -std=c++17 -I. -lineinfo $(foreach a,$(ARCHES),-gencode arch=compute_$(a:ptx=),code=$(if $(filter %ptx,$a),compute,sm)_$(a:ptx=)) \
              -DSL_CUDA_HOPPER=$(if $(filter 90a,$(ARCHES)),1,0) \
              $(CUDA_INCLUDE) --compiler-options -fPIC,-Wall -MMD -MP $(NVCCFLAGS)
$(eval $(call REMEMBER,$(B)/nvcc-flags,$(NVCC) $(NVCC_FLAGS)))
$(eval $(call REMEMBER,$(B)/nvcc-link,$(NVCC) $(CUDA_LIBS) | $(CU_O)))
$(B)/kernels/cuda/%.o: kernels/cuda/%.cu $(B)/nvcc-flags
	@mkdir -p $(@D)
	@echo "  NVCC  $<"
	@$(NVCC) $(NVCC_FLAGS) -c -o $@ $<
$(B)/kernels/cuda/%.o: kernels/cuda/%.c $(B)/flags
	@mkdir -p $(@D)
	@echo "  CC    $<"
	@$(CC) $(C_FLAGS) -fPIC $(CUDA_INCLUDE) -c -o $@ $<
$(PLUGIN_SO): $(CU_O) $(B)/nvcc-link
	@mkdir -p $(@D)
	@echo "  LINK  $@"
	@$(NVCC) -shared -cudart shared -o $@ $(CU_O) $(CUDA_LIBS)
endif

-include $(OBJECTS:.o=.d)
