#include "launch.cuh"

template void isda::backward<isda::Type::kFloat>(const Problem&, void*);
