#!/usr/bin/env bash
# bench_team.sh - the diffusion transformer by a team of ranks beside one rank. On the CPU two share
# its cores; on GPUs: bench_team.sh cuda:0,cuda:1
exec "${SLUICE_BIN:-bin}/sluice" bench dit --device "${1:-cpu,cpu}"
