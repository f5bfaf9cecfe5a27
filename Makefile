# gvmspawn: make demo, make test. Both install what they need and can be run again.

SHELL := /bin/bash
export CGO_ENABLED := 0
GO ?= go
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# Debian packages of the demo and of the tests, and how to see that each is there.
DEMO_PACKAGES := mmdebstrap kmod
TEST_PACKAGES := $(DEMO_PACKAGES) qemu-system-x86 qemu-utils e2fsprogs acpica-tools dmidecode cpio xz-utils zstd lz4 lzop bzip2 \
	busybox-static mtools gcc libc6-dev linux-libc-dev git iproute2 openssh-client fdisk dbus groff-base swtpm swtpm-tools gdb

.DEFAULT_GOAL := build
.PHONY: build demo test test-long check unit race fuzz boot setup-demo setup-test setup-long clean help

help: ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

build: ## build the one static binary
	$(GO) build -trimpath -ldflags '-s -w' -o gvmspawn ./cmd/gvmspawn

demo: setup-demo build ## boot a Debian tree as a virtual machine
	@bash cmd/demo.sh

test: setup-test check unit race fuzz boot ## everything that CI runs
	@echo "make test: all passed"

check: ## formatting, vet, staticcheck, import table
	@echo "== gofmt, vet, staticcheck, import table"
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "not gofmt'ed: $$out"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) test -count=1 -run TestImport ./vmm

unit: ## unit tests, and whole machines on the software CPU
	@echo "== unit tests"
	$(GO) test -short -timeout 15m ./...

# The race detector needs cgo; it is used where goroutines meet.
RACE := ./vmm/bus ./vmm/mem ./vmm/disk/... ./virtio/... ./devices/...
race: ## the packages with concurrency under the race detector
	@echo "== race detector"
	CGO_ENABLED=1 $(GO) test -race -short -timeout 15m $(RACE)

FUZZTIME ?= 3s
# Go's fuzzer may fail by missing its own deadline on a busy machine ("context
# deadline exceeded" without a failing input): such a target has a second try.
fuzz: ## every fuzz target for a short while (seeds run with the unit tests)
	@echo "== fuzz, $(FUZZTIME) each"
	@fuzz() { $(GO) test -run '^$$' -fuzz "^$$2\$$" -fuzztime $(FUZZTIME) $$1 2>&1; }; \
	for pkg in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$f"; \
			out=$$(fuzz $$pkg $$f) || case $$out in \
				*"Failing input"*) echo "$$out"; exit 1 ;; \
				*"context deadline exceeded"*) echo "again: context deadline exceeded"; fuzz $$pkg $$f || exit 1 ;; \
				*) echo "$$out"; exit 1 ;; \
			esac; \
		done; \
	done

boot: build ## boot real kernels on real KVM, in the testbed
	@echo "== whole machines"
	$(GO) test -count=1 -timeout 25m -run 'TestBoot|TestTestbed' ./vmm/... ./cmd/...

test-long: setup-long build ## the slow suites
	GVMSPAWN_LONG=1 $(GO) test -count=1 -timeout 5h -run 'TestLong|TestBoot|TestPromised' -v ./...
	$(MAKE) fuzz FUZZTIME=60s

setup-demo: PACKAGES := $(DEMO_PACKAGES)
setup-test: PACKAGES := $(TEST_PACKAGES)
setup-long: PACKAGES := $(TEST_PACKAGES) systemd-container openssl
setup-demo setup-test setup-long:
	@command -v $(GO) >/dev/null || { echo "Go 1.26 or later is needed: install it and put it on the PATH"; exit 1; }
	@missing=; for p in $(PACKAGES); do \
		dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "== installing$$missing"; $(SUDO) apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi

clean: ## remove what was built; the cache of packages stays
	rm -f gvmspawn
