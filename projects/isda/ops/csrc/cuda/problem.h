// Multi-scale deformable attention on a GPU: what the kernels take. Nothing here knows PyTorch, and
// nothing is included, so that every compiler of CUDA takes it, NVRTC among them.
//
// Symbols: B images, S tokens, M heads, D channels, Q queries, L levels, P points. A query and a
// head have one bag of L * P samples. C stands for double if the values are double, else for float.

#pragma once

namespace isda {

constexpr int kLevelsByValue = 8;
constexpr int kFlagBits = 5;  // beside the number of a token, in 32
constexpr int kTileBits = 3;
constexpr int kTileSide = 1 << kTileBits;  // queries

// Tensors are contiguous.
struct Problem {
  const void* value;        // (B, S, M, D)
  const void* locations;    // (B, Q, M, L, P, 2) of C, as (x, y)
  const void* weights;      // (B, Q, M, L, P) of C
  const void* grad_output;  // (B, Q, M, D), backward only, as what follows the output
  void* output;             // (B, Q, M, D)
  void* grad_value;         // (B, S, M, D) of C, zero before; null if not wanted
  void* grad_locations;     // like locations; null if not wanted
  void* grad_weights;       // like weights; null together with grad_locations
  // Where the levels are: on the device, or, if these are null, in the table below.
  const long long* shapes;  // (L, 2) as (height, width)
  const long long* starts;  // (L), first tokens
  long long levels_by_value[kLevelsByValue][3];  // height, width, first token
  int images, tokens, heads, channels, queries, levels, points;
  int tiled;        // whether the queries are the tokens, so that blocks can take tiles of a level
};

// What the deterministic gradient of the values needs beside it, for the samples of one image.
struct Sorting {
  int* keys;               // (Q, M, L, P): the bin of every sample; sorted, in the order of bins
  const long long* order;  // the samples in that order
  void* records;           // Record<C> of each, in that order
  int* ranges;             // (M, L, 2 * S + 2, 2): a bin's first and end in that order; zero before
};

}  // namespace isda
