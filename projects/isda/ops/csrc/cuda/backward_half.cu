#include "launch.cuh"

template void isda::backward<isda::Type::kHalf>(const Problem&, void*);
