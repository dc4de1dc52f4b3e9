// What the files compiled by nvcc offer to the binding: launches, which neither wait nor check.

#pragma once

#include "problem.h"

namespace isda {

enum class Type { kDouble, kFloat, kBFloat16, kHalf };

// `stream` is a cudaStream_t.
template <Type type>
void forward(const Problem& problem, void* stream);
// The gradients of which there are addresses.
template <Type type>
void backward(const Problem& problem, void* stream);

// The deterministic gradient of the values, of the type of the values, for one image: first the
// keys, then, once they are sorted, the rest.
template <Type type>
void find_bins(const Problem& problem, const Sorting& sorting, void* stream);
template <Type type>
void collect_grads(const Problem& problem, const Sorting& sorting, void* stream);

}  // namespace isda
