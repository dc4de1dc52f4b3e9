// The kernels for rows of 16, 32, 64 or 128 channels in float32, bfloat16 or float16.
//
// A few neighbouring lanes read a row, each a vector of channels; they serve one bag. Each of them
// places other samples of the bag, and the rest get what they need of it by shuffles.

#pragma once

#include "geometry.cuh"

namespace isda {

// How threads share the work. Lanes of a group read a row; a team has one bag.
template <int kLanes_, bool kSplit_>
struct Schedule {
  static constexpr int kLanes = kLanes_;
  // A group has a bag for itself; or, where there are few bags, a warp has it, and its groups split
  // the samples.
  static constexpr bool kSplit = kSplit_;
  static constexpr int kTeam = kSplit ? 32 : kLanes;
  static constexpr int kGroups = kTeam / kLanes;
  // Samples that a group places at once, one per lane.
  static constexpr int kChunk = kLanes == 32 ? 16 : kSplit ? kLanes / 2 : kLanes;
  // Bags of a block: all of one head, of as many queries. If they are not split, they fill a tile.
  static constexpr int kBagBits = kSplit ? 2 : 2 * kTileBits;
  static constexpr int kBags = 1 << kBagBits;
  static constexpr int kThreads = kSplit ? 128 : kLanes < 4 ? kBags * kLanes : 256;
  static constexpr int kTeams = kThreads / kTeam;
};

struct alignas(16) Extents {
  float width, height;
  int start, columns;
};

// What this thread is about.
template <typename Schedule>
struct Position {
  int lane;   // in its group
  int group;  // in its team
  int team;   // in its block
  int head;
  int image;

  ISDA_DEVICE Position()
      : lane(threadIdx.x % Schedule::kLanes),
        group(threadIdx.x % Schedule::kTeam / Schedule::kLanes),
        team(threadIdx.x / Schedule::kTeam),
        head(blockIdx.y),
        image(blockIdx.z) {}

  ISDA_DEVICE long long bag(const Problem& problem, int query) const {
    return (static_cast<long long>(image) * problem.queries + query) * problem.heads + head;
  }
};

// The queries of this block: a tile of a level's cells, or some that follow each other, which are
// taken for a level of one row.
template <typename Schedule>
struct Queries {
  unsigned rows = 1, columns, start = 0;  // of the level
  unsigned row = 0, column;               // of the first
  int shift = Schedule::kBagBits;         // of a bag's number, for its row

  ISDA_DEVICE Queries(const Problem& problem)
      : columns(problem.queries), column(blockIdx.x * Schedule::kBags) {
    if (Schedule::kSplit || !problem.tiled) return;
    unsigned tile = blockIdx.x;
    for (int level = 0; level < problem.levels; ++level) {
      rows = unsigned(problem.levels_by_value[level][0]);
      columns = unsigned(problem.levels_by_value[level][1]);
      start = unsigned(problem.levels_by_value[level][2]);
      const unsigned across = (columns + kTileSide - 1) / kTileSide;
      const unsigned tiles = across * ((rows + kTileSide - 1) / kTileSide);
      if (tile < tiles) {
        row = tile / across * kTileSide;
        column = tile % across * kTileSide;
        break;
      }
      tile -= tiles;
    }
    shift = kTileBits;
  }

  // The query of a bag of this block, or -1.
  ISDA_DEVICE int of(int bag) const {
    const unsigned r = row + (bag >> shift), c = column + (bag & ((1 << shift) - 1));
    return r < rows && c < columns ? int(start + r * columns + c) : -1;
  }
};

// The extents of every sample's level, for all threads of the block. Tokens are numbered through
// all images.
ISDA_DEVICE void read_extents(const Problem& problem, int image, Extents* extents) {
  for (int i = threadIdx.x; i < problem.levels * problem.points; i += blockDim.x) {
    const Level level = level_of(problem, i / problem.points);
    extents[i] = {
        extent_of<float>(level, level.columns), extent_of<float>(level, level.rows),
        image * problem.tokens + level.start, level.columns};
  }
  __syncthreads();
}

// Tokens of the first of the cells that a sample lies between, in both rows of them, and which of
// their columns and rows exist. One outside is replaced by the one inside.
struct Cells {
  unsigned upper, lower;
  bool left_in, right_in, upper_in, lower_in;

  ISDA_DEVICE Cells(const Place<float>& place, const Extents& extents)
      : left_in(place.column >= 0),
        right_in(place.column + 1 < extents.columns),
        upper_in(place.row >= 0),
        lower_in(float(place.row + 1) < extents.height) {
    const int first = extents.start + (left_in ? place.column : 0);
    upper = place.inside ? first + (upper_in ? place.row : 0) * extents.columns : 0;
    lower = place.inside ? first + (lower_in ? place.row + 1 : place.row) * extents.columns : 0;
  }
};

// A sample as the caller gives it; where there is none, one outside.
struct Given {
  bool exists;
  float u = -9, v = -9, weight = 0;

  ISDA_DEVICE Given(const Problem& problem, long long first, int own, int samples)
      : exists(own < samples) {
    if (!exists) return;
    const float2 location = load_once(static_cast<const float2*>(problem.locations) + first + own);
    u = location.x;
    v = location.y;
    weight = load_once(static_cast<const float*>(problem.weights) + first + own);
  }
};

// The four rows of a sample, as far as this lane reads them.
template <typename Vector>
struct Corners {
  Vector vectors[4];

  ISDA_DEVICE void read(
      const Vector* rows, unsigned row_bytes, unsigned upper, unsigned lower, unsigned right) {
    vectors[0] = load_words(row_at(rows, upper, row_bytes));
    vectors[1] = load_words(row_at(rows, upper + right, row_bytes));
    vectors[2] = load_words(row_at(rows, lower, row_bytes));
    vectors[3] = load_words(row_at(rows, lower + right, row_bytes));
  }
};

ISDA_DEVICE void unpack(const Words<4>& words, float (&x)[4], float) {
  for (int i = 0; i < 4; ++i) x[i] = __uint_as_float(words.word[i]);
}
template <int kWords, typename T>
ISDA_DEVICE void unpack(const Words<kWords>& words, float (&x)[2 * kWords], T) {
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    x[2 * i] = widen(T{static_cast<unsigned short>(words.word[i])});
    x[2 * i + 1] = widen(T{static_cast<unsigned short>(words.word[i] >> 16)});
  }
}

ISDA_DEVICE Words<4> pack(const float (&x)[4], float) {
  return {{__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]),
           __float_as_uint(x[3])}};
}
template <typename T>
ISDA_DEVICE Words<4> pack(const float (&x)[8], T) {
  Words<4> words;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words.word[i] = narrow<T>(x[2 * i]).bits | unsigned(narrow<T>(x[2 * i + 1]).bits) << 16;
  }
  return words;
}

}  // namespace isda
