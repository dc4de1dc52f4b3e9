#include "launch.cuh"

template void isda::forward<isda::Type::kHalf>(const Problem&, void*);
