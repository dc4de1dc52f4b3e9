// How a problem is put on a GPU. Host code.

#pragma once

#include <algorithm>
#include <cstdint>

#include "problem.h"

namespace isda {

constexpr int64_t kExtentsRoom = 48 << 10;  // bytes of shared memory that every GPU has
constexpr int64_t kBytesPerExtents = 16;    // a sample's

struct Limits {
  int64_t blocks = 65535;                        // along a grid's second and third axis
  int64_t tokens = (1 << (32 - kFlagBits)) - 1;     // that can be numbered
  int64_t bags_that_fill_it = 8192;              // with fewer per image, warps split bags
};
inline Limits limits;  // tests lower them

inline int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether the kernels for rows take it; else the generic ones do.
inline bool has_rows(const Problem& problem) {
  const int64_t samples = int64_t(problem.levels) * problem.points, D = problem.channels;
  return (D == 16 || D == 32 || D == 64 || D == 128) && problem.heads <= limits.blocks &&
         samples * kBytesPerExtents <= kExtentsRoom && problem.tokens <= limits.tokens;
}

// Never by the number of images, on which a query's output must not depend.
inline bool splits_bags(const Problem& problem) {
  return int64_t(problem.queries) * problem.heads <= limits.bags_that_fill_it;
}

// The number of tiles if the queries are the tokens of levels that follow each other, else 0.
inline int64_t tiles(const Problem& problem) {
  if (problem.shapes || problem.queries != problem.tokens) return 0;
  int64_t token = 0, count = 0;
  for (int level = 0; level < problem.levels; ++level) {
    const auto [rows, columns, start] = problem.levels_by_value[level];
    if (start != token) return 0;
    token += rows * columns;
    count += divided_up(rows, kTileSide) * divided_up(columns, kTileSide);
  }
  return token == problem.tokens ? count : 0;
}

inline void advance(const void*& pointer, int64_t bytes) {
  pointer = static_cast<const char*>(pointer) + bytes;
}
inline void advance(void*& pointer, int64_t bytes) {
  if (pointer) pointer = static_cast<char*>(pointer) + bytes;
}

// Leave out the first images; with the bytes of a number as it is stored, as it is computed with,
// and of the gradient of the values.
inline void skip_images(
    Problem& problem, int64_t images, int64_t stored, int64_t computed, int64_t grad_value) {
  const int64_t cells = images * problem.tokens * problem.heads * problem.channels;
  const int64_t bags = images * problem.queries * problem.heads;
  const int64_t samples = bags * problem.levels * problem.points;
  problem.images -= int(images);
  advance(problem.value, cells * stored);
  advance(problem.grad_value, cells * grad_value);
  advance(problem.output, bags * problem.channels * stored);
  advance(problem.grad_output, bags * problem.channels * stored);
  advance(problem.locations, samples * 2 * computed);
  advance(problem.grad_locations, samples * 2 * computed);
  advance(problem.weights, samples * computed);
  advance(problem.grad_weights, samples * computed);
}

}  // namespace isda
