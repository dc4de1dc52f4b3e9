#include "launch.cuh"

template void isda::forward<isda::Type::kBFloat16>(const Problem&, void*);
