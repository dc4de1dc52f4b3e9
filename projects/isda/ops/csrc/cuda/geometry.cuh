// Where samples fall. Everything about borders is here.

#pragma once

#include "device.cuh"

namespace isda {

constexpr unsigned kWholeWarp = 0xffffffffu;

struct Level {
  int rows, columns, start;
  bool fits;  // into the value's tokens
};

ISDA_DEVICE Level level_of(const Problem& problem, int level) {
  long long rows, columns, start;
  if (problem.shapes) {
    rows = load(problem.shapes + 2 * level);
    columns = load(problem.shapes + 2 * level + 1);
    start = load(problem.starts + level);
  } else {
    rows = problem.levels_by_value[level][0];
    columns = problem.levels_by_value[level][1];
    start = problem.levels_by_value[level][2];
  }
  // Extents first, so that their product cannot overflow; coordinates must be exact, too.
  const long long most = 1 << 24;
  const bool fits = rows >= 0 && rows <= most && columns >= 0 && columns <= most && start >= 0 &&
                    start <= problem.tokens && rows * columns <= problem.tokens - start;
  return {int(rows), int(columns), int(start), fits};
}

// The extent of a level along one axis, such that no sample is inside of an empty level and those
// of a level that does not fit, which nobody could report, are not numbers.
template <typename C>
ISDA_DEVICE C extent_of(const Level& level, int cells) {
  const bool empty = level.rows == 0 || level.columns == 0;
  return !level.fits ? C(__int_as_float(0x7fffffff)) : empty ? C(-1) : C(cells);
}

// A sample lies between a column and the next, a row and the next; the first may be -1, the next
// may be one too many.
template <typename C>
struct Place {
  bool inside;       // within a cell of the level; else the rest is 0
  int column, row;
  C right, below;    // fractions of a cell
  C spoilt;          // 0, or not a number if the location is infinite or not a number
};

// kRightDerivative keeps samples exactly one cell left of or above a level: their output is zero,
// but their derivative on the right is not.
template <bool kRightDerivative, typename C>
ISDA_DEVICE Place<C> place(C u, C v, C width, C height) {
  C x = u * width - C(0.5), y = v * height - C(0.5);
  Place<C> place;
  place.spoilt = (x + y) * C(0);
  const bool begun = kRightDerivative ? x >= C(-1) && y >= C(-1) : x > C(-1) && y > C(-1);
  place.inside = begun && x < width && y < height;
  x = place.inside ? x : C(0);
  y = place.inside ? y : C(0);
  place.column = floor_to_int(x);
  place.row = floor_to_int(y);
  place.right = x - C(place.column);
  place.below = y - C(place.row);
  return place;
}

}  // namespace isda
