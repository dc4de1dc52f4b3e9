#!/bin/sh
# Compile the CPU kernels with AddressSanitizer and UndefinedBehaviorSanitizer and run them on small
# problems; a minute on one core. Needs GCC or Clang, not PyTorch.
#
#   tools/sanitize_cpu_kernels.sh
#   CXX=aarch64-linux-gnu-g++ RUN="qemu-aarch64 -L /usr/aarch64-linux-gnu" SANITIZE= \
#       tools/sanitize_cpu_kernels.sh            # cross-compiled, without the sanitizers
#   CXX=aarch64-linux-gnu-g++ RUN=true SANITIZE= tools/sanitize_cpu_kernels.sh    # compiled only
set -eu
cd "$(dirname "$0")/.."
sources=projects/isda/ops/csrc/cpu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
sanitize=${SANITIZE--fsanitize=address,undefined -fno-sanitize-recover=all}
for source in "$sources"/kernels_*.cpp tests/ops/sanitized.cpp; do
    # shellcheck disable=SC2086  # several options
    ${CXX:-c++} -std=c++17 -O1 -g1 -ffp-contract=fast -Wall -Wno-psabi $sanitize \
        -I "$sources" -c "$source" -o "$folder/$(basename "$source").o"
done
# shellcheck disable=SC2086
${CXX:-c++} $sanitize "$folder"/*.o -o "$folder/kernels"
# shellcheck disable=SC2086
${RUN:-} "$folder/kernels"
