# Sluice. `make help` lists the targets.
#
# Objects go to build/FLAVOUR, programs to bin/ (release) or build/FLAVOUR/bin (sanitizers). Every .c file is found by its place in the tree:
#   common/ graphs/ kernels/ kernels/cpu/ stages/*/  -> one static library;   stages/X/main.c -> sluice-X (stages/cli: sluice)
#   tests/test_*.c -> a cmocka program;   tests/bench_*.c -> a benchmark;   tests/fuzz_*.c -> a libFuzzer target (clang)

FLAVOUR ?= release
ARCH    ?= native
CC      ?= cc
CXX     ?= c++
B       := build/$(FLAVOUR)
BIN     := $(if $(filter release,$(FLAVOUR)),bin,$(B)/bin)
TBIN    := $(B)/tests

PKGS    := libzmq libavformat libavcodec libswscale libavutil libconfig jansson openblas sentencepiece sqlite3 libutf8proc
WARN    := -Wall -Wextra -Wshadow -Wpointer-arith -Wmissing-prototypes -Wstrict-prototypes -Wvla
WARNXX  := -Wall -Wextra -Wshadow
SAN_asan := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
SAN_tsan := -fsanitize=thread
SAN     := $(SAN_$(FLAVOUR))
OPT     := $(if $(SAN),-O1 -g,-O3 -g)
MARCH   := $(if $(ARCH),-march=$(ARCH))
OMP     := $(if $(filter tsan,$(FLAVOUR)),,-fopenmp)
COMMON  := $(OPT) $(MARCH) -D_GNU_SOURCE -I. $(SAN) $(OMP) -ffp-contract=off -fno-math-errno -fno-trapping-math -MMD -MP \
           $(shell pkg-config --cflags $(PKGS) cmocka 2>/dev/null | sed 's/-I/-isystem /g')
CFLAGS  += -std=c17 $(WARN) $(COMMON)
CXXFLAGS += -std=c++17 $(WARNXX) $(COMMON)
LDLIBS  += $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lstdc++ -lm -lpthread -ldl
LDFLAGS += $(SAN) $(OMP) -rdynamic

LIB_C   := $(filter-out %/main.c,$(wildcard common/*.c graphs/*.c kernels/*.c kernels/cpu/*.c stages/*.c stages/*/*.c))
LIB_CXX := $(wildcard common/*.cc stages/*/*.cc)
LIB_O   := $(LIB_C:%.c=$(B)/%.o) $(LIB_CXX:%.cc=$(B)/%.o)
LIB     := $(B)/libsluice.a
MAINS   := $(wildcard stages/*/main.c)
PROGS   := $(foreach m,$(MAINS),$(BIN)/$(if $(filter cli,$(word 2,$(subst /, ,$(m)))),sluice,sluice-$(word 2,$(subst /, ,$(m)))))
TESTS   := $(patsubst tests/%.c,$(TBIN)/%,$(wildcard tests/test_*.c))
BENCHES := $(patsubst tests/%.c,$(TBIN)/%,$(wildcard tests/bench_*.c))
HELPERS := $(patsubst tests/%.c,$(TBIN)/%,$(wildcard tests/helper_*.c))
FUZZERS := $(patsubst tests/%.c,build/fuzz/%,$(wildcard tests/fuzz_*.c))

.PHONY: all programs demo test check bench fuzz lint format setup help clean tests
all: setup ; @$(MAKE) --no-print-directory programs
programs: $(PROGS)  ## the programs, without looking for missing packages

setup:              ## install or name the packages that are missing
	@tests/setup.sh

$(LIB): $(LIB_O)
	@rm -f $@; ar rcs $@ $^
$(B)/%.o: %.c
	@mkdir -p $(@D)
	@echo "  CC    $<"
	@$(CC) $(CFLAGS) -c -o $@ $<
$(B)/%.o: %.cc
	@mkdir -p $(@D)
	@echo "  CXX   $<"
	@$(CXX) $(CXXFLAGS) -c -o $@ $<
$(BIN)/sluice: $(B)/stages/cli/main.o $(LIB)
	@mkdir -p $(@D)
	@$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(BIN)/sluice-%: $(B)/stages/%/main.o $(LIB)
	@mkdir -p $(@D)
	@$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(TBIN)/%: $(B)/tests/%.o $(LIB)
	@mkdir -p $(@D)
	@$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lcmocka
.PRECIOUS: $(B)/%.o $(B)/stages/%/main.o $(B)/tests/%.o

tests: $(TESTS) $(HELPERS)
-include $(wildcard $(B)/*/*.d $(B)/*/*/*.d)
