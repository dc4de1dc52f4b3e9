// The kernels for rows of any length and for every type: plain loops, 64-bit offsets.

#pragma once

#include "geometry.cuh"

namespace isda {

constexpr int kGenericThreads = 256;

template <typename C>
ISDA_DEVICE Place<C> place_of(
    const Problem& problem, const Level& level, long long sample, bool right_derivative) {
  const C* location = static_cast<const C*>(problem.locations) + 2 * sample;
  const C u = load(location), v = load(location + 1);
  const C width = extent_of<C>(level, level.columns), height = extent_of<C>(level, level.rows);
  return right_derivative ? place<true>(u, v, width, height) : place<false>(u, v, width, height);
}

// A cell that a sample lies between: 0 and 1 are in the upper row, 1 and 3 in the right column.
template <typename C>
struct Cell {
  bool exists;
  long long token;
  C part;  // of the sample

  ISDA_DEVICE Cell(const Place<C>& place, const Level& level, int corner) {
    const int column = place.column + corner % 2, row = place.row + corner / 2;
    exists = place.inside && column >= 0 && column < level.columns && row >= 0 && row < level.rows;
    token = level.start + static_cast<long long>(row) * level.columns + column;
    part = (corner % 2 ? place.right : 1 - place.right) *
           (corner / 2 ? place.below : 1 - place.below);
  }
};

// A thread per channel of the output.
template <typename T>
ISDA_KERNEL(kGenericThreads) forward_generic(const __grid_constant__ Problem problem) {
  using C = typename ComputedWith<T>::Type;
  const long long index = static_cast<long long>(blockIdx.x) * kGenericThreads + threadIdx.x;
  const long long bag = index / problem.channels;
  const int channel = index % problem.channels;
  const long long image = bag / problem.heads / problem.queries;
  if (image >= problem.images) return;
  const long long stride = static_cast<long long>(problem.heads) * problem.channels;
  const T* value = static_cast<const T*>(problem.value) + image * problem.tokens * stride +
                   bag % problem.heads * problem.channels + channel;
  C sum = 0;
  long long sample = bag * problem.levels * problem.points;
  for (int l = 0; l < problem.levels; ++l) {
    const Level level = level_of(problem, l);
    for (int p = 0; p < problem.points; ++p, ++sample) {
      const auto where = place_of<C>(problem, level, sample, false);
      const C weight = load(static_cast<const C*>(problem.weights) + sample);
      sum += where.spoilt;
      for (int corner = 0; corner < 4; ++corner) {
        const Cell<C> cell(where, level, corner);
        if (cell.exists) sum += weight * cell.part * widen(load(value + cell.token * stride));
      }
    }
  }
  store(static_cast<T*>(problem.output) + index, narrow<T>(sum));
}

template <typename C>
ISDA_DEVICE C sum_over_warp(C x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(kWholeWarp, x, distance);
  }
  return x;
}

// A warp per bag, a lane per channel.
template <typename T>
ISDA_KERNEL(kGenericThreads) backward_generic(const __grid_constant__ Problem problem) {
  using C = typename ComputedWith<T>::Type;
  const int lane = threadIdx.x % 32;
  const long long bag =
      static_cast<long long>(blockIdx.x) * (kGenericThreads / 32) + threadIdx.x / 32;
  const long long image = bag / problem.heads / problem.queries;
  if (image >= problem.images) return;
  const long long stride = static_cast<long long>(problem.heads) * problem.channels;
  const long long origin =
      image * problem.tokens * stride + bag % problem.heads * problem.channels;
  const T* value = static_cast<const T*>(problem.value) + origin;
  C* grad_value = static_cast<C*>(problem.grad_value) + origin;
  const T* grad_output = static_cast<const T*>(problem.grad_output) + bag * problem.channels;
  long long sample = bag * problem.levels * problem.points;
  for (int l = 0; l < problem.levels; ++l) {
    const Level level = level_of(problem, l);
    for (int p = 0; p < problem.points; ++p, ++sample) {
      const auto where = place_of<C>(problem, level, sample, true);
      const C weight = load(static_cast<const C*>(problem.weights) + sample);
      C by_weight = 0, by_x = 0, by_y = 0;
      for (int corner = 0; corner < 4; ++corner) {
        const Cell<C> cell(where, level, corner);
        if (!cell.exists) continue;
        C dot = 0;
        for (int c = lane; c < problem.channels; c += 32) {
          const C grad = widen(load(grad_output + c));
          const long long at = cell.token * stride + c;
          if (problem.grad_weights) dot += grad * widen(load(value + at));
          if (problem.grad_value) add(grad_value + at, weight * cell.part * grad);
        }
        const C across = corner / 2 ? where.below : 1 - where.below;
        const C along = corner % 2 ? where.right : 1 - where.right;
        by_weight += cell.part * dot;
        by_x += corner % 2 ? across * dot : -across * dot;
        by_y += corner / 2 ? along * dot : -along * dot;
      }
      if (!problem.grad_weights) continue;
      by_weight = sum_over_warp(by_weight);
      by_x = sum_over_warp(by_x);
      by_y = sum_over_warp(by_y);
      if (lane != 0) continue;
      store(static_cast<C*>(problem.grad_weights) + sample, by_weight);
      C* grad_location = static_cast<C*>(problem.grad_locations) + 2 * sample;
      store(grad_location, weight * C(level.columns) * by_x);
      store(grad_location + 1, weight * C(level.rows) * by_y);
    }
  }
}

}  // namespace isda
