// Multi-scale deformable attention on a CPU: what the kernels take. Nothing here knows PyTorch.
//
// Symbols: B images, S tokens, M heads, D channels, Q queries, L levels, P points.

#pragma once

#include <cstdint>

namespace isda {

enum class Type { kDouble, kFloat, kBFloat16, kHalf };

// Tensors are contiguous. C stands for double if the values are double, else for float.
struct Problem {
  int64_t images, tokens, heads, channels, queries, levels, points;
  const int64_t* shapes;  // (L, 2) as (height, width)
  const int64_t* starts;  // (L), first tokens
  const void* value;      // (B, S, M, D)
  const void* locations;  // (B, Q, M, L, P, 2) of C, as (x, y)
  const void* weights;    // (B, Q, M, L, P) of C
  void* output;           // forward: (B, Q, M, D)
  // Backward. The first of these is an input; those that are not wanted are null, the last two
  // together.
  const void* grad_output;  // (B, Q, M, D)
  void* grad_value;         // (B, S, M, D) of C, zero before
  void* grad_locations;     // like locations
  void* grad_weights;       // like weights
};

constexpr int64_t kQueriesPerBlock = 16;

struct Kernels {
  // Blocks begin..end - 1 of B * ceil(Q / kQueriesPerBlock); those of an image follow each other.
  void (*forward)(const Problem&, int64_t begin, int64_t end);
  // Slices begin..end - 1 of B * M: one head of one image, which shares no gradient with another.
  void (*backward)(const Problem&, int64_t begin, int64_t end);
};

namespace baseline {
Kernels kernels(Type type);
}
namespace avx2 {  // with FMA and F16C; x86 only
Kernels kernels(Type type);
}

}  // namespace isda
