// From a problem to launches of kernels. Host code.

#pragma once

#include "kernels.h"
#include "plan.h"

#include "deterministic.cuh"
#include "rows_backward.cuh"
#include "rows_forward.cuh"

namespace isda {

template <Type type>
struct StoredAs;
template <>
struct StoredAs<Type::kDouble> {
  using T = double;
};
template <>
struct StoredAs<Type::kFloat> {
  using T = float;
};
template <>
struct StoredAs<Type::kBFloat16> {
  using T = BFloat16;
};
template <>
struct StoredAs<Type::kHalf> {
  using T = Half;
};

// Launch a kernel for rows, as often as the number of images makes it necessary.
template <typename T, typename Schedule>
void run_rows(void (*kernel)(Problem), Problem problem, void* stream) {
  const int64_t tiled = Schedule::kSplit ? 0 : tiles(problem);
  problem.tiled = tiled > 0;
  const int64_t blocks = tiled ? tiled : divided_up(problem.queries, Schedule::kBags);
  const int64_t shared = kBytesPerExtents * problem.levels * problem.points;
  const int64_t most = std::min(limits.blocks, limits.tokens / problem.tokens);
  while (problem.images > 0) {
    const int64_t images = std::min<int64_t>(most, problem.images);
    run(kernel, dim3(blocks, problem.heads, images), Schedule::kThreads, shared, stream, problem);
    skip_images(problem, images, sizeof(T), sizeof(float), sizeof(float));
  }
}

inline dim3 generic_blocks(int64_t threads) {
  return dim3(unsigned(divided_up(threads, kGenericThreads)));
}

template <typename T, int kLanes>
void run_forward_rows(const Problem& problem, void* stream) {
  using Split = Schedule<kLanes, true>;
  using Whole = Schedule<kLanes, false>;
  if (splits_bags(problem)) {
    run_rows<T, Split>(forward_rows<T, Split, 0>, problem, stream);
  } else if (problem.levels * problem.points == 16) {
    run_rows<T, Whole>(forward_rows<T, Whole, 16>, problem, stream);
  } else {
    run_rows<T, Whole>(forward_rows<T, Whole, 0>, problem, stream);
  }
}

template <typename T, int kLanes>
void run_backward_rows(const Problem& problem, void* stream) {
  using Split = Schedule<kLanes, true>;
  using Whole = Schedule<kLanes, false>;
  if (!problem.grad_value) {
    run_rows<T, Whole>(backward_rows<T, Whole, 0, false, true>, problem, stream);
  } else if (!problem.grad_weights) {
    run_rows<T, Whole>(backward_rows<T, Whole, 0, true, false>, problem, stream);
  } else if (splits_bags(problem)) {
    run_rows<T, Split>(backward_rows<T, Split, 0, true, true>, problem, stream);
  } else if (problem.levels * problem.points == 16) {
    run_rows<T, Whole>(backward_rows<T, Whole, 16, true, true>, problem, stream);
  } else {
    run_rows<T, Whole>(backward_rows<T, Whole, 0, true, true>, problem, stream);
  }
}

template <Type type>
void forward(const Problem& problem, void* stream) {
  using T = typename StoredAs<type>::T;
  if constexpr (sizeof(T) <= 4) {
    constexpr int kChannels = 16 / sizeof(T);  // per lane
    const auto fits = [&](int channels) { return problem.channels == channels; };
    if (has_rows(problem)) {
      if (fits(16)) return run_forward_rows<T, 16 / kChannels>(problem, stream);
      if (fits(32)) return run_forward_rows<T, 32 / kChannels>(problem, stream);
      if (fits(64)) return run_forward_rows<T, 64 / kChannels>(problem, stream);
      return run_forward_rows<T, 128 / kChannels>(problem, stream);
    }
  }
  const int64_t bags = int64_t(problem.images) * problem.queries * problem.heads;
  const dim3 blocks = generic_blocks(bags * problem.channels);
  run(forward_generic<T>, blocks, kGenericThreads, 0, stream, problem);
}

template <Type type>
void backward(const Problem& problem, void* stream) {
  using T = typename StoredAs<type>::T;
  if constexpr (sizeof(T) <= 4) {
    if (has_rows(problem)) {
      if (problem.channels == 16) return run_backward_rows<T, 4>(problem, stream);
      if (problem.channels == 32) return run_backward_rows<T, 8>(problem, stream);
      if (problem.channels == 64) return run_backward_rows<T, 16>(problem, stream);
      return run_backward_rows<T, 32>(problem, stream);
    }
  }
  const int64_t bags = int64_t(problem.images) * problem.queries * problem.heads;
  run(backward_generic<T>, generic_blocks(bags * 32), kGenericThreads, 0, stream, problem);
}

inline int64_t samples_per_image(const Problem& problem) {
  return int64_t(problem.queries) * problem.heads * problem.levels * problem.points;
}

template <Type type>
void find_bins(const Problem& problem, const Sorting& sorting, void* stream) {
  using C = typename ComputedWith<typename StoredAs<type>::T>::Type;
  const dim3 blocks = generic_blocks(samples_per_image(problem));
  run(find_bins_kernel<C>, blocks, kGenericThreads, 0, stream, problem, sorting);
}

template <Type type>
void collect_grads(const Problem& problem, const Sorting& sorting, void* stream) {
  using T = typename StoredAs<type>::T;
  using C = typename ComputedWith<T>::Type;
  const dim3 samples = generic_blocks(samples_per_image(problem));
  run(list_bins_kernel<C>, samples, kGenericThreads, 0, stream, problem, sorting);
  const dim3 rows = generic_blocks(int64_t(problem.tokens) * problem.heads * 32);
  run(collect_grads_kernel<T>, rows, kGenericThreads, 0, stream, problem, sorting);
}

}  // namespace isda
