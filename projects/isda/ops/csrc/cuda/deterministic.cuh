// The gradient of the values in an order that does not depend on chance: every cell collects from
// the samples around it, which have been sorted by the cell that is first among their four.
//
// All of this is about one image. Bins number first cells, borders of -1 included, per head and
// level. A level has 2 * S + 2 bins, enough whatever its extents are: (H + 1) * (W + 1) is no more.

#pragma once

#include "generic.cuh"

namespace isda {

constexpr int kNoBin = 0x7fffffff;  // of samples that touch nothing: they come last

template <typename C>
struct alignas(4 * sizeof(C)) Record {
  C right, below, weight;
  int bag;
};

ISDA_DEVICE int bin_of(
    const Problem& problem, int head, int l, const Level& level, int row, int column) {
  const int bins = 2 * problem.tokens + 2;
  return (head * problem.levels + l) * bins + (row + 1) * (level.columns + 1) + column + 1;
}

// The bins of all samples. A thread per sample.
template <typename C>
ISDA_KERNEL(kGenericThreads) find_bins_kernel(
    const __grid_constant__ Problem problem, const __grid_constant__ Sorting sorting) {
  const long long sample = static_cast<long long>(blockIdx.x) * kGenericThreads + threadIdx.x;
  const int per_bag = problem.levels * problem.points;
  if (sample >= static_cast<long long>(problem.queries) * problem.heads * per_bag) return;
  const int l = sample % per_bag / problem.points, head = sample / per_bag % problem.heads;
  const Level level = level_of(problem, l);
  const auto where = place_of<C>(problem, level, sample, true);
  const int bin = bin_of(problem, head, l, level, where.row, where.column);
  store(sorting.keys + sample, where.inside ? bin : kNoBin);
}

// With samples sorted by bin: where bins begin and end, and what is needed of the samples.
template <typename C>
ISDA_KERNEL(kGenericThreads) list_bins_kernel(
    const __grid_constant__ Problem problem, const __grid_constant__ Sorting sorting) {
  const long long i = static_cast<long long>(blockIdx.x) * kGenericThreads + threadIdx.x;
  const int per_bag = problem.levels * problem.points;
  const long long samples = static_cast<long long>(problem.queries) * problem.heads * per_bag;
  if (i >= samples) return;
  const int bin = load(sorting.keys + i);
  if (bin == kNoBin) return;
  if (i == 0 || load(sorting.keys + i - 1) != bin) store(sorting.ranges + 2ll * bin, int(i));
  if (i == samples - 1 || load(sorting.keys + i + 1) != bin) {
    store(sorting.ranges + 2ll * bin + 1, int(i + 1));
  }
  const long long sample = load(sorting.order + i);
  const Level level = level_of(problem, sample % per_bag / problem.points);
  const auto where = place_of<C>(problem, level, sample, true);
  const C weight = load(static_cast<const C*>(problem.weights) + sample);
  const Record<C> record = {where.right, where.below, weight, int(sample / per_bag)};
  store(static_cast<Record<C>*>(sorting.records) + i, record);
}

// The gradient of one channel of a cell, as far as one level is concerned: from the four bins whose
// samples touch the cell.
template <typename T, typename C = typename ComputedWith<T>::Type>
ISDA_DEVICE C collect(
    const Problem& problem, const Sorting& sorting, const Level& level, int first_bin, int cell,
    int channel) {
  const T* grads = static_cast<const T*>(problem.grad_output) + channel;
  const int row = cell / level.columns, column = cell % level.columns;
  C sum = 0;
  for (int corner = 0; corner < 4; ++corner) {
    const int bin = first_bin + (row + 1 - corner / 2) * (level.columns + 1) + column + 1 -
                    corner % 2;
    const int end = load(sorting.ranges + 2ll * bin + 1);
    for (int i = load(sorting.ranges + 2ll * bin); i < end; ++i) {
      const auto record = load(static_cast<const Record<C>*>(sorting.records) + i);
      const C part = (corner % 2 ? record.right : 1 - record.right) *
                     (corner / 2 ? record.below : 1 - record.below);
      const long long at = static_cast<long long>(record.bag) * problem.channels;
      sum += record.weight * part * widen(load(grads + at));
    }
  }
  return sum;
}

// A warp per cell and head, a lane per channel. Levels may overlap.
template <typename T>
ISDA_KERNEL(kGenericThreads) collect_grads_kernel(
    const __grid_constant__ Problem problem, const __grid_constant__ Sorting sorting) {
  const long long row =
      static_cast<long long>(blockIdx.x) * (kGenericThreads / 32) + threadIdx.x / 32;
  const int token = row / problem.heads, head = row % problem.heads;
  if (row >= static_cast<long long>(problem.tokens) * problem.heads) return;
  for (int channel = threadIdx.x % 32; channel < problem.channels; channel += 32) {
    typename ComputedWith<T>::Type sum = 0;
    for (int l = 0; l < problem.levels; ++l) {
      const Level level = level_of(problem, l);
      const int cell = token - level.start;
      if (!level.fits || cell < 0 || cell >= level.rows * level.columns) continue;
      sum += collect<T>(
          problem, sorting, level, bin_of(problem, head, l, level, -1, -1), cell, channel);
    }
    store(static_cast<T*>(problem.grad_value) + row * problem.channels + channel, narrow<T>(sum));
  }
}

}  // namespace isda
