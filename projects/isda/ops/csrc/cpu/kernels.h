// Multi-scale deformable attention on a CPU: what the kernels take. Nothing here knows PyTorch.
//
// Symbols: B images, S tokens, M heads, D channels, Q queries, L levels, P points.

#pragma once

#include <cstdint>
#include <new>

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
  void* grad_value;         // (B, S, M, D), zero before; of C, or of the value's type if repacked
  void* grad_locations;     // like locations
  void* grad_weights;       // like weights
};

constexpr int64_t kQueriesPerBlock = 16;

// What follows comes in pairs: the second is for many samples per token. Before it samples, it
// copies what it is about to read, a head of an image, to where one token follows the other.
// Beside those of other heads tokens lie a power of two apart, and of such addresses caches keep
// few. Both give the same bits.
struct Kernels {
  // Blocks begin..end - 1 of B * ceil(Q / kQueriesPerBlock), image by image.
  void (*forward)(const Problem&, int64_t begin, int64_t end);
  // Blocks begin..end - 1 of B * M * ceil(Q / kQueriesPerBlock), head by head.
  void (*forward_repacked)(const Problem&, int64_t begin, int64_t end);
  // Shares begin..end - 1 of B * M * shares: of one head of one image the levels of one share,
  // whose gradients nobody else's queries touch. L must be a multiple of `shares`.
  void (*backward)(const Problem&, int64_t shares, int64_t begin, int64_t end);
  void (*backward_repacked)(const Problem&, int64_t shares, int64_t begin, int64_t end);
};

namespace baseline {
Kernels kernels(Type type);
}
namespace avx2 {  // with FMA and F16C; x86 only
Kernels kernels(Type type);
}

}  // namespace isda
