#include "launch.cuh"

template void isda::forward<isda::Type::kFloat>(const Problem&, void*);
